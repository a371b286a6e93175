"""``flask redis-guard``: look at Redis and at a running app from a shell, also from a script."""

from __future__ import annotations

import getpass
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import click
from flask.cli import AppGroup, with_appcontext
from werkzeug.utils import import_string

from flask_redis_guard.core.hostview import DISABLE, FORCE_OPEN, RESET
from flask_redis_guard.host.membership import Membership
from flask_redis_guard.host.operators import Operators, WorkerReport
from flask_redis_guard.host.places import BoardRefused
from flask_redis_guard.observe.diagnosis import FAIL, PASS, WARN, Finding
from flask_redis_guard.observe.report import HealthReport

#: Exit codes beside 0 for well and click's 2 for bad usage.
FAILED, NOT_REACHED = 1, 3

_COLOURS = {PASS: "green", WARN: "yellow", FAIL: "red", "unreachable": "red"}

#: What a health route says.
Answer = dict[str, Any]
#: Gives an answer, from an address with a token or, without an address, from this process.
Ask = Callable[["str | None", "str | None"], Answer]


_as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON.")
_url = click.option("--url", metavar="URL", help="Ask a running app, e.g. http://localhost:8000.")
_token = click.option(
    "--token",
    envvar="REDIS_GUARD_HEALTH_TOKEN",
    help="Its health token; by default this app's REDIS_GUARD_HEALTH_TOKEN.",
)


#: Commands that are imported when they are asked for: a running app needs nothing of them.
_LATER = {"audit": "flask_redis_guard.testing.cli:audit_command"}


class _Group(AppGroup):
    """The commands of an app."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LATER])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _LATER:
            command: click.Command = import_string(_LATER[cmd_name])
            return command
        return super().get_command(ctx, cmd_name)


def redis_guard_group(
    report: HealthReport,
    diagnose: Callable[[], Iterable[Finding]],
    check_now: Callable[[], object],
    *more: click.Command,
    health_path: str = "",
    token: str | None = None,
    begin: Callable[[], object] = lambda: None,
) -> AppGroup:
    """Return the command group of one app.

    :param report: this process's view of Redis.
    :param diagnose: goes through the steps of ``check``.
    :param check_now: checks Redis once, so that this process's view is of now.
    :param more: commands of other features.
    :param health_path: where the app mounts its health routes.
    :param token: the app's health token, sent unless another one is given.
    :param begin: called ahead of every command.
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

    group = _Group("redis-guard", help="Look at Redis and at the guard before it.", callback=begin)
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


# -- the workers of this host ----------------------------------------------------------------------

#: Seconds to wait for all workers to carry a command out.
OBEYED_WITHIN = 3.0


def host_commands(host: Membership | None) -> list[click.Command]:
    """Return the commands about the workers of this host.

    :param host: this app's place among them; ``None`` where nothing is shared.
    """
    operators = None if host is None else Operators(host)
    group = AppGroup("breaker", help="Look at the circuits of all workers of this host, or act.")
    group.add_command(_show(operators, "show", "Tell what the circuits of all workers do."))
    for action, does in _ACTIONS.items():
        group.add_command(_act(operators, action, does))
    return [group, _show(operators, "workers", "List the workers of this app on this host.")]


_ACTIONS = {
    RESET: "Close the circuits of all workers; ends force-open and disable.",
    FORCE_OPEN: "Keep all workers away from Redis until reset.",
    DISABLE: "Let every call of all workers pass and count nothing, until reset.",
}


def _sharing(operators: Operators | None) -> Operators:
    if operators is None:
        raise click.ClickException(
            "The workers of this app share nothing: REDIS_GUARD_HOST_STATE is off, or this is "
            "development"
        )
    return operators


def _show(operators: Operators | None, name: str, about: str) -> click.Command:
    @click.command(name, help=about + " Ends with 1 if there is none.")
    @_as_json
    @with_appcontext
    def show(as_json: bool) -> None:
        reports = _sharing(operators).workers()
        command = _sharing(operators).command()
        for report in reports:
            click.echo(json.dumps(report.as_dict()) if as_json else _line(report))
        if command is not None and not as_json:
            at = time.strftime("%F %T", time.localtime(command.when))
            click.echo(f"last command: {command.action}, by {_plain(command.who)} at {at}")
        if not reports:
            click.echo(_NO_WORKER, err=True)
            raise SystemExit(FAILED)

    return show


_NO_WORKER = (
    "No worker of this app runs on this host as this user, or none has used Redis yet. Is it the "
    "same user, REDIS_URL and REDIS_GUARD_KEY_PREFIX?"
)


