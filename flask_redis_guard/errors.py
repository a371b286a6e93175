"""The exception tree.

What the guard raises at run time is at once a :mod:`redis` exception, so that existing
``except redis.ConnectionError`` code keeps working, and an HTTP exception, so that a forgotten one
is answered with 503 (or 429) and not with 500.
"""

from __future__ import annotations

import html
import json
import math
import random
from collections.abc import Mapping, Sequence
from traceback import walk_tb
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import redis
from click import ClickException
from werkzeug.datastructures import Headers, MIMEAccept
from werkzeug.exceptions import HTTPException, ServiceUnavailable, TooManyRequests
from werkzeug.http import parse_accept_header

if TYPE_CHECKING:
    from flask_redis_guard.core.rates import Decision

#: The registry of HTTP problem types (RFC 9457), which both types below belong to.
PROBLEM_TYPES = "https://iana.org/assignments/http-problem-types"

#: Not that of the application, whose numbers stay the same for a seed, nor of a parent process.
_random = random.SystemRandom()


class GuardError(Exception):
    """The base of everything this package raises on purpose."""


class ConfigurationError(GuardError, ClickException, ValueError):
    """A setting that cannot be honoured; raised by ``init_app`` or by a decorator.

    The ``flask`` command shows it as one line that names the place, instead of a traceback.

    :param key: the setting or argument.
    :param value: what it was, already without secrets.
    :param accepted: what would have been accepted.
    """

    def __init__(self, key: str, value: object, accepted: str) -> None:
        ClickException.__init__(self, accepted)
        self.args = (key, value, accepted)
        self.key, self.value, self.accepted = key, value, accepted

    def __str__(self) -> str:
        return f"{self.key} is {self.value!r}; accepted: {self.accepted}"

    def format_message(self) -> str:
        """Return the line for the command line: what is wrong, and where it was said."""
        place = ""
        for frame, line in walk_tb(self.__traceback__):
            if not frame.f_globals.get("__name__", "").startswith("flask_redis_guard."):
                place = f" ({frame.f_code.co_filename}, line {line})"
        return f"{self}{place}"


class SessionTooLarge(GuardError, ValueError):
    """A session that would take more than ``REDIS_GUARD_SESSION_MAX_BYTES``; it was not saved.

    :param limit: the limit in bytes.
    :param key: the session key with the largest value, where that is known.
    :param size: the bytes that it takes.
    """

    def __init__(self, limit: int, key: str | None = None, size: int | None = None) -> None:
        super().__init__(limit, key, size)
        self.limit, self.key, self.size = limit, key, size

    def __str__(self) -> str:
        largest = "" if self.key is None else f"; the largest value: {self.key}, {self.size} bytes"
        return (
            f"The session was not saved: it would take more than {self.limit} bytes{largest}. "
            "Keep in it what must be there, or raise REDIS_GUARD_SESSION_MAX_BYTES"
        )


#: Without a style: a page that is read on every screen, in the browser's light or dark colours.
_HEAD = (
    '<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n'
)


class _Problem(HTTPException):
    """Answer as ``application/problem+json`` (RFC 9457), or as a page to whom prefers HTML.

    An app's own handler decides otherwise.
    """

    problem: Mapping[str, Any]

    def get_body(self, environ: Any = None, scope: Any = None) -> str:
        if prefers_html(environ):
            title, text = html.escape(self.name), html.escape(self.description or "")
            again = f"<p>Try again in {self.retry_after_header()} s.</p>"
            return (
                f'<!doctype html>\n<html lang="en">\n{_HEAD}<title>{self.code} {title}</title>\n'
                f"<h1>{title}</h1>\n<p>{text}</p>\n{again}\n</html>\n"
            )
        return json.dumps({**self.problem, "status": self.code, "detail": self.description}) + "\n"

    def get_headers(self, environ: Any = None, scope: Any = None) -> list[tuple[str, str]]:
        kind = "text/html; charset=utf-8" if prefers_html(environ) else "application/problem+json"
        own = [("Content-Type", kind), ("Cache-Control", "no-store")]  # needs no Vary then
        return [*own, ("Retry-After", self.retry_after_header())]

    def retry_after_header(self) -> str:
        """Return ``Retry-After``: seconds."""
        raise NotImplementedError


