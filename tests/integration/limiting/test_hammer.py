"""Processes hammering one key while the server loses its scripts, its clock and its life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import RedisServer, eventually
from tests.support.binary import server_binary

pytestmark = pytest.mark.timing

SECONDS = 10.5
RATES = {"10/second": (10, 1), "60/2 seconds": (60, 2)}  # an exact log, and counters


class SteppedClock:
    """A server's clock that a test can set: of the process that has this environment."""

    def __init__(self, file: Path) -> None:
        import libfaketime  # not installed on other systems

        self._file = file
        library = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.step(0)

    def fits(self, binary: str) -> bool:
        """Whether a program starts with it: with jemalloc, as in Debian's server, it hangs."""
        try:
            subprocess.run(
                [binary, "--version"],
                env={**os.environ, **self.environment},
                capture_output=True,
                timeout=5,
                check=True,
            )
        except subprocess.TimeoutExpired:
            return False
        return True

    def step(self, seconds: int) -> None:
        """Set it to so many seconds from the true time; it takes up to one second."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{seconds:+d}")
        draft.replace(self._file)


@contextmanager
def hammering(url: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.integration.limiting.hammer", url, "8", "32"]
    with subprocess.Popen(
        [*command, str(SECONDS), *RATES],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def most_within(admitted: list[tuple[float, float]], period: float) -> int:
    """The most admissions that lie within a period for certain: sent and answered inside it."""
    starts = sorted(sent for sent, _ in admitted)
    most = 0
    for since in starts:
        # Of those sent from then on, all that were answered before the period was over.
        later = admitted[bisect_left(admitted, (since, 0.0)) :]
        most = max(most, sum(answered < since + period for _, answered in later))
    return most


@pytest.mark.skipif(
    sys.platform != "linux", reason="the clock of one process can be set on Linux only"
)
def test_not_one_admission_above_the_limit(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path / "clock")
    settable = clock.fits(server_binary())
    options = {"appendonly": "yes", "appendfsync": "always"}
    with (
        RedisServer(options=options, environment=clock.environment if settable else {}) as server,
        hammering(server.url) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
        eventually(lambda: server.client().dbsize(), 10, "the first admission")
        begun = time.monotonic()

        def at(seconds: float) -> None:
            eventually(lambda: time.monotonic() >= begun + seconds, SECONDS)

        at(0.7)
        server.client().script_flush()
        at(1.0)
        if settable:
            clock.step(-5)
            eventually(lambda: server.client().time()[0] < time.time() - 3, 2, "the step back")
        stepped = time.monotonic()
        at(stepped - begun + 3.5)  # a window later, admissions go on
        server.kill()
        at(stepped - begun + 4.7)  # nobody remembers a refusal for so long: all of them ask
        server.start()
        restarted = time.monotonic()
        found = json.loads(process.communicate(timeout=60)[0])
    assert found["processes"] == 8
    assert found["refused"] > 0
    assert found["failed"] > 0, "nobody noticed the restart"
    for rate, (limit, period) in RATES.items():
        admitted = sorted((sent, answered) for sent, answered in found["admitted"][rate])
        assert most_within(admitted, period) <= limit, rate
        assert len(admitted) > limit, rate
        for since, until in ((stepped, restarted), (restarted, restarted + SECONDS)):
            assert any(since < sent < until for sent, _ in admitted), rate
