"""A link on which every packet takes its time, inside a network namespace of its own.

A proxy on loopback cannot show what connecting over a distance costs, since the kernel accepts at
once. Here a tunnel device hands each packet back later, with sender and receiver exchanged: who
connects to :data:`FAR` reaches this very machine, from a distance.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

FAR = "10.99.0.2"
_NEAR = "10.99.0.1"
_TUNSETIFF = 0x400454CA
_IFF_TUN_WITHOUT_HEADER = 0x1001


class Distance:
    """Open the link; only within :func:`run_apart`.

    :param seconds: for the way there and back.
    """

    def __init__(self, seconds: float) -> None:
        self._delay = seconds / 2
        #: Whether packets are lost.
        self.dropping = False
        self._packets: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        self._device = os.open("/dev/net/tun", os.O_RDWR)
        request = struct.pack("16sH", b"far0", _IFF_TUN_WITHOUT_HEADER)
        fcntl.ioctl(self._device, _TUNSETIFF, request)
        for command in (
            "link set lo up",
            f"addr add {_NEAR}/24 dev far0",
            "link set far0 up",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        while True:
            packet = os.read(self._device, 65_536)
            if packet[0] >> 4 == 4:
                exchanged = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                self._packets.put((time.monotonic() + self._delay, exchanged))

    def _write(self) -> None:
        while True:
            due, packet = self._packets.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if self.dropping:
                continue
            with contextlib.suppress(OSError):
                os.write(self._device, packet)


def can_be_apart() -> bool:
    """Whether this user may make a network namespace with a tunnel device in it."""
    if not (shutil.which("unshare") and shutil.which("ip") and Path("/dev/net/tun").exists()):
        return False
    code = "from tests.support.distance import Distance; Distance(0.01)"
    return _apart(code, 20).returncode == 0


def run_apart(code: str, timeout: float = 120.0) -> str:
    """Run code in an interpreter in a network namespace of its own, and return what it printed.

    :raises AssertionError: with all its output, if it fails.
    """
    done = _apart(code, timeout)
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _apart(code: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
