"""What connections that stay open are limited by, whatever library serves them."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import InitVar, dataclass, field, replace

from flask_redis_guard.core.rates import Rate
from flask_redis_guard.errors import ConfigurationError, RateLimitExceeded, RedisUnavailable
from flask_redis_guard.events import LimitExceeded, RequestRefused
from flask_redis_guard.limiting.places import Place, Refusal
from flask_redis_guard.limiting.slots import MAX_CONCURRENT
from flask_redis_guard.runtime import Runtime
from flask_redis_guard.web.limits.declared import (
    UNAVAILABLE,
    Limit,
    Rates,
    refusing_errors,
    unavailable,
)
from flask_redis_guard.web.limits.enforce import Charged, judge, refuse, work_out
from flask_redis_guard.web.limits.subjects import Key, subject_of

logger = logging.getLogger("flask_redis_guard")

#: Close codes of RFC 6455, section 7.4.1, and of the IANA registry that it set up.
NORMAL, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR, TRY_AGAIN_LATER = 1000, 1008, 1009, 1011, 1013


@dataclass(frozen=True, eq=False, kw_only=True)
class ConnectionPolicy:
    """The limits of one decorator; the arguments are those of ``websocket_limited``.

    :raises ConfigurationError: naming the argument that cannot be honoured and what it accepts.
    """

    connections: InitVar[Rates | None]
    concurrent: int | None
    messages: InitVar[Rates | None]
    max_message_size: int | None
    key: Key
    on_outage: str
    shadow: bool
    scope: str | None
    lease: int
    defer: bool = False
    connection_limit: Limit | None = field(init=False)
    message_limit: Limit | None = field(init=False)

    def __post_init__(self, connections: Rates | None, messages: Rates | None) -> None:
        for name, rates in (("connection_limit", connections), ("message_limit", messages)):
            # Declared in any case, so that key and on_outage are checked without any rate too.
            limit = Limit.declare(
                "1/minute" if rates is None else rates,
                key=self.key,
                on_outage=self.on_outage,
                shadow=self.shadow,
                scope=self.scope,
                defer=self.defer,
            )
            object.__setattr__(self, name, None if rates is None else limit)
        concurrent, size = self.concurrent, self.max_message_size
        if concurrent is not None:
            if type(concurrent) is not int or not 1 <= concurrent <= MAX_CONCURRENT:
                accepted = f"a whole number from 1 to {MAX_CONCURRENT}, or None"
                raise ConfigurationError("concurrent", concurrent, accepted)
            try:
                Rate(concurrent, self.lease)
            except ValueError:
                accepted = "a whole number of seconds"
                raise ConfigurationError("lease", self.lease, accepted) from None
        if size is not None and (type(size) is not int or size < 1):
            raise ConfigurationError("max_message_size", size, "bytes, or None")

    def take_place(self, runtime: Runtime, scope: str, endpoint: str | None) -> Place | None:
        """Take one of the places of the current request's subject, if they are limited.

        :param scope: the scope where none was given.
        :param endpoint: what the signals name.
        :raises RateLimitExceeded: if all are taken.
        :raises RedisUnavailable: if it cannot be told.
        """
        if self.concurrent is None:
            return None
        with refusing_errors():
            subject = subject_of(self.key, runtime.settings.ipv6_prefix)
        place = Place(
            subject,
            self.concurrent,
            self.lease,
            scope if self.scope is None else f"scope:{self.scope}",
            on_outage="allow" if self.shadow else self.on_outage,
        )
        try:
            refused = runtime.places.take(place)
        except RedisUnavailable as error:
            raise unavailable(error)  # noqa: B904 - the same one
        if refused is None:
            return place
        runtime.bus.emit(LimitExceeded(refused, endpoint, place.scope, self.shadow))
        if self.shadow:
            return None
        raise RateLimitExceeded(refused)


class MessageLimits:
    """The limits on the messages of one connection, all judged in one go.

    :param runtime: what belongs to the app.
    :param endpoint: what the signals name.
    """

    def __init__(self, runtime: Runtime, endpoint: str | None) -> None:
        self._runtime = runtime
        self._endpoint = endpoint
        self._charged: list[Charged] = []
        #: Bytes.
        self.max_size: int | None = None

    def add(self, policy: ConnectionPolicy, scope: str) -> None:
        """Take over the limits of a decorator, for the subject of the current request.

        :param scope: the scope where none was given.
        :raises RedisUnavailable: if a function of the user fails.
        """
        if policy.message_limit is not None:
            for limit, charge in work_out(self._runtime, [(policy.message_limit, scope)]):
                # Messages never share a count with the connections of the same scope.
                named = replace(charge, scope=f"messages:{charge.scope}")
                self._charged.append((limit, named))

    def limit_size(self, policy: ConnectionPolicy) -> None:
        """Take over the greatest size of a message from a decorator."""
        size = policy.max_message_size
        if size is not None and not policy.shadow:
            self.max_size = min(self.max_size or size, size)

    def check(self) -> None:
        """Count one message.

        :raises RateLimitExceeded: if it is one too many.
        :raises RedisUnavailable: if it cannot be told.
        """
        refuse(self._runtime, judge(self._runtime, self._charged), self._endpoint)


def announce_lost(runtime: Runtime, place: Place, error: Refusal, endpoint: str | None) -> None:
    """Send the signal of a connection that loses its place."""
    if isinstance(error, RateLimitExceeded):
        runtime.bus.emit(LimitExceeded(error.decision, endpoint, place.scope))
    else:
        announce_outage(runtime, error, endpoint)


def announce_outage(runtime: Runtime, error: Refusal, endpoint: str | None) -> None:
    """Send ``request_refused`` where Redis's absence closes a connection."""
    if isinstance(error, RedisUnavailable):
        runtime.bus.emit(RequestRefused(error, endpoint))


def closing(error: Refusal) -> tuple[int, str]:
    """Return the close code and the reason that the client is told."""
    if isinstance(error, RedisUnavailable):
        return TRY_AGAIN_LATER, UNAVAILABLE
    return POLICY_VIOLATION, f"Rate limit exceeded: try again in {error.retry_after} s"


def warn_of_early_upgrade(runtime: Runtime) -> None:
    """Warn once where a library may upgrade connections before the app is asked."""
    if "gevent-websocket" in runtime.warned:
        return
    runtime.warned.add("gevent-websocket")
    if importlib.util.find_spec("geventwebsocket") is not None:
        logger.warning(
            "gevent-websocket is installed: its handler upgrades a connection before the app is "
            "asked, so that a refused client sees a closed WebSocket and no 429 or 503. Uninstall "
            "it: flask-sock and Flask-SocketIO (async_mode='threading') work under gevent without."
        )
