"""Connections to whom the sentinels call the primary.

redis-py's own ``SentinelConnectionPool`` is not used: each discovery asks the first sentinel for as
long as a socket's timeout lasts, so one that hangs eats the deadline of every operation, and its
connections keep a reply that is owed when a greenlet is killed while reading.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis import exceptions as redis_errors
from redis.utils import str_if_bytes

from flask_redis_guard.client.operation import current
from flask_redis_guard.client.transport.connections import (
    GuardedConnection,
    TCPConnection,
    TLSConnection,
)
from flask_redis_guard.client.transport.pool import GuardedPool

logger = logging.getLogger("flask_redis_guard")


class Discovery:
    """Ask sentinels for the primary's address, inside the operation's deadline.

    :param service: what the sentinels call the primary.
    :param pools: a pool of connections to each sentinel.
    """

    def __init__(self, service: str, pools: Sequence[GuardedPool]) -> None:
        self._service = service
        self._gate = pools[0].gate
        self._sentinels = [redis.Redis(connection_pool=pool) for pool in pools]
        self._address: tuple[str, int] | None = None
        #: Called when the primary's address is another one than the last time.
        self.on_change: Callable[[], object] = lambda: None

    def primary(self) -> tuple[str, int]:
        """Return host and port of the primary.

        The sentinel that answered is asked first the next time.

        :raises redis.ConnectionError: if no sentinel names one.
        """
        operation = current(self._gate)
        if operation is None:
            raise RuntimeError("sentinels are asked inside operations only")
        failure: Exception | None = None
        order = list(self._sentinels)
        with operation.sharing(len(order)):
            for sentinel in order:
                operation.next_share()
                try:
                    address = self._ask(sentinel)
                except (redis_errors.RedisError, OSError) as exc:
                    logger.debug("A sentinel did not answer: %s", type(exc).__name__)
                    failure = exc
                    continue
                if address is not None:
                    others = [other for other in order if other is not sentinel]
                    self._sentinels = [sentinel, *others]
                    self._note(address)
                    return address
        if failure is not None:
            raise failure
        raise redis_errors.ConnectionError("No master found")

    def _ask(self, sentinel: redis.Redis) -> tuple[str, int] | None:
        # In two words: redis-py's callback for the joined name differs between versions.
        found: Any = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        return (str_if_bytes(found[0]), int(found[1])) if found else None

    def _note(self, address: tuple[str, int]) -> None:
        before, self._address = self._address, address
        if before is not None and before != address:
            logger.warning(
                "The sentinels name another primary: %s:%d instead of %s:%d", *address, *before
            )
            self.on_change()


class SentinelManaged(GuardedConnection):
    """A connection that asks for the primary's address each time it connects."""

    discovery: Discovery  # set on the subclass that each client makes for itself
    host: str
    port: int

    def _connect(self) -> Any:
        self.host, self.port = self.discovery.primary()
        return super()._connect()

    def verify(self) -> None:
        """Make sure that it is a primary: sentinels may name a server that they demote just now.

        :raises redis.ConnectionError: if it says that it is a replica.
        """
        super().verify()
        self.send_command("ROLE")
        try:
            role = self.read_response()
        except redis_errors.ResponseError:
            return  # the user may not ask; a write to a replica tells as well
        if isinstance(role, list) and str_if_bytes(role[0]) != "master":
            raise redis_errors.ConnectionError("No master found: a replica answers there")


class SentinelTCPConnection(SentinelManaged, TCPConnection):
    """A guarded connection to the primary that sentinels name, over TCP."""


class SentinelTLSConnection(SentinelManaged, TLSConnection):
    """A guarded connection to the primary that sentinels name, over TLS."""
