"""``@websocket_limited``: connections and messages of flask-sock handlers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Response, request

from flask_redis_guard.errors import ConfigurationError
from flask_redis_guard.limiting.slots import Place
from flask_redis_guard.runtime import current
from flask_redis_guard.web.limits.declared import OnOutage, Rates
from flask_redis_guard.web.limits.enforce import RequestLimits, enforce
from flask_redis_guard.web.limits.resolve import Routes, mark
from flask_redis_guard.web.limits.subjects import Key
from flask_redis_guard.web.websockets.pacing import PacedSocket
from flask_redis_guard.web.websockets.policy import (
    ConnectionPolicy,
    check_handler,
    warn_of_early_upgrade,
)

F = TypeVar("F", bound=Callable[..., Any])


def websocket_limited(
    without_parentheses: object = None,
    /,
    *,
    connections: Rates | None = None,
    concurrent: int | None = None,
    messages: Rates | None = None,
    max_message_size: int | None = None,
    key: Key = None,
    on_outage: OnOutage = "deny",
    shadow: bool = False,
    scope: str | None = None,
    lease: int = 60,
    defer: bool = False,
) -> Callable[[F], F]:
    """Limit the connections and messages of a flask-sock handler; stands below ``@sock.route``.

    Connections are checked before the upgrade, together with the limits of the app and the
    blueprint: a refused client sees 429, or 503 without Redis. A message over the limit is not
    delivered; the connection is closed with 1008, with 1013 without Redis, with 1009 for a message
    that is too big. The decorator can stand several times on a handler, for several subjects.

    :param connections: rates of new connections, such as ``"50/minute"``.
    :param concurrent: connections of a subject at once.
    :param messages: rates of messages, over all connections of a subject.
    :param max_message_size: bytes of one message.
    :param key: who is counted, as for :func:`rate_limited`; known when the connection is opened.
    :param on_outage: without Redis: ``"deny"``, ``"local"`` or ``"allow"``.
    :param shadow: count and announce, but refuse nothing.
    :param scope: handlers with the same scope, limits and subject share their counts.
    :param lease: seconds after which the places of a worker that died are free again. A living
        connection renews its place four times as often, and is closed before it would expire.
    :param defer: check after the upgrade, for a key that needs what other hooks find out.
    :raises ConfigurationError: for an argument that cannot be honoured.
    """
    if without_parentheses is not None:
        accepted = "limits in parentheses: @websocket_limited(messages='60/minute')"
        raise ConfigurationError("websocket_limited", without_parentheses, accepted)
    policy = ConnectionPolicy(
        connections=connections,
        concurrent=concurrent,
        messages=messages,
        max_message_size=max_message_size,
        key=key,
        on_outage=on_outage,
        shadow=shadow,
        scope=scope,
        lease=lease,
        defer=defer,
    )

    def decorate(function: F) -> F:
        check_handler(function, "below @sock.route")

        @functools.wraps(function)
        def handler(*args: Any, **kwargs: Any) -> Any:
            # Only here is it certain that the extra is installed.
            from flask_redis_guard.web.websockets.limited import LimitedWebSocket

            ws = args[0] if args else None
            if isinstance(ws, LimitedWebSocket):  # the decorator stands here once more
                admit(ws)
                return function(*args, **kwargs)
            if not hasattr(ws, "input_buffer"):
                accepted = "a handler of a WebSocket: it stands below @sock.route"
                raise ConfigurationError("function", function, accepted)
            limited = LimitedWebSocket(ws, current(), request.endpoint)
            with limited.serving():
                admit(limited)
                return function(limited, *args[1:], **kwargs)

        def admit(ws: Any) -> None:
            """Limit the connection, by checks that were made ahead or are made now."""
            ws.limit_size(policy)
            state = RequestLimits.current()
            limit = policy.connection_limit
            if limit is not None and (state is None or not state.covers(limit)):
                enforce([(limit, _scope_of(limit))])
            taken = _taken_ahead()
            if policy in taken:
                place = taken.pop(policy)
            else:
                place = policy.take_place(current(), _scope_of(policy), request.endpoint)
            ws.admit(policy, _scope_of(policy), place)

        own = () if policy.connection_limit is None else (policy.connection_limit,)
        mark(function, handler, *own, policy)
        return handler  # type: ignore[return-value]

    return decorate


def _scope_of(declared: Any) -> str:
    state = RequestLimits.current()
    own = None if state is None else state.scope_of(declared)
    return own or f"endpoint:{request.endpoint}"


class _TakenAhead(dict[ConnectionPolicy, Place | None]):
    """Places that were taken for a connection before it is upgraded, until its handler has them."""

    def keep_until_sent(self, response: Response) -> None:
        """The connection was refused, or it has ended."""
        self.free()

    def end(self, *, failed: bool) -> None:
        """The request ends."""
        self.free()

    def free(self) -> None:
        """Free what the handler did not take over."""
        while self:
            place = self.popitem()[1]
            if place is not None:
                current().places.free(place)


def _taken_ahead() -> _TakenAhead:
    own: _TakenAhead = vars(
        request._get_current_object()  # type: ignore[attr-defined]
    ).setdefault("redis_guard_places", _TakenAhead())
    return own


def check_ahead() -> None:
    """Take the places of a connection before it is upgraded."""
    state = RequestLimits.current()
    found = () if state is None or state.route is None else state.route.scopes
    policies = [one for one in found if isinstance(one, ConnectionPolicy)]
    if state is None or not policies:
        return
    runtime = current()
    warn_of_early_upgrade(runtime)
    taken = _taken_ahead()
    state.hold(taken)
    for policy in policies:
        if not policy.defer:
            taken[policy] = policy.take_place(runtime, _scope_of(policy), request.endpoint)
    PacedSocket.put_under(request.environ)


def install(routes: Routes) -> None:
    """Put the checks into one app, right behind those of its rate limits.

    :param routes: the limits of its routes.
    """
    routes.add_check(lambda rule: rule.websocket, check_ahead)
