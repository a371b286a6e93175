"""What the workers of a host think together: a pure function of what each says of itself.

No worker decides for another one. Each reads what all have published and derives the same view,
so there is nothing to agree on and nothing to wait for. What is read here may be stale, half
written or garbage: the worst that it can do is to have a worker refuse until Redis has been asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from flask_redis_guard.core.breaker import CircuitState

#: Seconds by which a worker may be later than it promised before others take over from it.
GRACE = 1.2
#: Seconds by which a clock reading may lie ahead: beyond it the slot is garbage.
AHEAD = 1.0
#: Failures of several workers together open their breakers once they reach over so many seconds:
#: within that time a worker that Redis answers has said so.
SPAN = 0.25
#: Seconds by which an operation that is answered may have begun after one that is not, though the
#: server stopped in between.
REORDERED = 0.05
#: Seconds of an outage after which the next worker asks whether Redis is back, in turn: the one
#: before may be cut off on its own.
TURN = 10.0

#: What an operator may command.
RESET, FORCE_OPEN, DISABLE = "reset", "force-open", "disable"
ACTIONS = (RESET, FORCE_OPEN, DISABLE)

_AWAY = (CircuitState.OPEN, CircuitState.HALF_OPEN)


@dataclass(frozen=True, slots=True)
class OperatorCommand:
    """What an operator wants of all workers; the one with the highest number is in force."""

    number: int
    #: One of :data:`ACTIONS`.
    action: str
    #: When it was given, on the monotonic clock, and in seconds since the epoch.
    at: float
    when: float
    #: Who gave it, for the log.
    who: str

    @property
    def sane(self) -> bool:
        """Whether it can have been written by this package."""
        return (
            self.action in ACTIONS
            and self.number > 0
            and math.isfinite(self.at)
            and math.isfinite(self.when)
        )


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What one worker says of itself. All times are of the monotonic clock, 0 for never."""

    slot: int
    pid: int
    state: CircuitState = CircuitState.CLOSED
    #: Whether its process lives: the kernel says so, not the process.
    alive: bool = True
    #: When its breaker left the closed state, or that of the worker whose word opened it.
    opened_at: float = 0.0
    #: When its own probes last closed its breaker.
    proven_at: float = 0.0
    #: Failures in a row that no answer to any worker has interrupted, as far as it knows.
    failures: int = 0
    #: When the first of these was noticed, when the operation of that one began, and when the
    #: last was noticed.
    failing_since: float = 0.0
    failing_from: float = 0.0
    failed_at: float = 0.0
    #: When the last operation began that Redis has answered.
    succeeded_at: float = 0.0
    #: When the first of its operations began that have waited for half of their time; 0 for none.
    asked_at: float = 0.0
    #: When one of these was answered last: Redis is slow, but there.
    heard_at: float = 0.0
    #: Whether a thread of it can ask whether Redis is back.
    probes: bool = False
    #: When it was last heard of, and when it will be again at the latest.
    beat_at: float = 0.0
    due_at: float = 0.0
    #: The last command that it knows, and the number of the last that it has carried out.
    command: OperatorCommand | None = None
    obeyed: int = 0

    def is_sane(self, now: float) -> bool:
        """Whether all of it can be true at a time."""
        times = (
            *(self.opened_at, self.proven_at, self.failing_since, self.failing_from),
            *(self.failed_at, self.succeeded_at, self.beat_at, self.asked_at, self.heard_at),
        )
        return (
            all(0.0 <= time <= now + AHEAD for time in times)
            and math.isfinite(self.due_at)
            and 0 <= self.failures < 1_000_000
        )

    def is_fresh(self, now: float) -> bool:
        """Whether it does what it promised: a stopped process lives and does nothing."""
        return self.alive and now <= self.due_at + GRACE


@dataclass(frozen=True, slots=True)
class HostView:
    """What all workers of a host know together."""

    #: Whether Redis is away, as far as anybody knows who has not been answered since.
    refusing: bool = False
    #: Whether no breaker has opened yet, and the failures of all say that all should.
    together: bool = False
    #: When the first breaker opened; 0 if none has.
    opened_at: float = 0.0
    #: When the first of the failures was noticed that led there.
    failing_since: float = 0.0
    #: How many they were.
    failures: int = 0
    #: What opened before is over: a worker's probes were answered, or an operator says so.
    over_at: float = 0.0
    #: The slots of those who do what they promised, in their order.
    fresh: tuple[int, ...] = ()
    #: The slot of the one whose turn it is to ask whether Redis is back, while it is away.
    prober: int | None = None
    #: The command in force.
    command: OperatorCommand | None = None

    @property
    def troubled(self) -> bool:
        """Whether anything is known that a closer look may change."""
        return self.refusing or self.failures > 0


