"""All limits of an app: ``flask redis-guard limits``, ``show`` and ``reset``, and warnings."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import click
import redis
from flask import Flask
from flask.cli import with_appcontext

from flask_redis_guard.client.script import guarded
from flask_redis_guard.core.rates import MAX_PERIOD, Rate, RateState
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
    for limit, scope in routes.look_up(None, "").ahead:
        yield Entry("app", "*", limit, scope)
    for name, blueprint in app.blueprints.items():
        scopes, place = Scopes(routes.limits.default_key), f"blueprint:{name}"
        for limit in routes.limits.of_blueprint(blueprint):
            yield Entry(place, "*", limit, scopes.give(limit, place))
    for rule in app.url_map.iter_rules():
        seen: dict[Any, Route] = {}
        for method in sorted(rule.methods or ()):
            route = routes.look_up(rule, method)
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
    return [_limits(app, routes), _show(app, runtime, routes), _reset(app, runtime, routes)]


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


def _reset(app: Flask, runtime: Runtime, routes: Routes) -> click.Command:
    @click.command("reset")
    @click.argument("key", required=False)
    @click.option("--route", metavar="ENDPOINT", help="Only the limits of this endpoint.")
    @click.option("--scope", help="Only the limits of this scope, as `limits` names it.")
    @with_appcontext
    def reset(key: str | None, route: str | None, scope: str | None) -> None:
        """Free KEY (an address, a user's id, a header's value ...) of what it was charged.

        Without KEY, free everybody; that needs --route or --scope. A worker that remembers a
        refusal may go on refusing for up to one second. Ends with 1 if there was nothing to free.
        """
        if key is None and route is None and scope is None:
            raise click.UsageError("Name a KEY, or --route or --scope to free everybody.")
        found = 0
        try:
            for counted in _counters(app, routes, route, scope):
                if key is None:
                    found += _free_everybody(runtime, counted)
                else:
                    used = list(_used(runtime, counted, key))
                    found += sum(one.counters for one in used)
                    for one in used:
                        one.free()
        except RedisUnavailable as exc:
            raise click.ClickException(str(exc)) from exc
        logger.info("An operator reset limits: %s counters were deleted", found)
        if not found:
            raise click.ClickException(f"Nothing is counted of {key or 'anybody'}.")
        click.echo(f"Freed {key or 'everybody'}: {found} counters were found and deleted.")

    return reset


def _show(app: Flask, runtime: Runtime, routes: Routes) -> click.Command:
    @click.command("show")
    @click.argument("key")
    @click.option("--route", metavar="ENDPOINT", help="Only the limits of this endpoint.")
    @click.option("--scope", help="Only the limits of this scope, as `limits` names it.")
    @click.option("--json", "as_json", is_flag=True, help="Write JSON, one counter a line.")
    @with_appcontext
    def show(key: str, route: str | None, scope: str | None, as_json: bool) -> None:
        """Tell why KEY is refused: what it used of each limit, and when that is free again.

        Charges nothing. Ends with 1 if nothing is counted of KEY.
        """
        rows: list[dict[str, Any]] = []
        try:
            for counted in _counters(app, routes, route, scope):
                for one in _used(runtime, counted, key):
                    rows += one.rows()
        except RedisUnavailable as exc:
            raise click.ClickException(str(exc)) from exc
        for row in rows:
            click.echo(json.dumps(row) if as_json else _LINE.format(**row))
        if not rows:
            raise click.ClickException(f"Nothing is counted of {key}.")

    return show


_LINE = "{scope:28}  {limit:24}  used {used} of {of}, {verdict}, all free in {free_in:.0f} s"


class Used(NamedTuple):
    """What a subject used of one limit."""

    runtime: Runtime
    counted: Counted
    subject: str
    #: What its rates say, as far as they count something.
    states: tuple[RateState, ...] = ()
    #: How many of its places are taken.
    held: int = 0

    @property
    def counters(self) -> int:
        """How many counters there are."""
        return len(self.states) + (1 if self.held else 0)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return what the command line shows of each counter."""
        start = {"scope": self.counted.scope, "as": self.subject.partition("\0")[0]}
        for state in self.states:
            verdict = "admitted" if state.allowed else f"refused for {state.retry_after:.0f} s"
            yield {
                **start,
                "limit": str(state.rate),
                "used": state.rate.capacity - state.remaining,
                "of": state.rate.capacity,
                "verdict": verdict,
                "free_in": math.ceil(state.reset_after),
            }
        if self.held:
            places = self.counted.places or 0
            yield {
                **start,
                "limit": self.counted.limit,
                "used": self.held,
                "of": places,
                "verdict": "refused" if self.held >= places else "admitted",
                "free_in": self.counted.extras.get("lease", 0),
            }

    def free(self) -> None:
        """Delete the counters.

        :raises RedisUnavailable: if Redis gave no answer, or an error.
        """
        runtime, counted = self.runtime, self.counted
        if counted.places is not None:
            guarded("concurrency limit reset", runtime.client.delete, self.key())
        elif isinstance(counted.rates, tuple):
            runtime.limiter.reset(counted.rates, self.subject, scope=counted.scope)

    def key(self) -> bytes:
        """Return the key of the places."""
        counted = self.counted
        concurrency = self.runtime.concurrency
        return concurrency.lease(self.subject, counted.places or 1, scope=counted.scope).key


def _counters(
    app: Flask, routes: Routes, route: str | None, scope: str | None
) -> Iterator[Counted]:
    """Return what is counted and was asked for, each counter once.

    :raises click.ClickException: if that is nothing.
    """
    wanted = f"endpoint:{route}" if route is not None else scope
    known, seen = False, set()
    for entry in survey(app, routes):
        for counted in entry.declared.counted(entry.scope):
            if not counted.scope or wanted not in (None, entry.place, counted.scope):
                continue
            known = True
            if callable(counted.rates):
                click.echo(
                    f"{counted.scope}: its rates are worked out for each request, and so not "
                    "known here.",
                    err=True,
                )
                continue
            identity = (counted.scope, counted.rates, counted.places, counted.key)
            if identity not in seen:
                seen.add(identity)
                yield counted
    if not known:
        raise click.ClickException(f"There is no limit of {wanted or 'this app'}.")


def _used(runtime: Runtime, counted: Counted, key: str) -> Iterator[Used]:
    """Ask what somebody used of a limit, under each name that it may have there."""
    for subject in subjects_named(counted.key, key, runtime.settings):
        used = Used(runtime, counted, subject)
        if counted.places is not None:
            held = guarded("concurrency limit", _held, runtime.client, used.key())
            used = used._replace(held=held)
        elif isinstance(counted.rates, tuple):
            states = runtime.limiter.peek(counted.rates, subject, scope=counted.scope).states
            used = used._replace(states=tuple(one for one in states if one.reset_after > 0))
        if used.counters:
            yield used


def _held(client: redis.Redis, key: bytes) -> int:
    seconds, micros = client.time()
    return int(client.zcount(key, seconds * 1_000_000 + micros, "+inf"))


def _free_everybody(runtime: Runtime, counted: Counted) -> int:
    if isinstance(counted.rates, tuple):
        return runtime.limiter.reset_all(counted.rates, counted.scope)
    if counted.places is None:
        return 0
    rate = Rate(counted.places, MAX_PERIOD)
    pattern = runtime.limiter.keys.pattern(rate, counted.scope, kind=b"lease")
    return int(guarded("concurrency limit reset", _delete_matching, runtime.client, pattern))


def _delete_matching(client: redis.Redis, pattern: bytes) -> int:
    return sum(client.delete(key) for key in client.scan_iter(match=pattern, count=1000))
