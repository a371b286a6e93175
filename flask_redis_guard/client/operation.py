"""One user-visible operation: its permit, its one deadline, and whose it is."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from flask_redis_guard.core.breaker import Permit

if TYPE_CHECKING:
    from flask_redis_guard.client.gate import Gate

INFINITE = float("inf")

#: How often an operation may read, after its deadline, what has arrived already: megabytes, yet a
#: server that never stops talking keeps nobody.
_LATE_READS = 64

_current: ContextVar[Operation | None] = ContextVar("redis_guard_operation", default=None)


def _whoami() -> Any:
    """Return what identifies the running greenlet or thread.

    A context variable is inherited by a greenlet or a thread that copies its parent's context
    (``gevent.spawn``, ``asyncio.to_thread``), so the variable alone does not tell whose it is.
    """
    greenlet = sys.modules.get("greenlet")
    return threading.get_ident() if greenlet is None else greenlet.getcurrent()


class Trust:
    """What an operation relies on beside its server: that it is the primary still."""

    __slots__ = ("failed", "revoked")

    def __init__(self) -> None:
        #: Whether an operation that relied on it has failed: it is to be confirmed again.
        self.failed = False
        #: Whether it was wrong: what was done in the meantime may be lost.
        self.revoked = False


class Operation:
    """What the guard knows of a call in progress; every layer below finds it by :func:`current`.

    :param gate: whose operation it is. Inside one gate's operation another gate's client may be
        used (a credential provider that asks a second Redis): that takes a permit of its own.
    :param name: the command's name, for errors and metrics.
    :param timeout: seconds for all its waiting together.
    :param permit: the breaker's permit; ``None`` when the in-memory store serves it.
    """

    __slots__ = (
        "_candidates",
        "_entered",
        "_final",
        "_late_reads",
        "_outer",
        "broken",
        "deadline",
        "gate",
        "in_memory",
        "name",
        "owner",
        "patience",
        "permit",
        "settled",
        "split",
        "started",
        "trust",
    )

    def __init__(self, gate: Gate, name: str, timeout: float, permit: Permit | None) -> None:
        self.gate = gate
        self.name = name
        self.permit = permit
        #: Whether the development store serves this operation instead of Redis.
        self.in_memory = permit is None
        self.started = time.monotonic()
        self.deadline = self.started + timeout
        #: Seconds by which a blocking command that was sent may exceed the deadline.
        self.patience = 0.0
        #: Whether the breaker has been told how it ended; an operation has one outcome.
        self.settled = False
        #: The error that broke one of its connections: nothing may be sent a second time then.
        self.broken: BaseException | None = None
        #: The last ``TRYAGAIN``: a slot on its way has some of the keys on each of two nodes.
        self.split: Exception | None = None
        #: What it relies on; ``None`` where there are no sentinels.
        self.trust: Trust | None = None
        self.owner = _whoami()
        self._outer: Operation | None = None
        self._entered = False
        self._late_reads = 0
        self._candidates = 0
        self._final = self.deadline

    def remaining(self) -> float:
        """Return the seconds left; negative when the deadline has passed."""
        return self.deadline + self.patience - time.monotonic()

    def may_read_late(self) -> bool:
        """Whether to look once more for a reply, without waiting, when the deadline has passed."""
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
        final, self._candidates = self.deadline, candidates
        self._final = final
        try:
            yield
        finally:
            self.deadline, self._candidates = final, 0

    def next_share(self) -> None:
        """While sharing, set the deadline to a third of what is left, or an even share of it."""
        if self._candidates:
            now = time.monotonic()
            self.deadline = now + (self._final - now) / min(self._candidates + 1, 3)
            self._candidates = max(1, self._candidates - 1)

    @property
    def active(self) -> bool:
        """Whether it is under way: a copied context may outlive it."""
        return self._entered and not self.settled

    def __enter__(self) -> Operation:
        self._outer, self._entered = _innermost(), True
        _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        _current.set(self._outer)


def _innermost() -> Operation | None:
    """Return the operation that the running thread or greenlet has entered last, of any gate."""
    operation = _current.get()
    if operation is None:
        return None
    me = _whoami()
    while operation is not None and not (operation.active and operation.owner == me):
        operation = operation._outer
    return operation


def current(gate: Gate) -> Operation | None:
    """Return the operation of a gate that the running thread or greenlet is in, if any."""
    operation = _innermost()
    while operation is not None and operation.gate is not gate:
        operation = operation._outer
    return operation


class DeadlineLock:
    """A lock held across I/O: one waits for it no longer than for Redis itself.

    Reentrant; made anew in every process and once gevent has patched threads.

    :param gate: whose operations wait for it.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._locks: dict[object, Any] = {}

    def __enter__(self) -> None:
        key = (os.getpid(), threading.RLock)
        lock = self._locks.get(key) or self._locks.setdefault(key, threading.RLock())
        operation = current(self._gate)
        left = INFINITE if operation is None else operation.remaining()
        if not lock.acquire(timeout=-1 if left == INFINITE else max(0.0, left)):
            raise TimeoutError("the operation's deadline has passed")

    def __exit__(self, *_: object) -> None:
        self._locks[(os.getpid(), threading.RLock)].release()