def derive(
    workers: Iterable[WorkerState],
    now: float,
    *,
    threshold: int,
    window: float,
    timeout: float = 0.5,
    answered: float = 0.0,
    over_at: float = 0.0,
    command: OperatorCommand | None = None,
) -> HostView:
    """Work out what a host thinks.

    A worker's opening convinces others unless Redis has answered one of them since that worker
    began to fail: then it is that worker which is cut off, or Redis is only half dead, which
    each finds out for itself.

    :param workers: what all slots say, those of dead processes too.
    :param now: monotonic time in seconds.
    :param threshold: failures in a row, of all workers together, that open.
    :param window: seconds after which failures that were the last are forgotten.
    :param timeout: seconds after which an operation fails that is not answered.
    :param answered: when the last operation of the caller began that Redis has answered.
    :param over_at: what opened before this is over for the caller.
    :param command: the command that is written beside the slots.
    """
    living = [worker for worker in workers if worker.alive and worker.is_sane(now)]
    command = newest((command, *(worker.command for worker in living)))
    if command is not None and command.action == RESET and command.at <= now + AHEAD:
        over_at = max(over_at, command.at)
    over_at = max([over_at, *(worker.proven_at for worker in living)])
    answered = max([answered, *(worker.succeeded_at for worker in living)])

    fresh = tuple(sorted(worker.slot for worker in living if worker.is_fresh(now)))
    away = [
        worker
        for worker in living
        if worker.state in _AWAY and worker.opened_at > over_at and worker.failing_since >= answered
    ]
    if away:
        first = min(away, key=lambda worker: (worker.opened_at, worker.slot))
        able = sorted(w.slot for w in away if w.probes and w.slot in fresh)
        turn = int(max(0.0, now - first.opened_at) // TURN)
        return HostView(
            refusing=True,
            opened_at=first.opened_at,
            failing_since=min(worker.failing_since for worker in away),
            failures=first.failures,
            over_at=over_at,
            fresh=fresh,
            prober=able[turn % len(able)] if able else None,
            command=command,
        )
    failing = [
        worker
        for worker in living
        if worker.failures
        and worker.state is CircuitState.CLOSED
        and worker.failing_since >= answered
        and worker.failing_since > over_at
        and now - worker.failed_at <= window
    ]
    failures = sum(worker.failures for worker in failing)
    began = min((worker.failing_from for worker in failing), default=now)
    heard = max([answered, *(worker.heard_at for worker in living)]) - REORDERED
    if any(heard <= worker.failing_from < worker.failing_since for worker in failing):
        # One has waited in vain for all of its time, in which Redis has answered nobody.
        # Workers that wait as well need not do so for as long, and count as one failure each: not
        # each of their operations, so that a short stall under two workers opens nothing.
        others = [worker for worker in living if worker not in failing]
        failures += sum(_waits(worker, now, timeout, answered) for worker in others)
    together = failures >= threshold and now - began >= SPAN
    return HostView(
        refusing=together,
        together=together,
        opened_at=now if together else 0.0,
        failing_since=min((worker.failing_since for worker in failing), default=0.0),
        failures=failures,
        over_at=over_at,
        fresh=fresh,
        command=command,
    )


def _waits(worker: WorkerState, now: float, timeout: float, answered: float) -> bool:
    """Whether a worker waits for an answer, for a time in which Redis has answered nobody."""
    return (
        worker.state is CircuitState.CLOSED
        and worker.asked_at >= max(answered - REORDERED, worker.succeeded_at)
        and timeout / 2 <= now - worker.asked_at <= 1.5 * timeout
    )


def newest(commands: Iterable[OperatorCommand | None]) -> OperatorCommand | None:
    """Return the command with the highest number of those that were kept."""
    known = [command for command in commands if command is not None and command.sane]
    return max(known, key=lambda command: (command.number, command.when), default=None)
