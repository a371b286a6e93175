"""What connections that stay open are limited by, whatever library serves them."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

from flask_redis_guard.core.rates import Decision, Rate
from flask_redis_guard.errors import ConfigurationError, RateLimitExceeded, RedisUnavailable
from flask_redis_guard.events import RequestRefused
from flask_redis_guard.limiting.compiled import Terms
from flask_redis_guard.limiting.keys import Subject
from flask_redis_guard.limiting.slots import MAX_CONCURRENT, Place, Refusal
from flask_redis_guard.runtime import Runtime
from flask_redis_guard.web.limits.declared import (
    UNAVAILABLE,
    Counted,
    Limit,
    OnOutage,
    Rates,
    refusing_errors,
    unavailable,
)
from flask_redis_guard.web.limits.enforce import (
    Charged,
    announce,
    refuse,
    without_redis,
    work_out,
)
from flask_redis_guard.web.limits.resolve import check_function
from flask_redis_guard.web.limits.subjects import Key, kind_of, subject_of

logger = logging.getLogger("flask_redis_guard")

#: Close codes of RFC 6455, section 7.4.1, and of the IANA registry that it set up.
NORMAL, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR, TRY_AGAIN_LATER = 1000, 1008, 1009, 1011, 1013


@dataclass(frozen=True, eq=False, kw_only=True)
class ConnectionPolicy:
    """The limits of connections and their messages.

    :param connections: rates of new connections, such as ``"50/minute"``.
    :param concurrent: connections of a subject at once.
    :param messages: rates of messages, over all connections of a subject.
    :param max_message_size: bytes of one message.
    :param key: who is counted, as for :func:`~flask_redis_guard.rate_limited`; known when the
        connection is opened.
    :param on_outage: without Redis: ``"deny"``, ``"local"`` or ``"allow"``.
    :param shadow: count and announce, but refuse nothing.
    :param scope: handlers with the same scope, limits and subject share their counts.
    :param lease: seconds after which the places of a worker that died are free again. A living
        connection renews its place four times as often, and is closed before it would expire.
    :param defer: check after the upgrade, for a key that needs what other hooks find out.
    :raises ConfigurationError: naming the argument that cannot be honoured and what it accepts.
    """

    connections: InitVar[Rates | None] = None
    concurrent: int | None = None
    messages: InitVar[Rates | None] = None
    max_message_size: int | None = None
    key: Key = None
    on_outage: OnOutage = "deny"
    shadow: bool = False
    scope: str | None = None
    lease: int = 60
    defer: bool = False
    connection_limit: Limit | None = field(init=False)
    message_limit: Limit | None = field(init=False)

    def __post_init__(self, connections: Rates | None, messages: Rates | None) -> None:
        given = (connections, self.concurrent, messages, self.max_message_size)
        if all(limit is None for limit in given):
            names = "connections, concurrent, messages, max_message_size"
            raise ConfigurationError(names, None, "at least one of them")
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
            limit = replace(limit, kind=f"{name.partition('_')[0]}s")
            object.__setattr__(self, name, None if rates is None else limit)
        concurrent, size = self.concurrent, self.max_message_size
        if concurrent is not None and (
            type(concurrent) is not int or not 1 <= concurrent <= MAX_CONCURRENT
        ):
            accepted = f"a whole number from 1 to {MAX_CONCURRENT}, or None"
            raise ConfigurationError("concurrent", concurrent, accepted)
        try:
            Rate(1, self.lease)
        except ValueError:
            accepted = "a whole number of seconds"
            raise ConfigurationError("lease", self.lease, accepted) from None
        if size is not None and (type(size) is not int or size < 1):
            raise ConfigurationError("max_message_size", size, "bytes, or None")

    def counted(self, scope: str) -> Iterator[Counted]:
        """Return what the command line shows; new connections have a limit of their own.

        :param scope: what is counted where none was declared.
        """
        own = scope if self.scope is None else f"scope:{self.scope}"
        extras = {"on_outage": self.on_outage, "shadow": self.shadow}
        if self.concurrent is not None:
            text = f"{self.concurrent} at once"
            held = {"lease": self.lease, **extras}
            yield Counted("at once", text, self.key, own, places=self.concurrent, extras=held)
        if self.message_limit is not None:
            yield from (
                counted._replace(scope=f"messages:{counted.scope}")
                for counted in self.message_limit.counted(scope)
            )
        if self.max_message_size is not None:
            yield Counted("message size", f"{self.max_message_size} bytes", self.key, "")

    def spaces(self, default_key: Key) -> set[Hashable]:
        """Return what the counters are named by beside the scope."""
        if self.scope is not None:
            return set()
        kind = kind_of(self.key or default_key)
        found: set[Hashable] = set()
        if self.message_limit is not None:
            found |= {("messages", space) for space in self.message_limit.spaces(default_key)}
        if self.concurrent is not None:
            found.add(("places", kind, self.concurrent))
        return found

    clashes = spaces

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
            subject = subject_of(self.key, runtime.settings)
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
            if self.shadow:
                return None
            raise unavailable(error)  # noqa: B904 - the same one
        if refused is None:
            return place
        announce(runtime, refused, endpoint, place.scope, shadow=self.shadow)
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
        self._subjects: list[Subject] = []
        self._judge: Callable[[Sequence[Subject]], list[Decision]] | None = None
        #: Bytes.
        self.max_size: int | None = None

    def add(self, policy: ConnectionPolicy, scope: str) -> None:
        """Take over the limits of a decorator, for the subject of the current request.

        :param scope: the scope where none was given.
        :raises RedisUnavailable: if a function of the user fails.
        """
        if policy.message_limit is None:
            return
        for limit, charge in work_out(self._runtime, [(policy.message_limit, scope)]):
            # Messages never share a count with the connections of the same scope.
            named = replace(charge, scope=f"messages:{charge.scope}")
            self._charged.append((limit, named))
        charges = [charge for _, charge in self._charged]
        self._subjects = [charge.subject for charge in charges]
        terms = [Terms(one.rates, one.scope, shadow=one.shadow) for one in charges]
        self._judge = self._runtime.limiter.compile(terms).judge if terms else None

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
        if self._judge is None:
            return
        try:
            decisions = self._judge(self._subjects)
        except RedisUnavailable as error:
            judged = without_redis(self._runtime, self._charged, error)
        else:
            for decision in decisions:
                if not decision.allowed:
                    break
            else:
                return
            pairs = zip(self._charged, decisions, strict=True)
            judged = [(limit, charge, decision) for (limit, charge), decision in pairs]
        refuse(self._runtime, judged, self._endpoint)


def announce_lost(runtime: Runtime, place: Place, error: Refusal, endpoint: str | None) -> None:
    """Send the signal of a connection that loses its place."""
    if isinstance(error, RateLimitExceeded):
        announce(runtime, error.decision, endpoint, place.scope)
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


def check_handler(function: Any, place: str) -> None:
    """Check that a decorator was given a handler.

    :param place: where it has to stand.
    :raises ConfigurationError: for anything that decorating would leave without a limit.
    """
    check_function(function)
    if inspect.iscoroutinefunction(function):
        accepted = f"a handler that is not async. It stands {place}, which awaits none"
        raise ConfigurationError("function", function, accepted)


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
