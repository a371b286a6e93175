"""``flask redis-guard limits`` and ``reset``: see every limit, and free who was caught by one."""

from __future__ import annotations

import json
from typing import Any

import click
from flask import Flask
from flask.cli import with_appcontext

from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.runtime import Runtime
from flask_redis_guard.web.limits.subjects import subjects_named
from flask_redis_guard.web.limits.survey import Entry, survey


def limits_command(app: Flask, runtime: Runtime) -> click.Command:
    """Return the command that lists all limits of an app.

    :param app: the app.
    :param runtime: what belongs to it.
    """

    @click.command("limits")
    @click.option("--json", "as_json", is_flag=True, help="Write JSON, one limit a line.")
    @with_appcontext
    def limits(as_json: bool) -> None:
        """List every limit of every route, blueprint and of the app.

        Limits of functions that are no views are not known before they are called.
        """
        rows = [_row(entry) for entry in survey(app, runtime)]
        if not rows and not as_json:
            click.echo("There are no limits.")
        for row in rows:
            if as_json:
                click.echo(json.dumps(row))
            else:
                extras = [f"{k}={v}" for k, v in row.items() if k not in _COLUMNS and v]
                click.echo(
                    "  ".join(f"{row[name]:{width}}" for name, width in _COLUMNS.items()), nl=False
                )
                click.echo("  " + " ".join(extras) if extras else "")

    return limits


def reset_command(app: Flask, runtime: Runtime) -> click.Command:
    """Return the command that frees one subject, or everybody, of limits.

    :param app: the app.
    :param runtime: what belongs to it.
    """

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
        wanted = f"endpoint:{route}" if route is not None else scope
        if key is None and wanted is None:
            raise click.UsageError("Name a KEY, or --route or --scope to free everybody.")
        entries = [e for e in survey(app, runtime) if wanted in (None, e.scope, _scope(e))]
        if not entries:
            raise click.ClickException(f"There is no limit of {wanted or 'this app'}.")
        try:
            freed = sum(_reset(runtime, entry, key) for entry in entries)
        except RedisUnavailable as exc:
            raise click.ClickException(str(exc)) from exc
        click.echo(f"Freed {key or 'everybody'} of {freed} limits.")

    return reset


_COLUMNS = {"scope": 28, "rule": 24, "rates": 24, "key": 12}


def _row(entry: Entry) -> dict[str, Any]:
    limit = entry.limit
    rates = "(callable)" if callable(limit.rates) else "; ".join(map(str, limit.rates))
    return {
        "scope": _scope(entry),
        "rule": entry.rule,
        "rates": rates,
        "key": "(callable)" if callable(limit.key) else limit.key or "address",
        "methods": sorted(limit.methods or ()),
        "algorithm": limit.algorithm,
        "on_outage": limit.on_outage if limit.on_outage != "deny" else None,
        "defer": limit.defer,
        "shadow": limit.shadow,
    }


def _scope(entry: Entry) -> str:
    return entry.scope if entry.limit.scope is None else f"scope:{entry.limit.scope}"


def _reset(runtime: Runtime, entry: Entry, key: str | None) -> int:
    rates, scope = entry.limit.rates, _scope(entry)
    if entry.counted is not None and entry.limit.scope is None:
        scope = entry.counted
    if callable(rates):
        click.echo(f"{scope}: its rates are worked out for each request; not freed.", err=True)
        return 0
    if key is None:
        runtime.limiter.reset_all(rates, scope)
    else:
        for subject in subjects_named(entry.limit.key, key, runtime.settings.ipv6_prefix):
            runtime.limiter.reset(rates, subject, scope=scope)
    return 1
