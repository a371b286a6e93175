"""One user-visible operation: its permit, its one deadline, and whose it is."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

from flask_redis_guard.core.breaker import Permit

if TYPE_CHECKING:
    from flask_redis_guard.client.gate import Gate

INFINITE = float("inf")

#: How often an operation may read, once it has lasted longer than it may wait, what has arrived
#: already: megabytes, yet a server that never stops talking keeps nobody.
_LATE_READS = 64

#: Waits are cut into parts, so that it shows how late this process came back from each.
_PARTS = 8

#: Seconds that are no time to wait for.
_LEAST = 0.000_1

#: The longest part in seconds, where a command may block for long.
_LONGEST = 1.0

_modules = sys.modules

#: The operation entered last, in this context. :func:`current` tells whether it is the caller's.
innermost: ContextVar[Operation | None] = ContextVar("redis_guard_operation", default=None)


def _whoami() -> int:
    """Return what identifies the running greenlet or thread, as long as it runs.

    A context variable is inherited by a greenlet or a thread that copies its parent's context
    (``gevent.spawn``, ``asyncio.to_thread``), so the variable alone does not tell whose it is.

    It is a number, since the garbage collector of CPython crashes over a reference from garbage to
    the greenlet of a thread that has ended.
    """
    greenlet = _modules.get("greenlet")
    return threading.get_ident() if greenlet is None else id(greenlet.getcurrent())


class Trust:
    """What an operation relies on beside its server: that it is the primary still."""

    __slots__ = ("failed", "revoked")

    def __init__(self) -> None:
        #: Whether an operation that relied on it has failed: it is to be confirmed again.
        self.failed = False
        #: Whether it was wrong: what was done in the meantime may be lost.
        self.revoked = False


def _computing() -> float:
    """Return a clock that goes while other greenlets of this thread compute.

    With threads there is none: each of them is woken when its wait is over, and how late it got
    its turn shows in the wait itself.
    """
    monkey = sys.modules.get("gevent.monkey")
    return thread_time() if monkey is not None and monkey.is_module_patched("socket") else 0.0


class Operation:
    """What the guard knows of a call in progress.

    Only Redis's time counts: an operation may *wait* so many seconds in all, for a connection, for
    the network and for replies. What this process does meanwhile with other greenlets or threads,
    and time in which it does not run at all, is no waiting for Redis.

    :param gate: whose operation it is. Inside one gate's operation another gate's client may be
        used (a credential provider that asks a second Redis): that takes a permit of its own.
    :param name: the command's name, for errors and metrics.
    :param timeout: seconds for all its waiting together.
    :param permit: the breaker's permit; ``None`` when the in-memory store serves it.
    """

    #: Whether the development store serves this operation instead of Redis.
    in_memory = False
    #: Seconds that it has waited, and those in which this process was not there to be answered.
    waited = 0.0
    away = 0.0
    #: Seconds by which a blocking command that was sent may exceed its allowance.
    patience = 0.0
    #: Whether the breaker has been told how it ended; an operation has one outcome.
    settled = False
    #: Whether it waits no more because its circuit has opened meanwhile.
    given_up = False
    #: The error that broke one of its connections: nothing may be sent a second time then.
    broken: BaseException | None = None
    #: The last ``TRYAGAIN``: a slot on its way has some of the keys on each of two nodes.
    split: Exception | None = None
    #: What it relies on; ``None`` where there are no sentinels.
    trust: Trust | None = None
    #: Whether its work is being done.
    entered = False
    _outer: Operation | None = None
    _late_reads = 0
    _candidates = 0
    _final = 0.0

    def __init__(self, gate: Gate, name: str, timeout: float, permit: Permit | None) -> None:
        self.gate = gate
        self.name = name
        self.permit = permit
        if permit is None:
            self.in_memory = True
        self.started = monotonic()
        #: Seconds that it may wait in all.
        self.allowance = timeout
        #: The longest single wait, in seconds.
        self.part = timeout / _PARTS
        greenlet = _modules.get("greenlet")
        #: The greenlet or thread that it belongs to.
        self.owner = threading.get_ident() if greenlet is None else id(greenlet.getcurrent())

    def remaining(self) -> float:
        """Return the seconds that it may still wait; 0 or less when they are used up."""
        left = self.allowance + self.patience - self.waited
        # Parts of a second that no clock tells apart could be counted off for ever.
        return left if left > _LEAST else min(left, 0.0)

    def next_part(self) -> float:
        """Return how long the next single wait may be; 0 when no time is left."""
        left = self.remaining()
        return max(0.0, min(left, max(self.part, min(left / _PARTS, _LONGEST))))

    def count(self, began: float, asked: float, computing: float | None = None) -> None:
        """Take a wait off the allowance: as much of it as this process was there.

        :param began: when, on the monotonic clock.
        :param asked: how long it was to be at most; what exceeds it was not Redis's time.
        :param computing: what :func:`_computing` told then.
        """
        elapsed = monotonic() - began
        idle = elapsed if computing is None else elapsed - (_computing() - computing)
        # A part counts always, so that a process that never rests does not wait for ever.
        counted = min(asked, max(idle, elapsed / _PARTS))
        self.waited += counted
        self.away += elapsed - counted

    def wait(self, ready: Callable[[float], object], *, for_redis: bool = True) -> bool:
        """Wait until something is ready; who was woken late looks once more.

        One that has waited for half of its time gives up where another worker's word has opened
        its circuit meanwhile.

        :param ready: waits so many seconds at most, and tells whether it is ready.
        :param for_redis: whether it is Redis that keeps it waiting, and not another caller.
        :returns: false when the time is used up.
        """
        while asked := self.next_part():
            began, computing = monotonic(), _computing()
            done = ready(asked)
            self.count(began, asked, computing)
            if done:
                return True
            if 2 * self.waited >= self.allowance and self._may_give_up:
                self.given_up = self.gate.has_opened(self, for_redis=for_redis)
                if self.given_up:
                    self.allowance = self.waited
        return bool(ready(0))

    @property
    def _may_give_up(self) -> bool:
        """Whether its time is its own: not a blocking command's, nor shared by several servers."""
        return not self.patience and not self._candidates and self.permit is not None

    @property
    def was_away(self) -> bool:
        """Whether this process was away for most of the time: it cannot blame Redis."""
        return self.away > max(2 * self.waited, self.allowance)

    def may_read(self, now: float) -> bool:
        """Whether to read on at a time; a server that never stops talking keeps nobody."""
        if now - self.started <= self.allowance + self.patience:
            return True
        self._late_reads += 1
        return self._late_reads <= _LATE_READS

    @contextlib.contextmanager
    def sharing(self, candidates: int) -> Iterator[None]:
        """Ask one of several servers, so that one that hangs leaves time for the next.

        :param candidates: how many servers can be asked; each begins with :meth:`next_share`.
        """
        if self._candidates:
            yield
            return
        final, self._candidates = self.allowance, candidates
        self._final = final
        try:
            yield
        finally:
            self.allowance, self._candidates = final, 0

    def next_share(self) -> None:
        """While sharing, allow a third of what is left, or an even share of it."""
        if self._candidates:
            left = self._final - self.waited
            self.allowance = self.waited + left / min(self._candidates + 1, 3)
            self._candidates = max(1, self._candidates - 1)

    def began_late(self, began: float) -> bool:
        """Whether what it began had less than half of its time: that it is late says nothing.

        :param began: when, on the monotonic clock. While sharing, each has what it is given.
        """
        return not self._candidates and monotonic() - began < self.allowance / 2

    @property
    def active(self) -> bool:
        """Whether it is under way: a copied context may outlive it."""
        return self.entered and not self.settled

    def __enter__(self) -> Operation:
        outer = _entered_last()
        if outer is self:
            raise RuntimeError("an operation is entered once: it would be its own outer one")
        self._outer, self.entered = outer, True
        innermost.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.entered = False
        innermost.set(self._outer)


