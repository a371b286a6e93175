"""One worker's place among the workers of its host: what it publishes, and what it follows."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import Operation
from flask_redis_guard.core import hostview
from flask_redis_guard.core.breaker import (
    ANOTHER_WORKER,
    TOGETHER,
    CircuitBreaker,
    CircuitState,
    Transition,
)
from flask_redis_guard.core.hostview import HostView, OperatorCommand, WorkerState
from flask_redis_guard.core.process import ProcessLock, watch_forks
from flask_redis_guard.events import CallBegan, RedisFailed
from flask_redis_guard.host.board import Board, Pulse, SlotContent
from flask_redis_guard.host.places import BoardName, BoardRefused

logger = logging.getLogger("flask_redis_guard")

#: Seconds between two looks of a process that is busy.
LOOK_EVERY = 0.05
#: Seconds between two looks of one that is not: an operator's command is followed within a second.
IDLE = 0.8
#: The same while Redis is away, or may be.
ALERT = 0.1
#: Seconds that each worker leaves to the one before it to tell the world of something.
STAGGER = 0.3
#: Seconds before a worker that has no board looks for one again.
AGAIN = 30.0

#: What a worker tells the world once for all, and which times of the others say that it is told.
_MARKS = {"recovered": ("recovered_at", "proven_at"), "extended": ("extended_at",)}

_NEVER = float("inf")
_AWAY = (CircuitState.OPEN, CircuitState.HALF_OPEN)

#: The failures of a board; the last for one whose content is not what was written.
_UNUSABLE = (OSError, BoardRefused, ValueError)


@dataclass
class OwnRecord:
    """What this worker publishes of itself."""

    pid: int
    since: float
    state: str = CircuitState.CLOSED.value
    opened_at: float = 0.0
    proven_at: float = 0.0
    failures: int = 0
    failing_since: float = 0.0
    failing_from: float = 0.0
    failed_at: float = 0.0
    recovered_at: float = 0.0  # when it told the world of a recovery, and of a long outage
    extended_at: float = 0.0
    probes: bool = False
    obeyed: int = 0
    command: dict[str, Any] | None = None
    # What people are told: see telling.py.
    incident: int = 0
    seen_at: float = 0.0
    raised: list[list[Any]] = field(default_factory=list)
    telling: list[list[Any]] = field(default_factory=list)
    told: list[list[Any]] = field(default_factory=list)


class Membership:
    """What ties one app in this process to the board of its host.

    It joins with the first operation. Without a board, for whatever reason, the worker is for
    itself.

    :param name: which board.
    :param where: ``auto``, or a directory.
    :param gate: the app's gate. Its breaker is shared; on a cluster the part of it that stands
        for the cluster as a whole.
    :param threshold: failures in a row that open.
    :param window: seconds after which failures are forgotten.
    """

    def __init__(
        self, name: BoardName, where: str, gate: Gate, *, threshold: int, window: float
    ) -> None:
        #: Which board, and where.
        self.name = name
        self.where = where
        self._looks_on = False
        self._gate = gate
        #: What is shared.
        self.breaker: CircuitBreaker = getattr(gate.breaker, "whole", gate.breaker)
        self._threshold = threshold
        self._window = window
        self._lock = ProcessLock()
        self._board: Board | None = None
        self._pid = 0
        #: What this worker publishes of itself.
        self.own = OwnRecord(0, 0.0)
        self._pulse = Pulse()
        self._waiting: dict[Operation, None] = {}  # in the order in which they began to be late
        self._seen = b""
        self._opener = HostView()  # what was thought when this worker opened for it
        self._joined_at = 0.0
        self._over_at = 0.0
        self._join_again_at = 0.0
        self._complained = False
        #: What the host thinks, as of the last look.
        self.view = HostView()
        gate.host = self
        gate.bus.subscribe(CallBegan, self._began)
        gate.bus.subscribe(RedisFailed, self._failed)
        gate.bus.subscribe(Transition, self._changed)
        watch_forks(self)

    # -- joining and leaving ---------------------------------------------------------------------

    @property
    def joined(self) -> bool:
        """Whether this process has a slot."""
        return self._board is not None and self._pid == os.getpid()

    @property
    def slot(self) -> int | None:
        """The number of its slot."""
        return self._board.slot if self._board is not None and self.joined else None

    def look_on(self) -> None:
        """Take no slot in this process: it is no worker."""
        self._looks_on = True

    def join(self) -> bool:
        """Take a slot, unless there is one or none can be had.

        :returns: whether there is one.
        """
        if self.joined:
            return True
        with self._lock:
            if self._pid not in (0, os.getpid()):
                self.after_fork()
            wanted = self._board is None and not self._looks_on
            if wanted and time.monotonic() >= self._join_again_at:
                self._join()
            return self.joined

    def _join(self) -> None:
        now = time.monotonic()
        self._join_again_at = now + AGAIN
        try:
            board = Board(self.name, self.where)
            board.take_slot()
            self._board, self._pid, self._seen = board, os.getpid(), b""
            self.own.pid, self.own.since, self._joined_at = self._pid, time.time(), now
            self._note_state(now)
            self._inherit(board)
            self._publish(board)
            board.sweep()
        except _UNUSABLE as error:
            self._lose(error)
        else:
            self._gate.look_at = 0.0

    def _inherit(self, board: Board) -> None:
        """Keep what the worker before has left in this slot, that nothing is told twice, or not."""
        for found in board.read():
            if found.slot == board.slot:
                for name in ("raised", "told"):
                    left = found.record.get(name)
                    setattr(self.own, name, left if isinstance(left, list) else [])

    def after_fork(self) -> None:
        """Leave the parent's slot to the parent; the next operation takes another one."""
        board, self._board, self._pid = self._board, None, 0
        if board is not None:
            board.close()
        self.own = OwnRecord(0, 0.0, command=self.own.command, obeyed=self.own.obeyed)
        self._join_again_at = 0.0
        self._gate.look_at = _NEVER
        self._gate.bus.subscribe(CallBegan, self._began)

    def _began(self, _: CallBegan) -> None:
        self._gate.bus.unsubscribe(CallBegan, self._began)
        if self.join():
            self.look()

    def _lose(self, error: Exception) -> None:
        """Be for itself from now on; :meth:`beat` tries again later."""
        board, self._board = self._board, None
        if board is not None:
            board.close()
        self.view = HostView()
        self._gate.look_at = _NEVER
        if not self._complained:
            logger.warning(
                "The workers of this host cannot share what they know of Redis (%s): each is for "
                "itself. REDIS_GUARD_HOST_STATE names another directory, or turns this off",
                error,
            )
        self._complained = True

    # -- looking ---------------------------------------------------------------------------------

    def look(self) -> None:
        """Read what is new, and follow it."""
        if not self.joined and not self.join():
            return
        now, _ = time.monotonic(), self.breaker.state  # which may change by time alone
        self._gate.look_at = now + LOOK_EVERY
        with self._lock:
            if self._board is None:
                return
            try:
                self._say(self._board)
                self._read(self._board, now)
                steps = self._decide()
            except _UNUSABLE as error:
                self._lose(error)
                return
        for step in steps:  # outside the lock: they tell others
            step()

    def _say(self, board: Board) -> None:
        """Publish when this worker was answered last, and since when it waits for an answer."""
        self._waiting = {each: None for each in self._waiting if not each.settled}
        pulse = self._pulse._replace(
            succeeded_at=self._gate.succeeded,
            asked_at=min((each.started for each in self._waiting), default=0.0),
        )
        if pulse != self._pulse:
            self._pulse = pulse
            board.pulse(pulse)

    def waits(self, operation: Operation) -> None:
        """Publish that an operation has waited for half of its time, and read what is new."""
        self._gate.curious = True
        with self._lock:
            if self._board is None or not self._is_shared:
                return
            self._waiting[operation] = None
            try:
                self._say(self._board)
                self._read(self._board, time.monotonic())
            except _UNUSABLE as error:
                self._lose(error)

    @property
    def is_away(self) -> bool:
        """Whether the host refuses, as of the last look, and this worker is to follow."""
        return self.view.refusing and self._is_shared and self._state is CircuitState.CLOSED

    def answered(self) -> None:
        """Publish that Redis has answered."""
        self._gate.curious = False
        with self._lock:
            if self._board is None or not self.joined:
                return
            self._pulse = self._pulse._replace(heard_at=time.monotonic())
            try:
                self._say(self._board)
            except _UNUSABLE as error:
                self._lose(error)

    def _read(self, board: Board, now: float) -> None:
        epoch = board.epoch()
        if epoch != self._seen or not self._is_quiet:
            self._seen = epoch
            self.view = self._derive(board, now)

    def _derive(self, board: Board, now: float) -> HostView:
        self._note_state(now)
        # What this worker says of itself is not taken from the file, which may have been spoilt.
        own = SlotContent(board.slot or 0, vars(self.own), self._pulse, True)
        others = [found for found in board.read() if found.slot != board.slot]
        return hostview.derive(
            [state_of(found) for found in (own, *others)],
            now,
            threshold=self._threshold,
            window=self._window,
            timeout=self._gate.timeout,
            answered=self._gate.succeeded,
            over_at=self._over_at,
            command=command_of(board.command()),
        )

    @property
    def _state(self) -> CircuitState:
        latest = self.breaker.latest
        return CircuitState.CLOSED if latest is None else latest.current

    @property
    def _is_quiet(self) -> bool:
        return self._state is CircuitState.CLOSED and not self.view.troubled

    def _decide(self) -> list[Callable[[], object]]:
        view, steps = self.view, list[Callable[[], object]]()
        command = view.command
        if command is not None and command.number != self.own.obeyed:
            steps.append(lambda: self._obey(command))
        if self._gate.in_outage_of_test:
            return steps
        if view.refusing and self._state is CircuitState.CLOSED:
            self._opener = view
            reason = TOGETHER if view.together else ANOTHER_WORKER
            steps.append(lambda: self.breaker.adopt(view.failures, reason))
        elif not view.refusing and self.breaker.borrowed:
            steps.append(self.breaker.release)
        return steps

    def _obey(self, command: OperatorCommand) -> None:
        with self._lock:
            if self.own.obeyed == command.number:
                return
            self.own.obeyed, self.own.command = command.number, asdict(command)
        if command.action == hostview.RESET and command.at < self._joined_at:
            self._tell()  # it was given to those who were there then
            return
        logger.warning(
            "An operator's command for all workers of this host is carried out: %s, given by %s at "
            "%s",
            *(command.action, command.who, time.strftime("%F %T %z", time.localtime(command.when))),
        )
        breaker = self._gate.breaker
        carry_out = {
            hostview.RESET: breaker.reset,
            hostview.FORCE_OPEN: breaker.force_open,
            hostview.DISABLE: breaker.disable,
        }
        carry_out[command.action]()
        self._tell()

    # -- publishing ------------------------------------------------------------------------------

    def _changed(self, _: Transition) -> None:
        self._tell()

    def _failed(self, failure: RedisFailed) -> None:
        if not self.joined:
            return
        now = time.monotonic()
        with self._lock:
            own, count = self.own, self.breaker.failure_count
            if count and self._state is CircuitState.CLOSED and not self._gate.in_outage_of_test:
                if count == 1 or not own.failures or self._was_answered(own.failing_since):
                    late = self._gate.timeout if failure.error.reason == "timeout" else 0.0
                    own.failures, own.failing_since, own.failing_from = 0, now, now - late
                own.failures += 1
                own.failed_at = now
        self._tell()
        self.look()

    def _was_answered(self, since: float) -> bool:
        """Whether Redis has answered anybody since a time, as far as this worker knows."""
        if self._board is None:
            return True
        try:
            return any(found.pulse.succeeded_at > since for found in self._board.read())
        except _UNUSABLE as error:
            self._lose(error)
            return True

    def _tell(self) -> None:
        """Publish the state as it is now."""
        if not self.joined:
            return
        with self._lock:
            board = self._board
            if board is None:
                return
            self._note_state(time.monotonic())
            try:
                self._publish(board)
            except _UNUSABLE as error:
                self._lose(error)

    def _note_state(self, now: float) -> None:
        """Take note of what has become of the breaker since the last time."""
        if self._gate.in_outage_of_test:  # a test's outage is its own
            return
        own, breaker, state = self.own, self.breaker, self._state
        before, own.state = CircuitState(own.state), state.value
        reason = "" if breaker.latest is None else breaker.latest.reason
        if not breaker.failure_count:
            own.failures = 0
        if state in _AWAY and before not in _AWAY:
            own.opened_at = now
            if reason in (ANOTHER_WORKER, TOGETHER):
                own.opened_at = self._opener.opened_at
                own.failing_since = self._opener.failing_since
            elif not own.failures:
                own.failing_since = now
        elif state not in _AWAY and before in _AWAY:
            own.opened_at, own.failures, own.failing_since = 0.0, 0, 0.0
            if reason == "operator":
                self._over_at = now  # for this worker alone, what is known so far is over
            elif reason != ANOTHER_WORKER:
                own.proven_at = now

    def _publish(self, board: Board) -> None:
        board.pulse(self._pulse)
        board.write(vars(self.own))

    @property
    def pause(self) -> float:
        """Seconds within which the background check should look again."""
        return IDLE if self._is_quiet else ALERT

    def beat(self, seconds: float) -> None:
        """Say that this worker is at work, and can probe.

        :param seconds: within which it will say so again; 0 where it will not.
        """
        if not self.joined and not self.join():
            return
        now, probes = time.monotonic(), seconds > 0
        with self._lock:
            board = self._board
            if board is None:
                return
            self._pulse = self._pulse._replace(beat_at=now, due_at=now + seconds if probes else 0.0)
            try:
                if not board.is_there:
                    board = self._move(board)
                news = probes is not self.own.probes
                self.own.probes = probes
                board.pulse(self._pulse)
                # All of it, though nothing may be new: somebody may have emptied the file.
                board.write(vars(self.own), ring=news)
            except _UNUSABLE as error:
                self._lose(error)

    def _move(self, old: Board) -> Board:
        """Go to where workers that start now go: somebody has deleted the file."""
        board = Board(self.name, self.where)
        board.take_slot()
        self._board, self._seen = board, b""
        old.close()
        return board

    def slots(self) -> list[SlotContent] | None:
        """Return what is on the board now; ``None`` for a worker that is for itself."""
        if not self.joined or self._gate.in_outage_of_test:
            return None
        with self._lock:
            try:
                return None if self._board is None else self._board.read()
            except _UNUSABLE as error:
                self._lose(error)
                return None

    def publish(self, **fields: Any) -> None:
        """Change what this worker says of itself."""
        with self._lock:
            for name, value in fields.items():
                setattr(self.own, name, value)
            if self._board is None or not self.joined or self._gate.in_outage_of_test:
                return
            try:
                self._publish(self._board)
            except _UNUSABLE as error:
                self._lose(error)

    # -- for what is told once for the host ------------------------------------------------------

    @property
    def failing_since(self) -> float:
        """When the first worker met the outage, on the monotonic clock; 0 if none has."""
        return self._opener.failing_since

    @property
    def patience(self) -> float:
        """Seconds that this worker leaves to others, who come before it, to tell."""
        fresh, slot = self.view.fresh, self.slot
        return STAGGER * (fresh.index(slot) if slot in fresh else 0)

    def tells(self, what: str, since: float) -> bool:
        """Whether this worker is to tell the world, because no other one has.

        Workers that ask at the same time agree by a lock that none waits for: one that finds it
        taken leaves it to the one that has it.

        :param what: ``recovered`` or ``extended``.
        :param since: the outage's beginning, on the monotonic clock.
        """
        if not self.joined or self._gate.in_outage_of_test:
            return True
        marks = _MARKS[what]
        with self._lock:
            board = self._board
            if board is None:
                return True
            try:
                with board.deciding(list(_MARKS).index(what)) as mine:
                    first = mine and not any(
                        found.record.get(mark, 0.0) >= since
                        for found in board.read()
                        for mark in marks
                        if found.slot != board.slot
                    )
                    if first:
                        setattr(self.own, marks[0], time.monotonic())
                        self._publish(board)
            except (*_UNUSABLE, TypeError) as error:
                self._lose(error)
                return True
        return first

    # -- for the background check ----------------------------------------------------------------

    @property
    def asks(self) -> bool:
        """Whether it is this worker's turn to ask whether Redis is back."""
        prober = self.view.prober if self._is_shared else None
        return self.is_over or prober is None or prober == self.slot

    @property
    def is_over(self) -> bool:
        """Whether Redis is away for this worker alone."""
        return self._is_shared and self.own.opened_at > 0 and not self.view.refusing

    @property
    def _is_shared(self) -> bool:
        return self.joined and not self._gate.in_outage_of_test


def state_of(found: SlotContent) -> WorkerState:
    """Return what a slot says; one that makes no sense counts as dead."""
    record, pulse = found.record, found.pulse
    try:
        return WorkerState(
            slot=found.slot,
            pid=int(record["pid"]),
            state=CircuitState(record["state"]),
            alive=found.alive,
            opened_at=float(record["opened_at"]),
            proven_at=float(record["proven_at"]),
            failures=int(record["failures"]),
            failing_since=float(record["failing_since"]),
            failing_from=float(record["failing_from"]),
            failed_at=float(record["failed_at"]),
            probes=record["probes"] is True,
            command=command_of(record["command"]),
            obeyed=int(record["obeyed"]),
            **pulse._asdict(),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return WorkerState(found.slot, 0, alive=False)


def command_of(record: Any) -> OperatorCommand | None:
    """Return a command as it was read; ``None`` for what makes no sense."""
    if not isinstance(record, dict):
        return None
    try:
        return OperatorCommand(
            number=int(record["number"]),
            action=str(record["action"]),
            at=float(record["at"]),
            when=float(record["when"]),
            who=str(record["who"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
