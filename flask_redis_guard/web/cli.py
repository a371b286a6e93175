"""``flask redis-guard``: look at Redis and at a running app from a shell, also from a script."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

import click
from flask.cli import AppGroup, with_appcontext

from flask_redis_guard.observe.diagnosis import FAIL, PASS, WARN, Finding
from flask_redis_guard.observe.report import HealthReport
from flask_redis_guard.web.remote import Answer, fetch

#: Exit codes beside 0 for well and click's 2 for bad usage.
FAILED, NOT_REACHED = 1, 3

_COLOURS = {PASS: "green", WARN: "yellow", FAIL: "red", "unreachable": "red"}

#: Gives an answer, from an address with a token or, without an address, from this process.
Ask = Callable[["str | None", "str | None"], Answer]


_as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON.")
_url = click.option("--url", metavar="URL", help="Ask a running app, e.g. http://localhost:8000.")
_token = click.option(
    "--token",
    envvar="REDIS_GUARD_HEALTH_TOKEN",
    help="Its health token; by default this app's REDIS_GUARD_HEALTH_TOKEN.",
)


def redis_guard_group(
    report: HealthReport,
    diagnose: Callable[[], Iterable[Finding]],
    check_now: Callable[[], object],
    *more: click.Command,
    health_path: str = "",
    token: str | None = None,
) -> AppGroup:
    """Return the command group of one app.

    :param report: this process's view of Redis.
    :param diagnose: goes through the steps of ``check``.
    :param check_now: checks Redis once, so that this process's view is of now.
    :param more: commands of other features.
    :param health_path: where the app mounts its health routes.
    :param token: the app's health token, sent unless another one is given.
    """

    def ask(address: str | None, secret: str | None) -> Answer:
        if address is not None:
            return fetch(address, health_path, secret or token)
        check_now()
        summary = report.summary()
        # A process that has just begun has no failures behind it: one is reason enough here.
        status = report.status(summary, ready=report.ready and summary["healthy"])
        body = {"status": status, "redis": summary, "process": report.process()}
        return {**body, "details": report.details()}

    group = AppGroup("redis-guard", help="Look at Redis and at the guard before it.")
    for command in (_status(ask), _check(diagnose), _watch(ask), *more):
        group.add_command(command)
    return group


def _status(ask: Ask) -> click.Command:
    @click.command("status")
    @_url
    @_token
    @_as_json
    @with_appcontext
    def status(url: str | None, token: str | None, as_json: bool) -> None:
        """Tell how Redis is, as this process or a running app sees it.

        Ends with 0 if it is well or only failing, 1 if requests are refused, 3 if the app could
        not be asked.
        """
        answer = ask(url, token)
        if as_json:
            click.echo(json.dumps(answer))
        else:
            _print_answer(answer)
        raise SystemExit(exit_code(answer))

    return status


def _check(diagnose: Callable[[], Iterable[Finding]]) -> click.Command:
    @click.command("check")
    @_as_json
    @click.option("--strict", is_flag=True, help="Fail for warnings too.")
    @with_appcontext
    def check(as_json: bool, strict: bool) -> None:
        """Prove that this configuration reaches a Redis that will do.

        Connects, writes, runs the scripts, and looks at version, eviction policy and clock. Ends
        with 0 if all is well and with 1 if not.
        """
        bad = False
        for finding in diagnose():
            bad = bad or finding.status == FAIL or (strict and finding.status == WARN)
            if as_json:
                click.echo(json.dumps(asdict(finding)))
            else:
                click.secho(f"{finding.status:5}", fg=_COLOURS[finding.status], bold=True, nl=False)
                click.echo(f" {finding.step:11} {finding.text}")
        raise SystemExit(FAILED if bad else 0)

    return check


def _watch(ask: Ask) -> click.Command:
    @click.command("watch")
    @_url
    @_token
    @_as_json
    @click.option(
        "--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds."
    )
    @click.option("--count", type=click.IntRange(1), help="Stop after so many looks.")
    @with_appcontext
    def watch(
        url: str | None, token: str | None, as_json: bool, interval: float, count: int | None
    ) -> None:
        """Follow how Redis is: a line for each change, with --json for each look.

        Ends, with --count or Ctrl-C, with the exit code that status would give.
        """
        answer: Answer = {}
        try:
            for answer, changed in _follow(lambda: ask(url, token), interval, count):
                if as_json:
                    click.echo(json.dumps(answer))
                elif changed:
                    click.echo(time.strftime("%H:%M:%S "), nl=False)
                    _print_line(answer)
        except KeyboardInterrupt:
            click.echo()
        raise SystemExit(exit_code(answer))

    return watch


def exit_code(answer: Answer) -> int:
    """Return what a script is told by an answer."""
    codes = {PASS: 0, WARN: 0, FAIL: FAILED}
    return codes.get(answer.get("status", ""), NOT_REACHED)


def _follow(
    ask: Callable[[], Answer], interval: float, count: int | None
) -> Iterator[tuple[Answer, bool]]:
    """Give each answer and whether it says something else than the one before."""
    before: object = None
    looks = 0
    while True:
        answer = ask()
        now = (answer["status"], answer.get("redis", {}).get("circuit_state"))
        yield answer, now != before
        before, looks = now, looks + 1
        if looks == count:
            return
        time.sleep(interval)


def _print_line(answer: Answer) -> None:
    click.secho(answer["status"], fg=_COLOURS[answer["status"]], bold=True, nl=False)
    if "redis" not in answer:
        click.echo(f" {_plain(answer['error'])}")
        return
    redis = answer["redis"]
    latency = redis["latency_ms"]
    said = "no answer" if latency is None else f"{latency:.1f} ms"
    failures = redis["failure_count"]
    speaker = f", as process {answer['process']} sees it" if "process" in answer else ""
    click.echo(
        f" circuit {_plain(redis['circuit_state'])}, {said}, {failures} failures in a row{speaker}"
        + (" (in-memory store)" if redis["is_mock"] else "")
    )


def _print_answer(answer: Answer) -> None:
    _print_line(answer)
    for name, value in answer.get("details", {}).items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        text = "-" if value in (None, "") else _plain(value)
        click.echo(f"  {_plain(name).replace('_', ' '):20} {text}")


def _plain(value: object) -> str:
    """Return what another process sent without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(value))