def _entered_last() -> Operation | None:
    """Return the operation that the running thread or greenlet has entered last, of any gate."""
    operation = innermost.get()
    if operation is None:
        return None
    me = _whoami()
    while operation is not None and not (operation.active and operation.owner == me):
        operation = operation._outer
    return operation


def current(gate: Gate) -> Operation | None:
    """Return the operation of a gate that the running thread or greenlet is in, if any."""
    operation = _entered_last()
    while operation is not None and operation.gate is not gate:
        operation = operation._outer
    return operation


class DeadlineLock:
    """A lock held across I/O: one waits for it no longer than for Redis itself.

    Reentrant, and free again whatever a signal handler raises in whichever line: who holds it is
    told by one atomic assignment, and a generator that is dropped runs its ``finally``.

    :param gate: whose operations wait for it.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._holders: dict[int, tuple[object]] = {}  # by process: a fork holds nothing
        self._waiting: deque[Any] = deque()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it.

        :raises TimeoutError: if others held it until the operation's time was used up.
        """
        pid, holder = os.getpid(), (_whoami(),)
        if self._holders.get(pid) == holder:
            yield
            return
        try:
            self._take(pid, holder)
            yield
        finally:
            if self._holders.get(pid) is holder:
                del self._holders[pid]
            with contextlib.suppress(IndexError, RuntimeError):
                self._waiting.popleft().release()

    def _take(self, pid: int, holder: tuple[object]) -> None:
        operation = current(self._gate)
        turn = threading.Lock()
        turn.acquire()

        def ready(seconds: float) -> bool:
            if self._holders.setdefault(pid, holder) is holder:
                return True
            self._waiting.append(turn)
            turn.acquire(timeout=seconds)
            return self._holders.setdefault(pid, holder) is holder

        while not (ready(_LONGEST) if operation is None else operation.wait(ready)):
            if operation is not None:
                raise TimeoutError("the operation's time is used up")
