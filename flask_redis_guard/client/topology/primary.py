"""Connections to the primary that the sentinels name; they are left when it is another one."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from redis import exceptions as redis_errors
from redis.utils import str_if_bytes

from flask_redis_guard.client.operation import Operation
from flask_redis_guard.client.topology.sentinel import Sentinels, View
from flask_redis_guard.client.transport.connections import (
    GuardedConnection,
    TCPConnection,
    TLSConnection,
)
from flask_redis_guard.client.transport.handshake import Greeting
from flask_redis_guard.client.transport.pool import GuardedPool


class SentinelManaged(GuardedConnection):
    """A connection that asks for the primary's address each time it connects."""

    sentinels: Sentinels  # set on the subclass that each client makes for itself
    host: str
    port: int
    #: The primary that it was connected to.
    view: View | None = None
    _ready = False
    _watches = False

    @property
    def leads_elsewhere(self) -> bool:
        """Whether the primary is another one by now."""
        return self.view is not self.sentinels.view

    @property
    def is_busy(self) -> bool:
        """Whether anybody's operation is under way on it; a subscriber's has ended."""
        owners = (self.holder, self.borrowed)
        return any(owner is not None and not owner.settled for owner in owners)

    @property
    def is_clean(self) -> bool:
        return super().is_clean and not self.leads_elsewhere

    def connect(self, *args: Any, **kwargs: Any) -> None:
        if self._sock is not None and not self.is_greeting:
            return
        self._ready = False
        try:
            super().connect(*args, **kwargs)
        finally:
            self._ready = True

    def locate(self) -> None:
        self._watches = False
        self.view = view = self.sentinels.primary()
        self.host, self.port = view.address

    def renew(self) -> None:
        if self.leads_elsewhere:
            self.disconnect()
        super().renew()

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        super().send_command(*args, **kwargs)
        if args and str(args[0]).upper() == "WATCH":
            self._watches = True

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if self._ready and not self._owed:
            operation = self.operation()
            if operation is not None:
                self.sentinels.admit(operation)
            if self._sock is not None and self.leads_elsewhere:
                self.disconnect()
                if self._watches:
                    self._watches = False
                    raise redis_errors.ConnectionError("Failover: what was watched is gone")
        super().send_packed_command(command, check_health)

    def greetings(self) -> list[Greeting]:
        """Make sure that it is a primary: sentinels may name a server that they demote just now.

        A command may follow at once: the reply to it is not believed if a replica gave it.
        """
        # A user who may not ask is not told; a write to a replica tells as well.
        return [*super().greetings(), Greeting(("ROLE",), _expect_primary, harmless=True)]


def _expect_primary(role: Any) -> None:
    if isinstance(role, list) and str_if_bytes(role[0]) != "master":
        raise redis_errors.ConnectionError("No master found: a replica answers there")


class SentinelTCPConnection(SentinelManaged, TCPConnection):
    """A guarded connection to the primary that sentinels name, over TCP."""


class SentinelTLSConnection(SentinelManaged, TLSConnection):
    """A guarded connection to the primary that sentinels name, over TLS."""


class SentinelPool(GuardedPool):
    """A pool of connections to the primary that is trusted now."""

    sentinels: Sentinels

    def take(self, operation: Operation) -> Any:
        """Take a connection to the primary, unless that is in doubt."""
        if not operation.active:
            with operation:  # sentinels are asked inside it
                return self.take(operation)
        self.sentinels.admit(operation)
        connection = super().take(operation)
        connection._watches = False
        if connection.leads_elsewhere:
            try:
                connection.disconnect()
                self.make_ready(connection, operation)
            except BaseException:
                self.release(connection)
                raise
        return connection

    def give_back(self, connection: Any) -> None:
        """Close a connection that leads to another server than the primary of now."""
        if connection.leads_elsewhere:
            connection.holder = None
            self.release(connection)
        else:
            super().give_back(connection)

    def leave(self) -> None:
        """Leave the primary of before: close what waits here, and wake who only listens there."""
        self.disconnect_idle()
        with self._lock:
            held = [each for each in self._in_use_connections if not each.is_busy]
        for connection in held:
            with contextlib.suppress(AttributeError, OSError):  # it was closed just now
                connection._sock.shutdown(socket.SHUT_RDWR)
