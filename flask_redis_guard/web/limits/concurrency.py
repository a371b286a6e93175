"""``@concurrency_limited``: at most so many at once for each subject."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from werkzeug.wrappers import Response

from flask_redis_guard.client.outcomes import goes_on
from flask_redis_guard.core.rates import Decision, Rate, RateState
from flask_redis_guard.errors import ConfigurationError, RedisUnavailable
from flask_redis_guard.limiting.slots import MAX_CONCURRENT, Lease
from flask_redis_guard.runtime import Runtime, current
from flask_redis_guard.web.limits.declared import (
    Counted,
    check_choice,
    check_scope,
    refusing_errors,
    unavailable,
)
from flask_redis_guard.web.limits.enforce import RequestLimits, announce, current_endpoint, exceeded
from flask_redis_guard.web.limits.headers import Policy
from flask_redis_guard.web.limits.resolve import check_function, function_scope, mark
from flask_redis_guard.web.limits.subjects import Key, check_key, kind_of, subject_of

F = TypeVar("F", bound=Callable[..., Any])

PlacesOnOutage = Literal["deny", "allow"]


def concurrency_limited(
    limit: int,
    *,
    key: Key = None,
    lease: int = 60,
    on_outage: PlacesOnOutage = "deny",
    scope: str | None = None,
) -> Callable[[F], F]:
    """Limit how many calls of a view, or any function, may be going on at once for each subject.

    The place is free again when the call ends (a streamed response: when it has been sent), or
    when its lease expires because the worker died.

    :param limit: places for each subject.
    :param key: who is counted, as for :func:`rate_limited`.
    :param lease: seconds after which a place is free again in any case: longer than a call takes.
    :param on_outage: without Redis: ``"deny"`` (503) or ``"allow"``.
    :param scope: limits with the same scope, number and subject share their places. Without it
        each limit has places of its own.
    :raises ConfigurationError: for an argument that cannot be honoured.
    """
    declared = ConcurrencyLimit(limit, key, lease, on_outage, scope)

    def decorate(function: F) -> F:
        check_function(function)
        own = replace(declared, function_scope=function_scope(function, declared))

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with own.place() as held:
                    return held.keep_while_streaming(await function(*args, **kwargs))
        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with own.place() as held:
                    return held.keep_while_streaming(function(*args, **kwargs))

        mark(function, wrapper, own)
        return wrapper  # type: ignore[return-value]

    return decorate


@dataclass(frozen=True, eq=False)
class ConcurrencyLimit:
    """A declared limit; the arguments are those of ``concurrency_limited``.

    :raises ConfigurationError: naming the argument that cannot be honoured and what it accepts.
    """

    limit: int
    key: Key
    lease: int
    on_outage: PlacesOnOutage
    scope: str | None
    #: The scope that a call of the decorated function is counted in.
    function_scope: str = ""

    def __post_init__(self) -> None:
        if type(self.limit) is not int or not 1 <= self.limit <= MAX_CONCURRENT:
            accepted = f"a whole number from 1 to {MAX_CONCURRENT}"
            raise ConfigurationError("limit", self.limit, accepted)
        try:
            Rate(self.limit, self.lease)
        except ValueError as exc:
            raise ConfigurationError("lease", self.lease, str(exc)) from None
        check_key(self.key)
        check_choice("on_outage", self.on_outage, get_args(PlacesOnOutage))
        check_scope(self.scope)

    def counted(self, scope: str) -> Iterator[Counted]:
        """Return what the command line shows.

        :param scope: what is counted where none was declared.
        """
        if self.scope is not None:
            scope = f"scope:{self.scope}"
        extras = {"lease": self.lease, "on_outage": self.on_outage}
        text = f"{self.limit} at once"
        yield Counted("at once", text, self.key, scope, places=self.limit, extras=extras)

    def spaces(self, default_key: Key) -> set[Hashable]:
        """Return what the places are named by beside the scope."""
        if self.scope is not None:
            return set()
        return {("places", kind_of(self.key or default_key), self.limit)}

    clashes = spaces

    def acquire(self) -> Lease | None:
        """Take a place in the name of the current request.

        :returns: the lease, or ``None`` where Redis is away and ``on_outage`` allows that.
        :raises RateLimitExceeded: if all places are taken.
        :raises RedisUnavailable: if it cannot be told.
        """
        runtime, state = current(), RequestLimits.current()
        scope = None if state is None else state.scope_of(self)
        if self.scope is not None:
            scope = f"scope:{self.scope}"
        with refusing_errors():
            subject = subject_of(self.key, runtime.settings)
        try:
            answer = runtime.places.acquire(
                subject, self.limit, self.lease, scope or self.function_scope
            )
        except RedisUnavailable as error:
            if goes_on(error, self.on_outage):
                return None
            raise unavailable(error)  # noqa: B904 - the same one
        rate = Rate(self.limit, self.lease, name="concurrency")
        if isinstance(answer, Decision):
            policy = Policy(rate, answer.states[0], concurrent=True)
        else:
            policy = Policy(rate, RateState(rate, True, self.limit - answer.held, 0, 0), True)
        if state is not None:
            state.policies[self] = [policy]
        if isinstance(answer, Decision):
            announce(runtime, answer, current_endpoint(), scope or self.function_scope)
            raise exceeded(answer, [policy])
        return answer

    @contextmanager
    def place(self) -> Iterator[_Place]:
        """Hold a place during a call, or until what it streams has been sent."""
        held = _Place(current(), self.acquire())
        try:
            yield held
        finally:
            if not held.streaming:
                held.free()

    def before_view(self) -> None:
        """Take a place for a whole request, where the limit stands above the route."""
        state = RequestLimits.current()
        assert state is not None  # noqa: S101
        state.hold(_Place(current(), self.acquire()))


class _Place:
    """A place held during one call, or one request."""

    def __init__(self, runtime: Runtime, lease: Lease | None) -> None:
        self._runtime = runtime
        self._lease = lease
        self._response: Response | None = None
        self.streaming = False

    def keep_while_streaming(self, result: Any) -> Any:
        """Hold the place until what the call streams has been sent.

        In a request that is its end at the latest, unless the stream is then its response.

        :param result: what it returned: also a bare iterator, or one with a status, is a stream.
        """
        body = result[0] if isinstance(result, tuple) and result else result
        if isinstance(body, Response):
            self.streaming = body.is_streamed
        elif isinstance(body, Iterator):
            self.streaming = True
            held = _HeldStream(body, self.free)
            result = (held, *result[1:]) if isinstance(result, tuple) else held
        if self.streaming:
            state = RequestLimits.current()
            if state is not None:
                state.hold(self)
            elif isinstance(body, Response):
                self.keep_until_sent(body)
        return result

    def keep_until_sent(self, response: Response) -> None:
        """Free the place once a response has been sent: at once, if it is complete."""
        if self._lease is None or self._response is response:
            return
        if not response.is_streamed:
            self.free()
            return
        self._response = response
        response.call_on_close(self.free)
        if response.direct_passthrough:  # the server gets the body itself, and closes only that
            response.response = _closing(response.response, self.free)

    def end(self, *, failed: bool) -> None:
        """The request ends; free the place unless a response is about to be sent."""
        if failed or self._response is None:
            self.free()

    def free(self) -> None:
        """Free the place, if it is not free yet."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._runtime.places.release(lease)


def _closing(body: Any, free: Callable[[], None]) -> Any:
    """Return the body of a response, which frees a place when the server closes it.

    It stays the same object where it can: servers send a file in a shorter way.
    """
    close = getattr(body, "close", None)

    def close_and_free() -> None:
        try:
            if close is not None:
                close()
        finally:
            free()

    try:
        body.close = close_and_free
    except AttributeError:
        return _HeldStream(iter(body), close_and_free)
    return body


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
