"""The limits of connections and messages for handlers of Flask-SocketIO."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flask import Flask, current_app, request
from flask_socketio import ConnectionRefusedError as Refused

from flask_redis_guard.contrib.socketio.engine import handshake_limits, protect, warn_of_proxy
from flask_redis_guard.contrib.socketio.engine import limit_handshakes as limit_handshakes
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.errors import RateLimitExceeded, RedisUnavailable
from flask_redis_guard.limiting.slots import Place, Refusal
from flask_redis_guard.runtime import Runtime, current, of
from flask_redis_guard.web.limits.cli import Entry, surveyors
from flask_redis_guard.web.limits.enforce import enforce
from flask_redis_guard.web.limits.resolve import Countable, Scopes
from flask_redis_guard.web.websockets.policy import (
    TOO_BIG,
    ConnectionPolicy,
    MessageLimits,
    announce_lost,
    announce_outage,
    check_handler,
    closing,
    warn_of_early_upgrade,
)

F = TypeVar("F", bound=Callable[..., Any])

#: The event that tells a client why it is disconnected.
EVENT = "rate_limited"

#: What a decorator leaves on its handler, and on the function that it was given.
MARK, ABOVE = "__redis_guard_socketio__", "__redis_guard_socketio_above__"

_PLACES = "redis_guard_places"
_SCOPES = "redis_guard_scopes"
_hooking = ProcessLock()


@dataclass(frozen=True, eq=False, kw_only=True)
class SocketIOLimits(ConnectionPolicy):
    """The limits of the connections and messages of Flask-SocketIO handlers.

    A refused connection sees ``connect_error``; a client over a limit afterwards gets the event
    ``rate_limited`` and is disconnected. Both carry ``code`` (1008, 1009 or 1013), ``message`` and
    ``retry_after`` in seconds. The parameters are those of
    :func:`~flask_redis_guard.websocket_limited`. Each namespace counts by itself, all its handlers
    together, unless ``scope`` says otherwise.

    :raises ConfigurationError: for an argument that cannot be honoured.
    """

    defer: bool = field(default=False, init=False)

    def connect(self, function: F) -> F:
        """Decorate the handler of ``connect``, below ``@socketio.on("connect")``."""
        check_handler(function, 'below @socketio.on("connect")')

        @functools.wraps(function)
        def handler(*args: Any) -> Any:
            runtime = current()
            warn_of_early_upgrade(runtime)
            warn_of_proxy(runtime.warned)
            try:
                places = self._admit(runtime)
            except (RateLimitExceeded, RedisUnavailable) as error:
                announce_outage(runtime, error, None)
                notice = _notice(error)
                raise Refused(notice["message"], notice) from None
            admitted = False
            try:
                # Flask-SocketIO tries again without the argument after any TypeError: that would
                # count the connection twice.
                answer = function(*_accepted(function, args))
                admitted = answer is not False
                return answer
            finally:
                if not admitted:
                    _free(runtime, places)

        return self._marked(handler, function)

    def message(self, function: F) -> F:
        """Decorate the handler of any other event, below ``@socketio.on(...)``."""
        check_handler(function, "below @socketio.on(...)")

        @functools.wraps(function)
        def handler(*args: Any) -> Any:
            runtime, server = current(), _server()
            client = (request.namespace, request.sid)  # type: ignore[attr-defined]
            if not server.manager.is_connected(client[1], client[0]):
                return None  # what a client that was refused had sent before it was disconnected
            try:
                limits = MessageLimits(runtime, None)
                limits.limit_size(self)
                limits.add(self, _scope_of(self, runtime, server))
                if limits.max_size is not None and _size() > limits.max_size:
                    _expel(server, client, _too_big())
                    return None
                limits.check()
            except (RateLimitExceeded, RedisUnavailable) as error:
                announce_outage(runtime, error, None)
                _expel(server, client, _notice(error))
                return None
            return function(*args)

        return self._marked(handler, function)

    def _marked(self, handler: Any, function: F) -> F:
        setattr(handler, MARK, (self, *getattr(function, MARK, ())))
        if not inspect.ismethod(function):
            setattr(function, ABOVE, (self, *getattr(function, ABOVE, ())))
        return handler  # type: ignore[no-any-return]

    def _declared(self) -> list[Countable]:
        return [self] if self.connection_limit is None else [self.connection_limit, self]

    def _admit(self, runtime: Runtime) -> list[Place]:
        server = _server()
        known = _places(runtime, server)
        if self.connection_limit is not None:
            enforce([(self.connection_limit, _scope_of(self.connection_limit, runtime, server))])
        place = self.take_place(runtime, _scope_of(self, runtime, server), None)
        if place is None:
            return []
        client = (request.namespace, request.sid)  # type: ignore[attr-defined]

        def alive() -> bool:
            here = server.get_environ(client[1], client[0]) is not None
            if not here:  # it left while it was being admitted, of which nobody is told
                known.pop(client, None)
            return here

        place.alive = alive
        if not self.shadow:
            place.on_lost = functools.partial(_lose, runtime, server, client, place)
        places = known.setdefault(client, [])
        places.append(place)
        return places


def _places(runtime: Runtime, server: Any) -> dict[tuple[str, str], list[Place]]:
    """Return the places of a server's clients; each is freed when its client is disconnected.

    Every disconnection ends in the ``disconnect`` of the client manager, whichever side began it
    and whether or not the app has a handler. It is overridden on the one instance.
    """
    manager = server.manager
    with _hooking:
        known: dict[tuple[str, str], list[Place]] | None = vars(manager).get(_PLACES)
        if known is None:
            places = known = {}
            disconnect = manager.disconnect

            def disconnect_and_free(sid: str, namespace: str, *args: Any, **kwargs: Any) -> Any:
                try:
                    return disconnect(sid, namespace, *args, **kwargs)
                finally:
                    _free(runtime, places.pop((namespace, sid), []))

            vars(manager).update({_PLACES: known, "disconnect": disconnect_and_free})
            protect(server)
    return known


def _free(runtime: Runtime, places: list[Place]) -> None:
    while places:
        runtime.places.free(places.pop())


def _lose(
    runtime: Runtime, server: Any, client: tuple[str, str], place: Place, error: Refusal
) -> None:
    announce_lost(runtime, place, error, None)
    # The app's handler of "disconnect" may take its time: others wait for the thread we are in.
    server.start_background_task(_expel, server, client, _notice(error))


def _expel(server: Any, client: tuple[str, str], notice: dict[str, Any]) -> None:
    namespace, sid = client
    server.emit(EVENT, notice, to=sid, namespace=namespace)
    server.disconnect(sid, namespace=namespace)


def _notice(error: Refusal) -> dict[str, Any]:
    code, message = closing(error)
    return {"code": code, "message": message, "retry_after": error.retry_after}


def _too_big() -> dict[str, Any]:
    return {"code": TOO_BIG, "message": "Message is too big", "retry_after": None}


def _server() -> Any:
    return current_app.extensions["socketio"].server


def _scope_of(declared: Countable, runtime: Runtime, server: Any) -> str:
    """Return the scope of a limit in the current namespace: a space of its own for its counters.

    Namespaces that a handler for ``"*"`` serves count together: a client names them as it likes.
    """
    name = request.namespace  # type: ignore[attr-defined]
    if name not in server.handlers and name not in server.namespace_handlers:
        name = "*"
    known: dict[str, dict[Any, str]] = vars(server).setdefault(_SCOPES, {})
    if declared not in known.get(name, ()):  # the namespace's first client, or a later handler
        known[name] = _scopes_in(server, name, runtime)
    return known[name].get(declared, f"socketio:{name}")


def _scopes_in(server: Any, name: str, runtime: Runtime) -> dict[Any, str]:
    """Return the scopes of what was declared for handlers of a namespace, in their order."""
    scopes = Scopes(runtime.settings.default_key)
    found: dict[Any, None] = {}
    for handler in _handlers(server, name):
        for limits in getattr(handler, MARK, ()):
            found.update(dict.fromkeys(limits._declared()))
    return {one: scopes.give(one, f"socketio:{name}") for one in found}


def _handlers(server: Any, name: str) -> list[Any]:
    own = server.namespace_handlers.get(name)
    methods = [getattr(own, method) for method in dir(own) if method.startswith("on_")]
    return [*server.handlers.get(name, {}).values(), *methods]


def _survey(app: Flask) -> Iterator[Entry]:
    """List the limits of Socket.IO for the command line, and those that nobody would check."""
    server = getattr(app.extensions.get("socketio"), "server", None)
    if server is None:
        return
    for path, limit in handshake_limits(server):
        yield Entry("socketio:handshake", path, limit, "socketio:handshake")
    for name in dict.fromkeys([*server.handlers, *server.namespace_handlers]):
        place = f"socketio:{name}"
        for one, scope in _scopes_in(server, name, of(app)).items():
            yield Entry(place, "*", one, scope)
        for handler in _handlers(server, name):
            above = getattr(getattr(handler, "__wrapped__", None), ABOVE, ())
            for limits in dict.fromkeys(above):
                if limits not in getattr(handler, MARK, ()):
                    yield Entry(f"{place} (not applied)", "*", limits, place, called=False)


surveyors.append(_survey)


def _size() -> int:
    """Return the bytes of the current event's arguments, as compact JSON where they are no text."""
    parts: tuple[Any, ...] = request.event["args"]  # type: ignore[attr-defined]
    return sum(map(_size_of, parts))


def _size_of(value: Any) -> int:
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    attached: list[bytes] = []

    def attachment(part: Any) -> int:
        attached.append(part)
        return 0

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=attachment)
    return len(text.encode("utf-8", "surrogatepass")) + sum(map(len, attached))


def _accepted(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments without the client's ``auth`` where the handler does not take it."""
    try:
        inspect.signature(function).bind(*args)
    except TypeError:
        return args[:-1]
    return args
