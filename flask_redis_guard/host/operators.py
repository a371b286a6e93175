"""What an operator sees of the workers of a host, and commands all of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from flask_redis_guard.core import hostview
from flask_redis_guard.core.hostview import OperatorCommand, WorkerState, newest
from flask_redis_guard.host.board import Board
from flask_redis_guard.host.membership import Membership, command_of, state_of
from flask_redis_guard.host.places import BoardRefused, folders

#: Characters of who gave a command that are kept.
LONGEST = 100


@dataclass(frozen=True)
class WorkerReport:
    """One worker process of this host, as it has last said itself."""

    #: Its place on the board; the lowest comes first where one acts for all.
    slot: int
    #: Its process id.
    pid: int
    #: The state of its circuit.
    state: str
    #: Failures in a row that count.
    failures: int
    #: Seconds since it was last heard of; ``None`` where it has no background check.
    heard: float | None
    #: Whether it does what it promised: a stopped process does not.
    responds: bool
    #: The number of the last operator's command that it has carried out; 0 for none.
    obeyed: int
    #: Whether it is the one that asks whether Redis is back.
    probes: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as what JSON can say."""
        return asdict(self)


class Operators:
    """The workers of one app on this host, seen from any process of the same user.

    :param membership: of the app in this process, which need not have joined.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    def workers(self) -> list[WorkerReport]:
        """Return all living workers, the lowest slot first.

        :raises BoardRefused: if there is no board to be had.
        """
        return [report for board in self._boards() for report in self._reports(board)]

    def command(self) -> OperatorCommand | None:
        """Return the command in force.

        :raises BoardRefused: if there is no board to be had.
        """
        return newest(_known(board) for board in self._boards())

    def give(self, action: str, who: str) -> OperatorCommand:
        """Command all workers; they carry it out within a second, whether Redis answers or not.

        :param action: ``reset``, ``force-open`` or ``disable``.
        :param who: gives it, for their log.
        :raises ValueError: for another action.
        :raises BoardRefused: if there is no worker, or it cannot be written.
        """
        if action not in hostview.ACTIONS:
            raise ValueError(f"an action is one of {', '.join(hostview.ACTIONS)}")
        boards = list(self._boards())
        if not boards:
            raise BoardRefused("no worker of this app runs on this host as this user")
        who = "".join(c if c.isprintable() else "?" for c in who)[:LONGEST]
        with contextlib.ExitStack() as stack:
            for board in boards:
                stack.enter_context(board.commanding())
            before = newest(_known(board) for board in boards)
            number = 1 if before is None else before.number + 1
            command = OperatorCommand(number, action, time.monotonic(), time.time(), who)
            for board in boards:
                try:
                    board.write_command(asdict(command))
                except OSError as error:
                    raise BoardRefused(f"the command cannot be written: {error}") from None
        return command

    def wait(self, command: OperatorCommand, seconds: float) -> tuple[int, int]:
        """Wait until all workers have carried a command out.

        :returns: how many have, and how many there are.
        """
        end = time.monotonic() + seconds
        while True:
            reports = self.workers()
            done = sum(report.obeyed >= command.number for report in reports)
            if done == len(reports) or time.monotonic() >= end:
                return done, len(reports)
            time.sleep(0.02)

    def _boards(self) -> Iterator[Board]:
        """Give the boards on which somebody is: a shell may know other directories first."""
        name, where = self._membership.name, self._membership.where
        refused: list[str] = []
        for path in folders(where):
            try:
                board = Board(name, str(path), create=False)
                if any(found.alive for found in board.read()):
                    yield board
            except (BoardRefused, OSError) as error:
                refused.append(str(error))

    def _reports(self, board: Board) -> list[WorkerReport]:
        now = time.monotonic()
        states = [state_of(found) for found in board.read() if found.alive]
        view = hostview.derive(states, now, threshold=1_000_000, window=0.0)
        return [_report(state, now, view.prober) for state in states if state.alive]


def _known(board: Board) -> OperatorCommand | None:
    """Return the last command of a board, wherever on it."""
    states = (state_of(found) for found in board.read() if found.alive)
    return newest((command_of(board.command()), *(state.command for state in states)))


def _report(state: WorkerState, now: float, prober: int | None) -> WorkerReport:
    return WorkerReport(
        slot=state.slot,
        pid=state.pid,
        state=state.state.value,
        failures=state.failures,
        heard=round(max(0.0, now - state.beat_at), 1) if state.due_at else None,
        responds=state.is_fresh(now) if state.due_at else state.alive,
        obeyed=state.obeyed,
        probes=state.slot == prober,
    )
