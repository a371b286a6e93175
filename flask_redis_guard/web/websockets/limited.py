"""A connection of flask-sock whose messages are limited; needs the extra ``websocket``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from simple_websocket import ConnectionClosed
from wsproto.events import CloseConnection
from wsproto.utilities import LocalProtocolError

from flask_redis_guard.errors import RateLimitExceeded, RedisUnavailable
from flask_redis_guard.limiting.slots import Place, Refusal
from flask_redis_guard.runtime import Runtime
from flask_redis_guard.web.websockets.pacing import PacedSocket
from flask_redis_guard.web.websockets.policy import (
    INTERNAL_ERROR,
    NORMAL,
    TOO_BIG,
    ConnectionPolicy,
    MessageLimits,
    announce_lost,
    announce_outage,
    closing,
)

#: RFC 6455, section 7.4.1: what a connection that ended without a close frame is said to have.
ABNORMAL_CLOSURE = 1006


class LimitedWebSocket:
    """A ``simple_websocket.Server`` whose :meth:`receive` counts and that reads no further ahead
    than a bounded number of messages; all else is the connection's own.

    :param ws: the connection.
    :param runtime: what belongs to the app.
    :param endpoint: what the signals name.
    """

    def __init__(self, ws: Any, runtime: Runtime, endpoint: str | None) -> None:
        self._ws = ws
        self._paced = PacedSocket.of(ws)
        self._runtime = runtime
        self._endpoint = endpoint
        self._messages = MessageLimits(runtime, endpoint)
        self._places: list[Place] = []
        self._closed: ConnectionClosed | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ws, name)

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next message, once it has been counted.

        :param timeout: seconds to wait for it, 0 for not at all, ``None`` for ever.
        :returns: text or bytes; ``None`` if the time is over.
        :raises simple_websocket.ConnectionClosed: if the connection is, or if a limit closed it.
        """
        self._raise_if_closed()
        message = self._ws.receive(timeout)
        self._paced.read_on()
        self._raise_if_closed()
        if message is None:
            return None
        limit = self._messages.max_size
        size = len(message.encode() if isinstance(message, str) else message)
        if limit is not None and size > limit:
            self._close(TOO_BIG, "Message is too big")
        else:
            try:
                self._messages.check()
            except (RateLimitExceeded, RedisUnavailable) as error:
                self.refuse(error)
        self._raise_if_closed()
        return message

    def send(self, data: Any) -> None:
        """Send a message.

        :param data: bytes, or what is sent as text.
        :raises simple_websocket.ConnectionClosed: if the connection is closed, or ends because the
            client is gone or takes nothing.
        """
        self._raise_if_closed()
        try:
            self._ws.send(data)
        except (OSError, LocalProtocolError) as error:
            self._raise_if_closed()
            raise ConnectionClosed(ABNORMAL_CLOSURE, "The client is gone") from error

    def limit_size(self, policy: ConnectionPolicy) -> None:
        """Close once a message, or the part of it that has come, is larger than the policy admits.

        What is larger is never held in memory. Before anything else: the reader is at work already.
        """
        self._messages.limit_size(policy)
        largest, ws = self._messages.max_size, self._ws
        if largest is not None:
            ws.max_message_size = min(ws.max_message_size or largest, largest)
            if ws.incoming_message_len > largest:  # it came before the reader knew
                self._close(TOO_BIG, "Message is too big")

    def admit(self, policy: ConnectionPolicy, scope: str, place: Place | None) -> None:
        """Limit the connection by one more policy.

        :param scope: the scope where the policy names none.
        :param place: the place that it holds by this policy.
        :raises RedisUnavailable: if a function of the user fails.
        """
        if place is not None:
            self._places.append(place)
            if not policy.shadow:
                place.on_lost = lambda error: self._lose(place, error)
                if place.lost is not None:  # before anybody could be told
                    self.refuse(place.lost)
        self._messages.add(policy, scope)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve the connection: refusals close it, and at the end nothing of it is left."""
        code = INTERNAL_ERROR
        try:
            yield
            code = NORMAL
        except ConnectionClosed:
            code = NORMAL
            raise
        except (RateLimitExceeded, RedisUnavailable) as error:
            self.refuse(error)
            self._raise_if_closed()
        finally:
            try:
                self._close(code)
                self._paced.linger()
            finally:
                for place in self._places:
                    self._runtime.places.free(place)

    def refuse(self, error: Refusal) -> None:
        """Tell the client why, and close."""
        if self._closed is None:
            announce_outage(self._runtime, error, self._endpoint)
        self._close(*closing(error))

    def _lose(self, place: Place, error: Refusal) -> None:
        if self._closed is None:
            announce_lost(self._runtime, place, error, self._endpoint)
        self._close(*closing(error))

    def _close(self, code: int, reason: str | None = None) -> None:
        """Close without waiting for anybody: it may be called where others must not wait."""
        if self._closed is not None:
            return
        self._closed = ConnectionClosed(code, reason)
        ws = self._ws
        if ws.connected:
            try:
                self._paced.send_at_once(ws.ws.send(CloseConnection(code, reason)))
            except LocalProtocolError:  # the client has just said it first
                pass
            except OSError:  # it is gone, or it reads nothing
                self._paced.cut()
        # The reader may still be at work on what came before: nobody may see it, or wait for it.
        ws.connected = False
        ws.input_buffer = _Discarded([b""])
        ws.event.set()
        self._paced.read_on()

    def _raise_if_closed(self) -> None:
        if self._closed is not None:
            raise self._closed


class _Discarded(list[bytes]):
    """In the place of received messages: takes none, and wakes who waits for one."""

    def append(self, message: bytes) -> None:
        pass

    def pop(self, index: Any = -1) -> bytes:
        return b""