def prefers_html(environ: Any) -> bool:
    """Tell whether a client would rather have a page than JSON.

    :param environ: the WSGI environment of its request, if there is one.
    """
    accept = "" if environ is None else environ.get("HTTP_ACCEPT", "")
    if "text/html" not in accept:
        return False
    offered = ("application/problem+json", "application/json", "text/html")
    return parse_accept_header(accept, MIMEAccept).best_match(offered) == "text/html"


class RedisUnavailable(GuardError, _Problem, ServiceUnavailable, redis.ConnectionError):
    """Redis could not be asked, or did not answer; the caller is refused with 503.

    :param operation: what was to be done: a command's name, never its arguments.
    :param reason: a short constant such as ``timeout``; see the documentation's table.
    :param retry_after: seconds until another try can make sense; rounded up, at least 1.
    """

    problem: Mapping[str, Any] = MappingProxyType(
        {
            "type": f"{PROBLEM_TYPES}#temporary-reduced-capacity",
            "title": "Request cannot be satisfied due to temporary server capacity constraints",
        }
    )
    description = "A service that this request depends on is temporarily unavailable."
    retry_after: int
    #: What the answer takes over of a complete response that it replaces, if it does.
    kept_headers: Headers | None = None
    _share: float | None = None

    def __init__(self, operation: str, reason: str, retry_after: float = 1) -> None:
        self.operation = operation
        self.reason = reason
        # All that the constructors of the bases would do: an open breaker refuses in microseconds.
        self.response = None
        self.retry_after = seconds = max(1, math.ceil(retry_after))
        self.args = (operation, reason, seconds)

    def wait(self, seconds: float) -> None:
        """Say after how many seconds another try can make sense."""
        self.retry_after = max(1, math.ceil(seconds))
        self.args = (self.operation, self.reason, self.retry_after)

    def retry_after_header(self) -> str:
        """Return ``Retry-After``: up to a fifth more, so that clients do not return in step."""
        return str(self.retry_after + int(self._jitter() * (self.retry_after // 5 + 1)))

    def _jitter(self) -> float:
        share = self._share
        if share is None:
            share = self._share = _random.random()
        return share

    def __str__(self) -> str:
        return f"Redis is unavailable for {self.operation} ({self.reason})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {"_share": self._jitter()}


class CircuitOpen(RedisUnavailable):
    """The breaker refused the call; no socket was touched."""


class RedisTimeout(RedisUnavailable, redis.TimeoutError):
    """The operation's deadline passed, or its circuit opened while it waited for an answer.

    Whether Redis carried it out is unknown.
    """


def _inherit(kind: type[RedisUnavailable], redis_kind: type[redis.RedisError]) -> None:
    """Give a class what the constructor of redis-py's class gives each object."""
    for name, value in vars(redis_kind()).items():
        setattr(kind, name, value)


_inherit(RedisUnavailable, redis.ConnectionError)
_inherit(RedisTimeout, redis.TimeoutError)


class RateLimitExceeded(GuardError, _Problem, TooManyRequests):
    """The caller is over a limit; answered with 429.

    :param decision: the limiter's decision.
    :param policies: the names of the policies that refuse, as ``RateLimit-Policy`` has them.
    """

    problem: Mapping[str, Any] = MappingProxyType(
        {
            "type": f"{PROBLEM_TYPES}#quota-exceeded",
            "title": "Request cannot be satisfied as assigned quota has been exceeded",
        }
    )

    retry_after: int

    def __init__(self, decision: Decision, policies: Sequence[str] = ()) -> None:
        self.decision = decision
        if not policies:
            refusing = [state.rate for state in decision.states if not state.allowed]
            policies = [rate.name or str(rate) for rate in refusing or [decision.rate]]
        self.problem = {**self.problem, "violated-policies": list(policies)}
        super().__init__("Too many requests: try again later.")
        self.retry_after = max(1, math.ceil(decision.retry_after))
        self.args = (decision, tuple(policies))

    def retry_after_header(self) -> str:
        """Return ``Retry-After``: never earlier than there is room."""
        return str(self.retry_after)

    def __str__(self) -> str:
        return f"Rate limit exceeded: {self.decision.rate}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args
