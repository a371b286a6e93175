"""What the audit found: one verdict for each request and fault, and what to do about the bad."""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Literal, get_args

from flask_redis_guard.config import HIDDEN
from flask_redis_guard.errors import GuardError
from flask_redis_guard.testing.examples import Skipped
from flask_redis_guard.testing.faults import Kind

#: ``refused``: properly, with 503, 429, 401, 403 or the like. ``served``: without Redis, or with
#: what it still gave. ``hang``: no answer within the time. ``500``: an error of the app.
#: ``bypass``: a request over its limit was served, or a login worked that cannot have.
Verdict = Literal["refused", "served", "hang", "500", "bypass"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
#: Those that fail an audit unless told otherwise.
BAD: Final[tuple[Verdict, ...]] = ("hang", "500", "bypass")

#: How a request is refused.
REFUSALS: Final = frozenset({401, 403, 429, 502, 503, 504})

_PACKAGES: Final = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})
_STANDARD: Final = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_OURS: Final = str(Path(__file__).resolve().parent)

#: A login in a URL, which the text of an app's exception may have.
_LOGIN: Final = re.compile(r"://[^/\s]*@")

_ADVICE: Final[dict[tuple[str, str], str]] = {
    ("bypass", "flask_limiter"): (
        "Flask-Limiter lets everybody pass while it cannot count: set swallow_errors=False (and "
        "in_memory_fallback_enabled=False), and answer RedisError with a 503."
    ),
    ("bypass", "login"): (
        "The session cannot have been stored: answer 503 instead of a cookie that is worth nothing."
    ),
    ("bypass", "flask_redis_guard"): (
        "This limit has on_outage=. If that is meant, accept it in an example of this request: "
        '"accept": ["bypass"].'
    ),
    ("bypass", ""): "Refuse with a 503 where the limit cannot be counted.",
    ("hang", "flask_session"): (
        "Give SESSION_REDIS a client with socket_timeout=0.5, socket_connect_timeout=0.5 and no "
        "retries, or keep sessions with GuardedSessionInterface."
    ),
    ("hang", "flask_caching"): (
        "Set CACHE_OPTIONS = {'socket_timeout': 0.5, 'socket_connect_timeout': 0.5}."
    ),
    ("hang", "limits"): (
        "Set RATELIMIT_STORAGE_OPTIONS = {'socket_timeout': 0.5, 'socket_connect_timeout': 0.5}."
    ),
    ("hang", "celery"): (
        "Set broker_transport_options = {'socket_timeout': 0.5, 'socket_connect_timeout': 0.5} "
        "and task_publish_retry_policy = {'max_retries': 1, 'interval_start': 0}."
    ),
    ("hang", ""): (
        "Give the client socket_timeout=0.5, socket_connect_timeout=0.5 and "
        "retry=Retry(NoBackoff(), 0), or use guard.client."
    ),
    ("500", "flask_session"): (
        "Errors of Flask-Session reach handlers of 500 only: have @app.errorhandler(500) answer "
        "503 where error.original_exception is a redis.RedisError, or keep sessions with "
        "GuardedSessionInterface."
    ),
    ("500", "celery"): (
        "Answer what Celery makes of errors of Redis with a 503: "
        "@app.errorhandler(kombu.exceptions.OperationalError)."
    ),
    ("500", "view"): (
        "The view answers so itself: 503 with a Retry-After says that it is not the app's fault "
        "and does not last."
    ),
    ("500", ""): (
        "Answer errors of Redis with a 503: @app.errorhandler(redis.RedisError), or use "
        "guard.client, which does it by itself."
    ),
}