def _line(report: WorkerReport) -> str:
    heard = "" if report.heard is None else f", heard of {report.heard:.1f} s ago"
    silent = "" if report.responds else ", does not respond"
    probes = ", asks whether Redis is back" if report.probes else ""
    return (
        f"process {report.pid:<8} circuit {report.state}, {report.failures} failures in a row"
        f"{heard}{silent}{probes}"
    )


def _act(operators: Operators | None, action: str, does: str) -> click.Command:
    @click.command(action, help=f"{does} Ends with 0 if all workers have done so.")
    @with_appcontext
    def act() -> None:
        office = _sharing(operators)
        try:
            command = office.give(action, _who())
            done, workers = office.wait(command, OBEYED_WITHIN)
        except BoardRefused as error:
            raise click.ClickException(f"{error}. {_NO_WORKER}") from None
        click.echo(f"{action}: {done} of {workers} workers have carried it out.")
        raise SystemExit(0 if done == workers else FAILED)

    return act


def _who() -> str:
    """Return who runs this, for the workers' log."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        name = f"user {os.geteuid()}"
    behind = os.environ.get("SUDO_USER")
    return f"{name} ({behind} by sudo)" if behind and behind != name else name


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


# -- a running app's health route, asked over HTTP ---------------------------------------------

#: Seconds to wait for a running app, all of its answer together, and the most bytes to take.
PATIENCE = 5.0
MOST_BYTES = 1_000_000

#: What of an answer is relied on, and its type.
_FIELDS: dict[str, Any] = {
    "healthy": bool,
    "latency_ms": (int, float, type(None)),
    "circuit_state": str,
    "failure_count": int,
    "is_mock": bool,
}


def fetch(address: str, health_path: str, token: str | None) -> Answer:
    """Ask a running app's ``/detailed``.

    :param address: of the app, or of its health routes.
    :param health_path: what to add to an address that has no path.
    :param token: sent as a bearer token, to this address only.
    :returns: its answer; ``{"status": "unreachable", "error": ...}`` where there was none.
    :raises click.BadParameter: for what is no address, or no token.
    """
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked
        _target(address, health_path), headers=_headers(token)
    )
    answers: list[Answer] = []
    # A socket's timeout bounds one read only. Nothing but a thread bounds all of them, and the
    # look-up of the name too.
    asking = threading.Thread(target=lambda: answers.append(_ask(request)), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return answers[0] if answers else _unreachable(request, f"no answer in {PATIENCE:g} s")


def _target(address: str, health_path: str) -> str:
    try:
        parts = urlsplit(address)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https") or not _is_plain(address):
        raise click.BadParameter("expected http://HOST or https://HOST", param_hint="--url")
    if "@" in parts.netloc:
        raise click.BadParameter("no user or password, please: see --token", param_hint="--url")
    base = address.rstrip("/") + ("" if parts.path.strip("/") else health_path)
    return base if base.endswith("/detailed") else base + "/detailed"


def _headers(token: str | None) -> dict[str, str]:
    headers = {"Accept": "application/health+json"}
    if token is not None:
        # The HTTP client would quote a token that it cannot send in its error.
        if not _is_plain(token):
            raise click.BadParameter("expected ASCII without spaces", param_hint="--token")
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _ask(request: urllib.request.Request) -> Answer:
    try:
        try:
            with _opener().open(request, timeout=PATIENCE) as response:
                return _read(request, response)
        except urllib.error.HTTPError as error:
            with error:
                return _read(request, error)
    except OSError as error:
        return _unreachable(request, str(getattr(error, "reason", error)))
    except (HTTPException, ValueError) as error:  # no HTTP, or no host name
        return _unreachable(request, type(error).__name__)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow none: the token is for the address that was given."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect)


def _read(request: urllib.request.Request, response: Any) -> Answer:
    try:
        answer = json.loads(response.read(MOST_BYTES))
    except (ValueError, RecursionError):
        answer = None
    if not _is_answer(answer):
        return _unreachable(
            request, f"it answered {response.status}, and not as a health route does"
        )
    return dict(answer)


def _is_answer(answer: Any) -> bool:
    """Tell whether an answer has what the commands show of it."""
    return (
        isinstance(answer, dict)
        and answer.get("status") in ("pass", "warn", "fail")
        and isinstance(answer.get("process", 0), int)
        and isinstance(answer.get("details", {}), dict)
        and isinstance(redis := answer.get("redis"), dict)
        and all(isinstance(redis.get(name, ...), kind) for name, kind in _FIELDS.items())
    )


def _unreachable(request: urllib.request.Request, why: str) -> Answer:
    return {"status": "unreachable", "error": f"{request.full_url}: {why}"}
