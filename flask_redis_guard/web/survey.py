"""All limits of an app in one list: for the command line, and for what an operator must hear of."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from flask import Flask

from flask_redis_guard.web.decorated import handler_of, marks_of, place_hooks, view_of
from flask_redis_guard.web.host import Host
from flask_redis_guard.web.limits import DeclaredLimits, Limit

logger = logging.getLogger("flask_redis_guard")


class Entry(NamedTuple):
    """One limit and where it applies."""

    #: ``app``, ``blueprint:NAME`` or ``endpoint:NAME``: the scope where none was given.
    scope: str
    #: The URL rule; ``*`` for whole apps and blueprints.
    rule: str
    limit: Limit
    #: What is counted, where that is not the endpoint: ``function:NAME``.
    counted: str | None = None


def survey(app: Flask, host: Host) -> Iterator[Entry]:
    """List every limit of an app; those of plain functions are not known before they are called.

    :param app: the app.
    :param host: what belongs to it.
    """
    for limit in host.app_limits:
        yield Entry("app", "*", limit)
    for name, blueprint in app.blueprints.items():
        for limit in host.blueprint_limits(blueprint):
            yield Entry(f"blueprint:{name}", "*", limit)
    for rule in app.url_map.iter_rules():
        view = view_of(app, rule.endpoint)
        found = {
            limit: False for m in rule.methods or () for limit in marks_of(handler_of(view, m))
        }
        found.update(marks_of(view))
        for limit, own in found.items():
            counted = None if own and not limit.defer else limit.function_scope or None
            yield Entry(f"endpoint:{rule.endpoint}", rule.rule, limit, counted)


def report_weak_limits(app: Flask, host: Host) -> None:
    """Log, once for each app, which limits do not fail closed or can be evaded by a client.

    Before anything else of the first request, it also sees to limits above hooks.

    :param app: the app.
    :param host: what belongs to it.
    """
    if "survey" in host.warned:
        return
    place_hooks(app)
    host.warned.add("survey")
    if DeclaredLimits.any_idle():
        logger.warning(
            "Limits were declared on a RedisGuard that guards no app, and so apply nowhere: "
            "declare them on the guard whose init_app was called"
        )
    entries = list(survey(app, host))
    everywhere = any(_by_address(entry.limit) for entry in entries if entry.scope == "app")
    guarded = {entry.scope for entry in entries if _by_address(entry.limit)}
    accepted: dict[str, set[str]] = {}
    for url_rule in app.url_map.iter_rules():
        accepted.setdefault(f"endpoint:{url_rule.endpoint}", set()).update(url_rule.methods or ())
    for scope, rule, limit, _ in entries:
        where = scope if rule == "*" else f"{scope} ({rule})"
        if limit.on_outage != "deny":
            logger.warning(
                "The limit of %s is on_outage=%r: it does not fail closed", where, limit.on_outage
            )
        if limit.shadow:
            logger.warning("The limit of %s is in shadow mode: it refuses nobody", where)
        methods = accepted.get(scope)
        if limit.methods is not None and methods is not None and not limit.methods & methods:
            logger.warning(
                "The limit of %s is for %s, which is never accepted there: it limits nothing",
                where,
                ", ".join(sorted(limit.methods)),
            )
        named = isinstance(limit.key, str) and limit.key.partition(":")[0] in ("header", "session")
        if named and scope not in guarded and not everywhere:
            logger.warning(
                "The limit of %s counts by %r, which a client can change at will, and no limit by "
                "address stands beside it",
                where,
                limit.key,
            )


def _by_address(limit: Limit) -> bool:
    return limit.key in (None, "address") and not limit.shadow