@dataclass(frozen=True)
class Cause:
    """Where in the code a request stopped.

    :param what: the exception, or nothing for a request that hangs.
    :param where: ``file:line in function`` of the app.
    :param library: the extension in between, if there is one.
    """

    what: str = ""
    where: str = ""
    library: str = ""

    def __str__(self) -> str:
        parts = [self.what, f"at {self.where}" if self.where else ""]
        parts.append(f"through {self.library}" if self.library else "")
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class AuditFinding:
    """How one request was answered under one fault.

    :param request: its title.
    :param fault: the fault.
    :param verdict: what that means.
    :param status: of the response; ``None`` without one.
    :param seconds: until the response, or until it was given up.
    :param healthy_status: of the response with a healthy Redis.
    :param uses_redis: whether it asks Redis for anything.
    :param note: what else there is to say.
    :param cause: where it stopped.
    :param accepted: whether the example accepts the verdict.
    """

    request: str
    fault: Kind
    verdict: Verdict
    status: int | None
    seconds: float
    healthy_status: int
    uses_redis: bool
    note: str = ""
    cause: Cause | None = None
    accepted: bool = False

    @property
    def advice(self) -> str:
        """What to do about it; empty where nothing is to be done."""
        if self.verdict not in BAD:
            return ""
        library = self.cause.library if self.cause else ""
        key = (self.verdict, library)
        return _ADVICE.get(key) or _ADVICE[self.verdict, ""]


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    :param app: the app's name.
    :param faults: those that were made, in order.
    :param findings: one for each request and fault.
    :param skipped: what was not judged, and why.
    :param seconds: that the audit took.
    :param patience: seconds after which a request counts as hanging.
    :param notes: what to know about the audit itself.
    """

    app: str
    faults: tuple[Kind, ...]
    findings: tuple[AuditFinding, ...]
    skipped: tuple[Skipped, ...]
    seconds: float
    patience: float
    notes: tuple[str, ...] = field(default=())

    def bad(self, fail_on: Iterable[str] = BAD) -> list[AuditFinding]:
        """Return the findings that fail the audit.

        :param fail_on: the verdicts that do.
        :raises GuardError: if there is no such verdict.
        """
        wanted = tuple(fail_on)
        if unknown := [one for one in wanted if one not in VERDICTS]:
            raise GuardError(f"{unknown[0]!r} is no verdict; there are {', '.join(VERDICTS)}")
        return [one for one in self.findings if one.verdict in wanted and not one.accepted]

    @property
    def passed(self) -> bool:
        """Whether something was judged, and nothing hangs, errs or bypasses."""
        return bool(self.findings) and not self.bad()

    def as_dict(self, fail_on: Iterable[str] = BAD) -> dict[str, Any]:
        """Return all of it as what JSON can say.

        :param fail_on: the verdicts that fail.
        """
        findings = [{**asdict(one), "advice": one.advice} for one in self.findings]
        passed = bool(self.findings) and not self.bad(fail_on)
        return {**asdict(self), "findings": findings, "passed": passed}

    def as_json(self, fail_on: Iterable[str] = BAD) -> str:
        """Return it as JSON.

        :param fail_on: the verdicts that fail.
        """
        return json.dumps(self.as_dict(fail_on), indent=2)

    def __str__(self) -> str:
        from flask_redis_guard.testing.rendering import as_table

        return as_table(self)


def cause_of(error: BaseException, root: str) -> Cause:
    """Return where an exception came from.

    :param error: what the app raised.
    :param root: the directory of the app's own code.
    """
    text = _LOGIN.sub(f"://{HIDDEN}@", next(iter(str(error).splitlines()), ""))[:120]
    what = f"{type(error).__name__}: {text}".rstrip(": .")
    return Cause(what, *_locate(_lines(error.__traceback__), root))


def cause_of_hang(frame: FrameType | None, root: str) -> Cause:
    """Return where a thread waits.

    :param frame: its innermost frame.
    :param root: the directory of the app's own code.
    """
    lines: list[tuple[str, int, str]] = []
    while frame is not None:
        lines.insert(0, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return Cause("", *_locate(lines, root))


def _lines(trace: TracebackType | None) -> list[tuple[str, int, str]]:
    lines = []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append((code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    return lines


def _locate(lines: list[tuple[str, int, str]], root: str) -> tuple[str, str]:
    """Return the app's innermost line, and the extension below it that calls Redis."""
    where, library = "", ""
    is_installed = _package_of(root) is not None
    for name, line, function in lines:
        is_own = is_installed and name.startswith(root)
        package = None if is_own else _package_of(name)
        if package is None:
            where, library = f"{_short(name)}:{line} in {function}()", ""
        elif package in _EXTENSIONS:
            library = package
    return where, _EXTENSIONS.get(library, library)


#: Packages that call Redis for an app, and how the advice calls them.
_EXTENSIONS: Final = {
    "flask_session": "flask_session",
    "flask_limiter": "flask_limiter",
    "limits": "limits",
    "flask_caching": "flask_caching",
    "cachelib": "flask_caching",
    "kombu": "celery",
    "celery": "celery",
}


def _package_of(filename: str) -> str | None:
    """Return the installed package that a file belongs to; ``None`` for the app's own files."""
    path = str(Path(filename))
    if path.startswith(_OURS):
        return "standard library"  # what calls the app
    if path.startswith(str(Path(_OURS).parent)):
        return "flask_redis_guard"
    for root in _PACKAGES:
        if root and path.startswith(root):
            return Path(path).relative_to(root).parts[0].removesuffix(".py")
    if path.startswith("<") or any(root and path.startswith(root) for root in _STANDARD):
        return "standard library"
    return None


def _short(filename: str) -> str:
    path = Path(filename)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(Path(*path.parts[-2:]))
