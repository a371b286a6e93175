"""The exception tree.

What the guard raises at run time is at once a :mod:`redis` exception, so that existing
``except redis.ConnectionError`` code keeps working, and an HTTP exception, so that a forgotten one
is answered with 503 (or 429) and not with 500.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from traceback import walk_tb
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import redis
from click import ClickException
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, ServiceUnavailable, TooManyRequests

if TYPE_CHECKING:
    from flask_redis_guard.core.rates import Decision

#: The registry of HTTP problem types (RFC 9457), which both types below belong to.
PROBLEM_TYPES = "https://iana.org/assignments/http-problem-types"


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


class _Problem(HTTPException):
    """Answer as ``application/problem+json`` (RFC 9457) unless the app's own handler decides."""

    problem: Mapping[str, Any]

    def get_body(self, environ: Any = None, scope: Any = None) -> str:
        return json.dumps({**self.problem, "status": self.code, "detail": self.description}) + "\n"

    def get_headers(self, environ: Any = None, scope: Any = None) -> list[tuple[str, str]]:
        inherited = super().get_headers(environ, scope)
        own = [("Content-Type", "application/problem+json"), ("Cache-Control", "no-store")]
        return own + [pair for pair in inherited if pair[0].lower() != "content-type"]


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
    retry_after: int
    #: What the answer takes over of a complete response that it replaces, if it does.
    kept_headers: Headers | None = None

    def __init__(self, operation: str, reason: str, retry_after: float = 1) -> None:
        self.operation = operation
        self.reason = reason
        super().__init__("A service that this request depends on is temporarily unavailable.")
        self.wait(retry_after)

    def wait(self, seconds: float) -> None:
        """Say after how many seconds another try can make sense."""
        self.retry_after = max(1, math.ceil(seconds))
        self.args = (self.operation, self.reason, self.retry_after)

    def __str__(self) -> str:
        return f"Redis is unavailable for {self.operation} ({self.reason})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class CircuitOpen(RedisUnavailable):
    """The breaker refused the call; no socket was touched."""


class RedisTimeout(RedisUnavailable, redis.TimeoutError):
    """The operation's deadline passed. Whether Redis carried it out is unknown."""


class RateLimitExceeded(GuardError, _Problem, TooManyRequests):
    """The caller is over a limit; answered with 429.

    :param decision: the limiter's decision.
    """

    problem: Mapping[str, Any] = MappingProxyType(
        {
            "type": f"{PROBLEM_TYPES}#quota-exceeded",
            "title": "Request cannot be satisfied as assigned quota has been exceeded",
        }
    )
    retry_after: int

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        refusing = [state.rate for state in decision.states if not state.allowed] or [decision.rate]
        names = [rate.name or str(rate) for rate in refusing]
        self.problem = {**self.problem, "violated-policies": names}
        super().__init__(
            "Too many requests: try again later.",
            retry_after=max(1, math.ceil(decision.retry_after)),
        )
        self.args = (decision,)

    def __str__(self) -> str:
        return f"Rate limit exceeded: {self.decision.rate}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args
