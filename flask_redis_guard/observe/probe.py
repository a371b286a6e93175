"""The background check: one small write at every interval, and more often while Redis is away.

While a breaker is open this process goes on asking, once in each recovery interval, so that no
user's request has to find out whether Redis is back. The first answer makes the breaker half-open,
the second one, asked for at once, closes it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from redis.exceptions import NoPermissionError, RedisError

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.core.breaker import CircuitBreaker, CircuitState, Transition, dice
from flask_redis_guard.core.process import ProcessLock, Worker, gevent_is_to_patch, watch_forks
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.events import CallBegan, Checked, RedisFailed, Tick
from flask_redis_guard.observe.diagnosis import advise

logger = logging.getLogger("flask_redis_guard")

#: Seconds that the probe key lives.
PROBE_TTL = 60
#: The least seconds between two checks that health requests cause while no background check runs.
LEAST_INTERVAL = 1.0
#: Recovery checks are early or late by up to this part, so that processes do not ask in step.
JITTER = 0.1
#: A breaker that opens again within so many seconds of a recovery doubles the recovery interval.
SETTLED = 60.0
#: A recovery check asks so often in a row, as long as all takes no longer than so many seconds: a
#: half-dead server, which fails every other call, answers one question but not all of them.
IN_A_ROW, WITHIN = 16, 0.1
#: Seconds between two tries of a write that the server did not permit.
WRITE_AGAIN = 60.0
#: Reasons of failures that a server without the right to write would show to nobody.
_OF_WRITES = frozenset({"read-only", "out-of-memory", "misconf", "no-replicas"})


class Probed(Protocol):
    """What a breaker stands for: one server, or all that the client may ask.

    A client with several breakers gives one for each from a method ``probe_targets()``, the same
    objects each time.
    """

    @property
    def breaker(self) -> CircuitBreaker:
        """The breaker that a check passes."""

    def run(self, check: Callable[[], object]) -> None:
        """Make one check, as one operation that is a probe.

        :raises RedisUnavailable: if it failed, or the breaker refused it.
        """

    def prepare(self) -> None:
        """While the breaker is not closed, called within each check: find the right server.

        A cluster reads its map.
        """

    def write(self, key: str, seconds: int) -> None:
        """Write a key that lives for so long. Writing tells more than :meth:`ping`: a read-only
        replica, a full disk and a full memory all answer that."""

    def ping(self) -> None:
        """Ask without writing, for a user who may not write."""


class Neighbours(Protocol):
    """The workers of this host, which share what they know of one breaker."""

    @property
    def breaker(self) -> CircuitBreaker:
        """The breaker that is shared."""

    @property
    def asks(self) -> bool:
        """Whether it is this worker's turn to ask whether Redis is back."""

    @property
    def is_over(self) -> bool:
        """Whether Redis is away for this worker alone: it has to find out for itself, and now."""

    @property
    def pause(self) -> float:
        """Seconds within which to look again."""

    def look(self) -> None:
        """Read what is new, and have the breaker follow it."""

    def beat(self, seconds: float) -> None:
        """Say that this worker is at work, and will say so again within so many seconds."""


class _Server:
    """The one server that a client with one breaker may ask."""

    def __init__(self, client: Any, gate: Gate) -> None:
        self._client = client
        self._gate = gate

    @property
    def breaker(self) -> CircuitBreaker:
        return self._gate.breaker

    def run(self, check: Callable[[], object]) -> None:
        self._gate.run("PROBE", check, probe=True)

    def prepare(self) -> None:
        pass  # with sentinels, connecting asks them

    def write(self, key: str, seconds: int) -> None:
        self._client.set(key, "1", ex=seconds)

    def ping(self) -> None:
        self._client.ping()


