"""``@concurrency_limited``: at most so many at once for each subject."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from flask import has_request_context, request
from werkzeug.wrappers import Response

from flask_redis_guard.core.rates import Decision, Rate
from flask_redis_guard.errors import ConfigurationError, RateLimitExceeded, RedisUnavailable
from flask_redis_guard.events import LimitExceeded
from flask_redis_guard.limiting.slots import MAX_CONCURRENT, Lease
from flask_redis_guard.runtime import Runtime, current
from flask_redis_guard.web.limits.declared import refusing_errors, unavailable
from flask_redis_guard.web.limits.resolve import check_function, function_scope, note_above
from flask_redis_guard.web.limits.subjects import Key, check_key, subject_of

logger = logging.getLogger("flask_redis_guard")

F = TypeVar("F", bound=Callable[..., Any])

ON_OUTAGE = ("deny", "allow")


def concurrency_limited(
    limit: int, *, key: Key = None, lease: int = 60, on_outage: str = "deny"
) -> Callable[[F], F]:
    """Limit how many calls of a view, or any function, may be going on at once for each subject.

    The place is free again when the call ends (a streamed response: when it has been sent), or
    when its lease expires because the worker died.

    :param limit: places for each subject.
    :param key: who is counted, as for :func:`rate_limited`.
    :param lease: seconds after which a place is free again in any case: longer than a call takes.
    :param on_outage: without Redis: ``"deny"`` (503) or ``"allow"``.
    :raises ConfigurationError: for an argument that cannot be honoured.
    """
    check_key(key)
    if on_outage not in ON_OUTAGE:
        raise ConfigurationError("on_outage", on_outage, " or ".join(map(repr, ON_OUTAGE)))
    try:
        Rate(limit, lease)
    except ValueError as exc:
        raise ConfigurationError("limit, lease", (limit, lease), str(exc)) from None
    if limit > MAX_CONCURRENT:
        raise ConfigurationError("limit", limit, f"at most {MAX_CONCURRENT}")

    def decorate(function: F) -> F:
        check_function(function)
        scope = function_scope(function)

        @contextmanager
        def place() -> Iterator[_Place]:
            held = _Place(current(), acquire(limit, key, lease, on_outage, scope))
            try:
                yield held
            finally:
                if not held.streaming:
                    held.release()

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with place() as held:
                    return held.keep_while_streaming(await function(*args, **kwargs))
        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with place() as held:
                    return held.keep_while_streaming(function(*args, **kwargs))

        note_above(function, decorate)
        return wrapper  # type: ignore[return-value]

    return decorate


def acquire(limit: int, key: Key, lease: int, on_outage: str, scope: str) -> Lease | None:
    """Take a place in the name of the current request.

    :returns: the lease, or ``None`` where Redis is away and ``on_outage`` allows that.
    :raises RateLimitExceeded: if all places are taken.
    :raises RedisUnavailable: if it cannot be told.
    """
    runtime = current()
    with refusing_errors():
        subject = subject_of(key, runtime.settings.ipv6_prefix)
    try:
        answer = runtime.places.acquire(subject, limit, lease, scope)
    except RedisUnavailable as exc:
        if on_outage == "allow":
            return None
        raise unavailable(exc)  # noqa: B904 - the same one
    if isinstance(answer, Decision):
        endpoint = request.endpoint if has_request_context() else None
        runtime.bus.emit(LimitExceeded(answer, endpoint, scope))
        raise RateLimitExceeded(answer)
    return answer


class _Place:
    """A place held during one call."""

    def __init__(self, runtime: Runtime, lease: Lease | None) -> None:
        self._runtime = runtime
        self._lease = lease
        self.streaming = False

    def keep_while_streaming(self, result: Any) -> Any:
        """Hold the place until what the call streams has been sent.

        :param result: what it returned: also a bare iterator, or one with a status, is a stream.
        """
        body = result[0] if isinstance(result, tuple) and result else result
        if isinstance(body, Response):
            if body.is_streamed:
                self.streaming = True
                body.call_on_close(self.release)
            return result
        if not isinstance(body, Iterator):
            return result
        self.streaming = True
        held = _HeldStream(body, self.release)
        return (held, *result[1:]) if isinstance(result, tuple) else held

    def release(self) -> None:
        """Free the place, now or when Redis answers again."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._runtime.places.release(lease)


class _HeldStream(Iterator[Any]):
    """An iterator that frees a place when it ends, fails or is closed."""

    def __init__(self, items: Iterator[Any], release: Callable[[], None]) -> None:
        self._items = items
        self._release = release

    def __next__(self) -> Any:
        try:
            return next(self._items)
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Close the iterator, as a WSGI server does at the end of a response."""
        try:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
        finally:
            self._release()
