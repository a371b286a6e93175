"""``flask redis-guard audit``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import with_appcontext

from flask_redis_guard.errors import GuardError
from flask_redis_guard.testing.faults import KINDS, SLOW_SECONDS
from flask_redis_guard.testing.findings import BAD, VERDICTS

if TYPE_CHECKING:
    from flask_redis_guard.testing.audit import Progress


def _some_of(words: tuple[str, ...]) -> Callable[..., tuple[str, ...]]:
    """Return what reads some words of a list, with commas between them."""

    def read(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
        found = tuple(word.strip() for word in value.split(",") if word.strip())
        for word in found:
            if word not in words:
                raise click.BadParameter(f"{word!r} is none of {', '.join(words)}")
        return found

    return read


@click.command("audit")
@click.option(
    "--requests",
    metavar="FILE",
    help="Examples of requests: a JSON file, or module:function.",
)
@click.option(
    "--faults",
    metavar="WORDS",
    callback=_some_of(KINDS),
    default=",".join(KINDS),
    show_default=True,
    help="Faults to make.",
)
@click.option(
    "--fail-on",
    metavar="WORDS",
    callback=_some_of(VERDICTS),
    default=",".join(BAD),
    show_default=True,
    help="Verdicts that fail.",
)
@click.option(
    "--patience",
    type=click.FloatRange(0.1, 60),
    default=5.0,
    show_default=True,
    help="Seconds after which a request hangs.",
)
@click.option(
    "--slow",
    "slow_seconds",
    type=click.FloatRange(0.01, 60),
    default=SLOW_SECONDS,
    show_default=True,
    help="Seconds by which answers of a slow Redis are late.",
)
@click.option(
    "--limit-calls",
    type=click.IntRange(1),
    default=60,
    show_default=True,
    help="Calls to find the limit of a route.",
)
@click.option(
    "--own-redis",
    is_flag=True,
    help="Ask the app's own Redis, and write to it; for Sentinel and Cluster.",
)
@click.option("--base-url", metavar="URL", help="What the app sees, e.g. https://shop.example.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit XML.")
@with_appcontext
def audit_command(
    requests: str | None,
    faults: tuple[Any, ...],
    fail_on: tuple[str, ...],
    as_json: bool,
    junit: Path | None,
    **options: Any,
) -> None:
    """Find out what this app does in an outage of Redis.

    Calls every route in this process under each fault, with every connection of redis-py led to
    an empty server of its own. Ends with 0 if nothing fails, 1 if something does, 2 for wrong
    usage.
    """
    from flask_redis_guard.testing.audit import audit
    from flask_redis_guard.testing.rendering import as_junit, as_table

    app: Any = current_app
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the app prints is not the report
            report = audit(
                app._get_current_object(),
                requests,
                faults=faults,
                progress=_progress(),
                **options,
            )
    except GuardError as exc:
        raise click.UsageError(str(exc)) from None
    if junit is not None:
        junit.write_text(as_junit(report, fail_on), encoding="utf-8")
    if as_json:
        click.echo(report.as_json(fail_on))
    else:
        click.echo(as_table(report, fail_on, colour=_may_colour()))
    raise SystemExit(1 if report.bad(fail_on) or not report.findings else 0)


def _may_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _progress() -> Progress:
    """Return what shows how far it is: one line on a terminal, a line for each fault elsewhere."""
    is_terminal = sys.stderr.isatty()
    told: list[str] = []

    def show(doing: str, done: int, total: int) -> None:
        if is_terminal:
            end = "" if done < total or not total else "\r"
            click.echo(f"\r\x1b[K{doing[:60]}  {done}/{total}", nl=False, err=True)
            click.echo("\r\x1b[K" if end else "", nl=False, err=True)
        elif (stage := doing.partition(":")[0]) not in told:
            told.append(stage)
            click.echo(f"{stage} …", err=True)

    return show
