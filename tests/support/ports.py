"""Loopback ports that stay ours while a server is down, also against a second run of the suite."""

from __future__ import annotations

import random
import socket
from types import TracebackType

# Below the range the kernel takes outgoing ports from (32768 and up on Linux). A client that
# keeps trying a dead port inside that range can end up connected to itself.
LOWEST_PORT = 11_000
HIGHEST_PORT = 21_999
# Where a cluster node listens for the other nodes, counted from its client port.
CLUSTER_BUS_OFFSET = 10_000

# A generator of our own: pytest-randomly seeds the global one alike in every process.
_random = random.SystemRandom()


class PortLease:
    """A free TCP port on 127.0.0.1, kept until :meth:`release`.

    The lease is a UDP socket on the same number. A TCP server can come and go on the port
    meanwhile, another lease of the number fails in whatever process, and a process that dies
    leaves nothing behind.

    :param with_cluster_bus: also lease the port that a cluster node talks to its peers on.
    :raises RuntimeError: if no port is free.
    """

    def __init__(self, *, with_cluster_bus: bool = False) -> None:
        self._tokens: list[socket.socket] = []
        for _ in range(1000):
            port = _random.randint(LOWEST_PORT, HIGHEST_PORT)
            wanted = [port, port + CLUSTER_BUS_OFFSET] if with_cluster_bus else [port]
            if all(self._take(number) for number in wanted):
                self.port = port
                return
            self.release()
        raise RuntimeError(f"no free port between {LOWEST_PORT} and {HIGHEST_PORT}")

    def _take(self, port: int) -> bool:
        token = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tokens.append(token)
        try:
            token.bind(("127.0.0.1", port))
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let go of the port."""
        for token in self._tokens:
            token.close()
        self._tokens.clear()

    def __enter__(self) -> PortLease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
