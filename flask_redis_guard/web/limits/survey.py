"""All limits of an app in one list: for the command line, and for what an operator must hear of."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from flask import Flask

from flask_redis_guard.runtime import Runtime
from flask_redis_guard.web.limits.declared import AppLimits, DeclaredLimits, Limit
from flask_redis_guard.web.limits.resolve import (
    handler_of,
    is_limited_elsewhere_only,
    marks_of,
    place_hooks,
    view_of,
)

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


def survey(app: Flask, runtime: Runtime) -> Iterator[Entry]:
    """List every limit of an app; those of plain functions are not known before they are called.

    :param app: the app.
    :param runtime: what belongs to it.
    """
    for limit in runtime.part(AppLimits).of_app():
        yield Entry("app", "*", limit)
    for name, blueprint in app.blueprints.items():
        for limit in runtime.part(AppLimits).of_blueprint(blueprint):
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


def report_weak_limits(app: Flask, runtime: Runtime) -> None:
    """Log, once for each app, which limits do not fail closed or can be evaded by a client.

    Before anything else of the first request, it also sees to limits above hooks.

    :param app: the app.
    :param runtime: what belongs to it.
    """
    if "survey" in runtime.warned:
        return
    place_hooks(app)
    runtime.warned.add("survey")
    entries = list(survey(app, runtime))
    _report_useless(app, entries)
    everywhere = any(_by_address(entry.limit) for entry in entries if entry.scope == "app")
    guarded = {entry.scope for entry in entries if _by_address(entry.limit)}
    for entry in entries:
        limit = entry.limit
        if limit.on_outage != "deny":
            logger.warning(
                "The limit of %s is on_outage=%r: it does not fail closed",
                _where(entry),
                limit.on_outage,
            )
        if limit.shadow:
            logger.warning("The limit of %s is in shadow mode: it refuses nobody", _where(entry))
        named = isinstance(limit.key, str) and limit.key.partition(":")[0] in ("header", "session")
        if named and entry.scope not in guarded and not everywhere:
            logger.warning(
                "The limit of %s counts by %r, which a client can change at will, and no limit by "
                "address stands beside it",
                _where(entry),
                limit.key,
            )


def _report_useless(app: Flask, entries: list[Entry]) -> None:
    """Log what looks like a limit and is none."""
    if DeclaredLimits.any_idle():
        logger.warning(
            "Limits were declared on a RedisGuard that guards no app, and so apply nowhere: "
            "declare them on the guard whose init_app was called"
        )
    for endpoint, view in app.view_functions.items():
        if is_limited_elsewhere_only(view):
            logger.warning(
                "The view of the endpoint %r was given limits after it was registered, or for "
                "another use: its route knows nothing of them",
                endpoint,
            )
    accepted: dict[str, set[str]] = {}
    for rule in app.url_map.iter_rules():
        accepted.setdefault(f"endpoint:{rule.endpoint}", set()).update(rule.methods or ())
    for entry in entries:
        wanted, methods = entry.limit.methods, accepted.get(entry.scope)
        if wanted is not None and methods is not None and not wanted & methods:
            logger.warning(
                "The limit of %s is for %s, which is never accepted there: it limits nothing",
                _where(entry),
                ", ".join(sorted(wanted)),
            )


def _where(entry: Entry) -> str:
    return entry.scope if entry.rule == "*" else f"{entry.scope} ({entry.rule})"


def _by_address(limit: Limit) -> bool:
    return limit.key in (None, "address") and not limit.shadow
