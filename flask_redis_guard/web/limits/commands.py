"""All limits of an app in one list: ``flask redis-guard limits`` and ``reset``, and warnings."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import click
from flask import Flask
from flask.cli import with_appcontext

from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.runtime import Runtime
from flask_redis_guard.web.limits.declared import Counted, DeclaredLimits, Limit
from flask_redis_guard.web.limits.resolve import Route, Routes, Scopes
from flask_redis_guard.web.limits.subjects import Key, subjects_named

logger = logging.getLogger("flask_redis_guard")

STANDS_ABOVE = (
    "A limit of %s stands above its route, or was applied after it. It applies all the same"
)


class Entry(NamedTuple):
    """One declaration and where it applies."""

    #: ``app``, ``blueprint:NAME`` or ``endpoint:NAME``.
    place: str
    #: The URL rule; ``*`` for whole apps and blueprints.
    rule: str
    declared: Any
    #: What is counted, where the declaration names no ``scope``.
    scope: str
    #: Whether a wrapper checks it when the view is called.
    called: bool = True

    @property
    def where(self) -> str:
        """The place and the rule, for the log."""
        return self.place if self.rule == "*" else f"{self.place} ({self.rule})"


#: List the limits of an app that are of no route, blueprint or app.
surveyors: list[Callable[[Flask], Iterator[Entry]]] = []


def survey(app: Flask, routes: Routes) -> Iterator[Entry]:
    """List every limit of an app; those of plain functions are not known before they are called.

    :param app: the app.
    :param routes: finds the limits of its routes.
    """
    for limit, scope in routes.find(None, "").ahead:
        yield Entry("app", "*", limit, scope)
    for name, blueprint in app.blueprints.items():
        scopes, place = Scopes(routes.limits.default_key), f"blueprint:{name}"
        for limit in routes.limits.of_blueprint(blueprint):
            yield Entry(place, "*", limit, scopes.give(limit, place))
    for rule in app.url_map.iter_rules():
        seen: dict[Any, Route] = {}
        for method in sorted(rule.methods or ()):
            route = routes.find(rule, method)
            for one in route.scopes:
                seen.setdefault(one, route)
        for one, route in seen.items():
            place, called = f"endpoint:{rule.endpoint}", one not in route.above
            yield Entry(place, rule.rule, one, route.scopes[one], called)
    for surveyor in surveyors:
        yield from surveyor(app)


# -- what an operator must hear of ---------------------------------------------------------------


def report_weak_limits(app: Flask, routes: Routes) -> None:
    """Log which limits do not fail closed, can be evaded by a client, or are none.

    :param app: the app.
    :param routes: finds the limits of its routes.
    """
    entries = list(survey(app, routes))
    _report_useless(app, entries)
    limits = [(entry, entry.declared) for entry in entries if isinstance(entry.declared, Limit)]
    default = routes.limits.default_key
    by_address = {e.place for e, limit in limits if _by_address(limit, default)}
    for entry, limit in limits:
        if limit.on_outage != "deny":
            logger.warning(
                "The limit of %s is on_outage=%r: it does not fail closed",
                entry.where,
                limit.on_outage,
            )
        if limit.shadow:
            logger.warning("The limit of %s is in shadow mode: it refuses nobody", entry.where)
        key = limit.key or default
        named = isinstance(key, str) and key.partition(":")[0] in ("header", "session")
        if named and not by_address & {entry.place, "app"}:
            logger.warning(
                "The limit of %s counts by %r, which a client can change at will, and no limit by "
                "address stands beside it",
                entry.where,
                key,
            )


def _report_useless(app: Flask, entries: list[Entry]) -> None:
    """Log what looks like a limit and is none, or is one in an unusual place."""
    if DeclaredLimits.any_idle():
        logger.warning(
            "Limits were declared on a RedisGuard that guards no app, and so apply nowhere: "
            "declare them on the guard whose init_app was called"
        )
    accepted: dict[str, set[str]] = {}
    for rule in app.url_map.iter_rules():
        accepted.setdefault(f"endpoint:{rule.endpoint}", set()).update(rule.methods or ())
    for entry in entries:
        if not entry.called and hasattr(entry.declared, "function_scope"):
            logger.warning(STANDS_ABOVE, entry.where)
        elif not entry.called:
            logger.warning(
                "The handler of %s is registered as it is, though it was limited elsewhere: its "
                "messages are not counted; put the decorator below its route",
                entry.where,
            )
        wanted = getattr(entry.declared, "methods", None)
        methods = accepted.get(entry.place)
        if wanted is not None and methods is not None and not wanted & methods:
            logger.warning(
                "The limit of %s is for %s, which is never accepted there: it limits nothing",
                entry.where,
                ", ".join(sorted(wanted)),
            )


def _by_address(limit: Limit, default: Key) -> bool:
    return (limit.key or default) == "address" and not limit.shadow


# -- the command line ----------------------------------------------------------------------------


def limit_commands(app: Flask, runtime: Runtime, routes: Routes) -> list[click.Command]:
    """Return the commands that show limits and free subjects of them.

    :param app: the app.
    :param runtime: what belongs to it.
    :param routes: finds the limits of its routes.
    """
    return [_limits(app, routes), _reset(app, runtime, routes)]


_COLUMNS = {"scope": 28, "rule": 24, "limit": 24, "key": 12}


def _limits(app: Flask, routes: Routes) -> click.Command:
    @click.command("limits")
    @click.option("--json", "as_json", is_flag=True, help="Write JSON, one limit a line.")
    @with_appcontext
    def limits(as_json: bool) -> None:
        """List every limit of every route, blueprint and of the app.

        Limits of functions that are no views are not known before they are called.
        """
        rows = [
            _row(entry, counted)
            for entry in survey(app, routes)
            for counted in entry.declared.counted(entry.scope)
        ]
        if not rows and not as_json:
            click.echo("There are no limits.")
        for row in rows:
            if as_json:
                click.echo(json.dumps(row))
                continue
            extras = [f"{k}={v}" for k, v in row.items() if k not in _COLUMNS and v]
            columns = (f"{row[name]:{width}}" for name, width in _COLUMNS.items())
            click.echo("  ".join(columns) + "  " + " ".join(extras))

    return limits


def _row(entry: Entry, counted: Counted) -> dict[str, Any]:
    joined = counted.scope.startswith("scope:")
    scope = counted.scope if joined else entry.place
    elsewhere = counted.scope if counted.scope not in (scope, "") else None
    return {"scope": scope, "rule": entry.rule, **counted.row(), "counted_in": elsewhere}


def _chosen(
    app: Flask, routes: Routes, route: str | None, scope: str | None
) -> list[tuple[Entry, Counted]]:
    """Return what is counted and was asked for.

    :raises click.ClickException: if that is nothing.
    """
    wanted = f"endpoint:{route}" if route is not None else scope
    chosen = [
        (entry, counted)
        for entry in survey(app, routes)
        for counted in entry.declared.counted(entry.scope)
        if counted.scope and wanted in (None, entry.place, counted.scope)
    ]
    if not chosen:
        raise click.ClickException(f"There is no limit of {wanted or 'this app'}.")
    return chosen


def _reset(app: Flask, runtime: Runtime, routes: Routes) -> click.Command:
    @click.command("reset")
    @click.argument("key", required=False)
    @click.option("--route", metavar="ENDPOINT", help="Only the limits of this endpoint.")
    @click.option("--scope", help="Only the limits of this scope, as `limits` names it.")
    @with_appcontext
    def reset(key: str | None, route: str | None, scope: str | None) -> None:
        """Free KEY (an address, a user's id, a header's value ...) of what it was charged.

        Without KEY, free everybody; that needs --route or --scope. A worker that remembers a
        refusal may go on refusing for up to one second.
        """
        if key is None and route is None and scope is None:
            raise click.UsageError("Name a KEY, or --route or --scope to free everybody.")
        try:
            freed = sum(
                _free(runtime, counted, key) for _, counted in _chosen(app, routes, route, scope)
            )
        except RedisUnavailable as exc:
            raise click.ClickException(str(exc)) from exc
        click.echo(f"Freed {key or 'everybody'} of {freed} limits.")

    return reset


def _free(runtime: Runtime, counted: Counted, key: str | None) -> int:
    rates = counted.rates
    if callable(rates):
        click.echo(f"{counted.scope}: its rates are worked out for each request; not freed.")
        return 0
    if rates is None:
        return 0
    if key is None:
        runtime.limiter.reset_all(rates, counted.scope)
    else:
        for subject in subjects_named(counted.key, key, runtime.settings.ipv6_prefix):
            runtime.limiter.reset(rates, subject, scope=counted.scope)
    return 1
