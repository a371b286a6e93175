"""The background check: one small write at every interval, and the first probe after an outage."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import NoPermissionError, RedisError

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.core.breaker import CircuitState
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.events import CallBegan, Checked, Tick
from flask_redis_guard.observe.advice import advise

logger = logging.getLogger("flask_redis_guard")

#: Seconds that the probe key lives.
PROBE_TTL = 60
#: The least seconds between two checks that health requests cause while no background check runs.
LEAST_INTERVAL = 1.0


class Monitor:
    """Check Redis in the background, in each process on its own.

    :param client: gives the client.
    :param gate: its gate.
    :param key: the probe's key. Writing tells more than ``PING``: a read-only replica, a full
        disk and a full memory all answer that.
    :param interval: seconds between checks; 0 for none in the background.
    """

    def __init__(self, client: Callable[[], Any], gate: Gate, key: str, interval: float) -> None:
        self._client = client
        self._gate = gate
        self._key = key
        self.interval = interval
        self._pid: int | None = None
        self._starting = ProcessLock()
        self._not_before = 0.0
        self._stop: threading.Event | None = None
        self._complained = False
        self._may_write = True
        self._asking = ProcessLock()
        self._in_flight: tuple[int, threading.Event] | None = None
        self._last: Checked | None = None
        self._advised: int | None = None
        gate.bus.subscribe(CallBegan, self._began)

    @property
    def running(self) -> bool:
        """Whether this process has background checks going on."""
        return self._pid == os.getpid()

    def start(self) -> None:
        """Begin background checks in this process, unless they are running or turned off."""
        if self._pid == os.getpid() or not self.interval or time.monotonic() < self._not_before:
            return
        with self._starting:
            if self._pid == os.getpid():
                return
            self._pid = os.getpid()
            self._stop = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(self._stop,), name="redis-guard-monitor", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as exc:  # out of threads or memory: requests probe until it works
            self._not_before, self._pid = time.monotonic() + self.interval, None
            if not self._complained:
                logger.error("The background check of Redis cannot start yet: %s", exc)
            self._complained = True
        else:
            self._complained = False
            self._gate.breaker.reserve_probes(self.interval)

    def _began(self, _: CallBegan) -> None:
        self.start()

    def stop(self) -> None:
        """End the background checks of this process; a later operation does not restart them."""
        self.interval = 0
        self._gate.breaker.reserve_probes(0)
        if self._stop is not None:
            self._stop.set()
        self._pid = None

    def check(self) -> Checked:
        """Ask Redis now, through the breaker: one bounded operation."""
        started = time.monotonic()
        latency: float | None = None
        try:
            self._gate.run("PROBE", self._probe, probe=True)
            latency = round((time.monotonic() - started) * 1000, 3)
        except (RedisUnavailable, RedisError) as exc:
            # An error for an answer, such as NOPERM for PING too, is no proof that Redis serves.
            logger.debug("The check of Redis failed: %s", exc)
        self._last = checked = Checked(latency is not None, latency, started)
        self._gate.bus.emit(checked)
        return checked

    def latest(self) -> Checked:
        """Return the last check's result, made anew where it is older than the interval.

        While one caller checks, the others get the result before that, or wait for the first one:
        however many ask, Redis sees one check for each interval.
        """
        last = self._fresh()
        if last is not None:
            return last
        done = threading.Event()
        with self._asking:
            last = self._fresh()  # again: a check may have ended meanwhile
            if last is not None:
                return last
            # A check that another process had in flight when it forked never ends in this one.
            others = self._in_flight
            if others is None or others[0] != os.getpid():
                others, self._in_flight = None, (os.getpid(), done)
        if others is None:
            try:
                return self.check()
            finally:
                self._in_flight = None
                done.set()
        if self._last is None:
            others[1].wait(self._gate.timeout)
        return self._last or Checked(False, None, time.monotonic())

    def _fresh(self) -> Checked | None:
        last, interval = self._last, max(self.interval, LEAST_INTERVAL)
        recent = last is not None and time.monotonic() - last.at < 1.5 * interval
        return last if recent else None

    def forget(self) -> None:
        """Let the next question be answered by a check of its own."""
        self._last = None

    def _probe(self) -> None:
        client = self._client()
        primaries = getattr(client, "probe_keys", None)  # on a cluster
        if self._may_write:
            try:
                for key in (self._key,) if primaries is None else primaries(self._key):
                    client.set(key, "1", ex=PROBE_TTL)
                return
            except NoPermissionError:
                self._may_write = False
                logger.warning(
                    "The Redis user may not write %s*: background checks only PING from now on, "
                    "which misses a read-only server and a full disk. Grant it that key.",
                    self._key,
                )
        client.ping(**({} if primaries is None else {"target_nodes": client.PRIMARIES}))

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._pause()):
            try:
                self._turn(stop)
            except Exception:
                logger.exception("The background check of Redis failed unexpectedly")

    def _turn(self, stop: threading.Event) -> None:
        breaker = self._gate.breaker
        kept_out = breaker.state in (CircuitState.OPEN, CircuitState.FORCED_OPEN)
        healthy = not kept_out and self.check().healthy
        if healthy and self._advised != os.getpid():
            self._advised = os.getpid()
            advise(self._client(), self._gate.timeout)
        # What needs two successes shall not wait for another interval.
        while healthy and breaker.state is CircuitState.HALF_OPEN and not stop.is_set():
            healthy = self.check().healthy
        self._gate.bus.emit(Tick())

    def _pause(self) -> float:
        breaker = self._gate.breaker
        if breaker.state is CircuitState.OPEN:
            return min(self.interval, breaker.retry_after + 0.001)
        return self.interval