class _Circuit:
    """What the monitor remembers of one breaker."""

    def __init__(self, target: Probed, interval: float) -> None:
        self.target = target
        #: Seconds between two recovery checks.
        self.interval = interval
        #: Whether the breaker has opened and not closed since.
        self.opened = False
        #: Monotonic time of the next recovery check.
        self.due = 0.0
        self.recovered_at: float | None = None
        self.write_again_at = 0.0
        #: Whether other workers of the host are served, as of the last turn.
        self.alone = False
        #: Seconds after which the last check had its first answer.
        self.answered_after = 0.0
        #: Whether the server refuses the write, and the failure was one that only a write shows.
        self.blind = False

    def insist(self, ask: Callable[[], object], began: float, *, once: bool) -> None:
        """Ask, and where that is to prove a recovery ask some more.

        :param began: monotonic time since which the first answer is waited for.
        """
        ask()
        self.answered_after = time.monotonic() - began
        ends = began + WITHIN  # a server that is far away has no time for more
        for _ in range(0 if once else IN_A_ROW - 1):
            if time.monotonic() >= ends:
                return
            ask()


class Monitor:
    """Check Redis in the background, in each process on its own.

    :param client: gives the client.
    :param gate: its gate.
    :param key: the probe's key.
    :param interval: seconds between checks; 0 for none while the breaker is closed.
    :param recovery_interval: seconds between checks while it is open; 0 for none, so that users'
        calls have to find out after the open time.
    :param open_seconds: that open time. The recovery interval grows up to it where Redis fails
        again right after each recovery; one that is no shorter has no use and is taken for 0.
    :param host: the other workers; ``None`` for a process that is for itself.
    """

    def __init__(
        self,
        client: Callable[[], Any],
        gate: Gate,
        key: str,
        interval: float,
        recovery_interval: float = 0.0,
        open_seconds: float = 30.0,
        host: Neighbours | None = None,
    ) -> None:
        self._host = host
        self._client = client
        self._gate = gate
        self._key = key
        self.interval = interval
        self._recovery_interval = recovery_interval if recovery_interval < open_seconds else 0.0
        self._longest = open_seconds
        self._worker = Worker("redis-guard-monitor", self._turn, "The background check of Redis")
        self._next_check = 0.0
        self._not_before = 0.0
        # Ahead of gevent's patches a thread would not be a greenlet: a call that the application
        # makes while it is imported starts none, the first request or start() does.
        self._may_start = False
        self._known: tuple[_Circuit, ...] = ()
        self._of_writes = False  # whether what failed since the last recovery was a write
        self._complained = False
        self._asking = ProcessLock()
        self._in_flight: tuple[int, threading.Event] | None = None
        self._last: Checked | None = None
        self._advised: int | None = None
        self._bus = gate.bus
        self._bus.subscribe(CallBegan, self._began)
        self._bus.subscribe(RedisFailed, self._failed)
        self._bus.subscribe(Transition, self._changed)
        watch_forks(self)

    @property
    def running(self) -> bool:
        """Whether this process has background checks going on."""
        return self._worker.running

    def start(self, *, at_once: bool = False) -> None:
        """Begin background checks in this process, unless they are running or turned off.

        :param at_once: whether to check now, so that later operations find what takes time: the
            primary, the map of a cluster, connections.
        """
        self._may_start, now = True, time.monotonic()
        if not self._worker.running and self._wanted():
            if now < self._not_before:
                return
            self._next_check = now if at_once else now + self.interval
            if not self._worker.wake():
                self._not_before = now + LEAST_INTERVAL
                return  # a later operation tries again; users probe until it works
            self._gate.breaker.reserve_probes(self._reservation())
        self._bus.unsubscribe(CallBegan, self._began)

    def stop(self) -> None:
        """End the background checks of this process; a later operation does not restart them."""
        self.interval = self._recovery_interval = 0
        for circuit in self._circuits():
            circuit.target.breaker.reserve_probes(0)
            circuit.target.breaker.expect_probe(0)
        if self._worker.running:
            self._worker.wake()

    def after_fork(self) -> None:
        """Begin anew in a child process, with its first operation."""
        self._may_start = False
        self._bus.subscribe(CallBegan, self._began)

    # -- one check -------------------------------------------------------------------------------

    def check(self) -> Checked:
        """Ask Redis now, through the breaker: one bounded operation for each breaker."""
        return self._check(self._circuits())

    def _check(self, circuits: Sequence[_Circuit]) -> Checked:
        started = time.monotonic()
        answers = [self._ask(circuit) for circuit in circuits]  # each breaker has to know
        healthy = all(answers)
        took = sum(circuit.answered_after for circuit in circuits)
        latency = round(took * 1000, 3) if healthy else None
        self._last = checked = Checked(healthy, latency, started)
        self._bus.emit(checked)
        return checked

    def _ask(self, circuit: _Circuit) -> bool:
        try:
            circuit.target.run(lambda: self._probe(circuit))
        except RedisUnavailable as exc:
            logger.debug("The check of Redis failed: %s", exc)
            return False
        except RedisError as exc:
            # An error for an answer, such as NOPERM for PING too, is no proof that Redis serves.
            logger.debug("The check of Redis was answered with an error: %s", type(exc).__name__)
            return False
        return True

    def _probe(self, circuit: _Circuit) -> None:
        target, state, began = circuit.target, circuit.target.breaker.state, time.monotonic()
        closed = state is CircuitState.CLOSED
        once = closed or state is CircuitState.DISABLED
        if not closed:
            target.prepare()
        if time.monotonic() >= circuit.write_again_at:
            try:
                circuit.insist(lambda: target.write(self._key, PROBE_TTL), began, once=once)
            except NoPermissionError:
                circuit.write_again_at = time.monotonic() + WRITE_AGAIN
                self._complain()
            else:
                circuit.blind = self._complained = False
                return
        try:
            if closed or not self._of_writes:
                circuit.insist(target.ping, began, once=once)
                return
        except NoPermissionError:
            if closed:
                raise
        # PING is not permitted, or proves nothing: users' own calls have to find out.
        circuit.blind = True
        target.breaker.reserve_probes(0)
        target.breaker.expect_probe(0)
        raise RedisUnavailable("PROBE", "probe-not-permitted")

    def _complain(self) -> None:
        if not self._complained:
            logger.warning(
                "The Redis user may not write %s*: background checks only PING, which misses a "
                "read-only server and a full disk. Grant it that key.",
                self._key,
            )
        self._complained = True

    # -- for health requests ---------------------------------------------------------------------

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

    def forget(self) -> None:
        """Let the next question be answered by a check of its own."""
        self._last = None

    def _fresh(self) -> Checked | None:
        last, interval = self._last, max(self.interval, LEAST_INTERVAL)
        recent = last is not None and time.monotonic() - last.at < 1.5 * interval
        return last if recent else None

    # -- what happens ----------------------------------------------------------------------------

    def _began(self, _: CallBegan) -> None:
        if self._may_start or not gevent_is_to_patch():
            self.start()

    def _failed(self, failure: RedisFailed) -> None:
        self._of_writes = self._of_writes or failure.error.reason in _OF_WRITES

    def _changed(self, transition: Transition) -> None:
        for circuit in self._circuits():
            state = circuit.target.breaker.state
            if state is CircuitState.OPEN and not circuit.opened:
                self._opened(circuit)
            elif state in (CircuitState.CLOSED, CircuitState.DISABLED) and circuit.opened:
                circuit.opened = circuit.blind = circuit.alone = self._of_writes = False
                proven = transition.reason != "operator"
                circuit.recovered_at = time.monotonic() if proven else None

    def _opened(self, circuit: _Circuit) -> None:
        now = time.monotonic()
        circuit.opened = True
        recently = circuit.recovered_at is not None and now - circuit.recovered_at < SETTLED
        longer = min(2 * circuit.interval, self._longest)
        circuit.interval = longer if recently else self._recovery_interval
        if not self._recovery_interval:
            return
        circuit.due = now + self._pause(circuit)
        if (self._may_start or not gevent_is_to_patch()) and self._worker.wake():
            circuit.target.breaker.reserve_probes(self._reservation())
            circuit.target.breaker.expect_probe(circuit.due - now + self._patience)

    # -- in the background -----------------------------------------------------------------------

    def _turn(self) -> float | None:
        host = self._host
        if host is not None:
            host.look()
        if not self._wanted():
            if host is not None:
                host.beat(0)
            return None
        pause = self._take_turn()
        if pause is not None and host is not None:
            pause = min(pause, host.pause)
            host.beat(pause)
        return pause

    def _take_turn(self) -> float | None:
        circuits = self._circuits()
        pauses = [
            self._recover(circuit) if self._asks(circuit) else self._leave_it(circuit)
            for circuit in circuits
            if self._is_open(circuit)
        ]
        if self.interval:
            if time.monotonic() >= self._next_check or any(map(self._is_half_open, circuits)):
                self._check_regularly([one for one in circuits if not self._is_kept_out(one)])
                self._next_check = time.monotonic() + self.interval
            pauses += [self._next_check - time.monotonic(), *map(self._rest, circuits)]
        self._bus.emit(Tick())
        return min(pauses) if pauses else None

    def _asks(self, circuit: _Circuit) -> bool:
        """Whether this process asks an open breaker's server, and not another one of the host."""
        host = self._host
        if host is None or circuit.target.breaker is not host.breaker:
            return True
        if host.is_over and not circuit.alone:
            circuit.due = 0.0  # others are served again
        circuit.alone = host.is_over
        if host.asks:
            host.beat(self._patience)
        return host.asks

    def _leave_it(self, circuit: _Circuit) -> float:
        """Have users wait for what another process finds out; return when to look again."""
        circuit.target.breaker.expect_probe(self._patience)
        return self._recovery_interval

    def _recover(self, circuit: _Circuit) -> float:
        """Ask an open breaker's server if that is due; return the seconds until it is again."""
        started = time.monotonic()
        if started < circuit.due:
            return circuit.due - started
        healthy = self._check([circuit]).healthy
        # The second success does not wait for another interval.
        while healthy and circuit.target.breaker.state is CircuitState.HALF_OPEN:
            healthy = self._check([circuit]).healthy
        now = time.monotonic()
        circuit.due = max(now, started + self._pause(circuit))
        if circuit.target.breaker.state is CircuitState.OPEN and not circuit.blind:
            circuit.target.breaker.expect_probe(circuit.due - now + self._patience)
        return circuit.due - now

    def _check_regularly(self, circuits: Sequence[_Circuit]) -> None:
        healthy = bool(circuits) and self._check(circuits).healthy
        if healthy and self._advised != os.getpid():
            self._advised = os.getpid()
            advise(self._client(), self._gate.timeout)
        for circuit in circuits:
            while healthy and circuit.target.breaker.state is CircuitState.HALF_OPEN:
                healthy = self._check([circuit]).healthy

    def _rest(self, circuit: _Circuit) -> float:
        """Return the seconds until an open breaker lets a regular check probe."""
        breaker = circuit.target.breaker
        is_open = breaker.state is CircuitState.OPEN
        return breaker.retry_after + 0.001 if is_open else self.interval

    def _is_open(self, circuit: _Circuit) -> bool:
        state = circuit.target.breaker.state
        return bool(self._recovery_interval) and state is CircuitState.OPEN

    @staticmethod
    def _is_half_open(circuit: _Circuit) -> bool:
        return circuit.target.breaker.state is CircuitState.HALF_OPEN

    @staticmethod
    def _is_kept_out(circuit: _Circuit) -> bool:
        return circuit.target.breaker.state in (CircuitState.OPEN, CircuitState.FORCED_OPEN)

    def _wanted(self) -> bool:
        return bool(self.interval) or any(self._is_open(circuit) for circuit in self._circuits())

    def _circuits(self) -> tuple[_Circuit, ...]:
        client = self._client()
        find = getattr(client, "probe_targets", None)
        targets: Sequence[Probed] = () if find is None else find()
        if not targets and not self._known:
            targets = (_Server(client, self._gate),)
        known = {circuit.target: circuit for circuit in self._known}
        if targets and tuple(known) != tuple(targets):
            self._known = tuple(
                known.get(target) or _Circuit(target, self._recovery_interval) for target in targets
            )
        return self._known

    def _pause(self, circuit: _Circuit) -> float:
        return circuit.interval * dice.uniform(1 - JITTER, 1 + JITTER)

    def _reservation(self) -> float:
        return self.interval or self._patience

    @property
    def _patience(self) -> float:
        """Seconds by which a check may be late until nobody waits for it any more."""
        return 2 * self._gate.timeout + 1.0
