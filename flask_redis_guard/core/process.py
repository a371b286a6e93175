"""What is right in every process and under gevent: the lock, and the worker thread."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import weakref
from _thread import RLock
from collections.abc import Callable
from typing import Any, Protocol

logger = logging.getLogger("flask_redis_guard")

#: Seconds after which a worker takes its next turn when one failed unexpectedly.
AFTER_ERROR = 5.0


class ProcessLock(RLock):  # type: ignore[misc]
    """A mutex for a few lines of pure code, never held across I/O or a foreign callback.

    It is the interpreter's own lock, entered by ``with`` and nothing else: an exception that a
    signal handler raises comes before it is taken or after it is released, not in between. It is
    reentrant, since a signal handler or a finalizer may run what takes it again. After a fork the
    child gets it free, unless the forking thread itself holds it. Under gevent it excludes other
    threads only: greenlets do not take turns in code that does not wait.
    """

    def __init__(self) -> None:
        _locks.add(self)

    def after_fork(self) -> None:
        """Forget an owner that the parent process alone has."""
        lock: Any = self
        if not lock._is_owned():
            lock._at_fork_reinit()


class Forked(Protocol):
    """Who has to know that it is in another process now."""

    def after_fork(self) -> None:
        """Begin anew; called in the child, before anything else."""


_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_watching: weakref.WeakSet[Any] = weakref.WeakSet()


def watch_forks(owner: Forked) -> None:
    """Call an object's ``after_fork`` in each process that is forked off, as long as it lives."""
    _watching.add(owner)


def _after_fork() -> None:
    for each in (*_locks, *_watching):
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)


#: Servers that load gevent long before they patch the standard library: gunicorn's gevent workers
#: do so after the hook ``post_fork``, uWSGI after it has loaded the app.
_PATCHING_SERVERS = ("gunicorn.workers.ggevent", "uwsgi")


def gevent_is_to_patch() -> bool:
    """Tell whether this process is a server's in which threads become greenlets, but not yet.

    A thread that is started now would run beside a hub that comes later. That gevent is loaded
    says nothing by itself: Flask-SocketIO, for one, imports it in every process.
    """
    if "gevent" not in sys.modules or not any(each in sys.modules for each in _PATCHING_SERVERS):
        return False
    monkey = sys.modules.get("gevent.monkey")
    return not (monkey and monkey.is_module_patched("threading"))


#: Does what is due, and returns the seconds until it wants to be called again; ``None``: for now
#: there is nothing to do.
Turn = Callable[[], "float | None"]


class Worker:
    """A daemon thread that takes turns for an object, in each process that wakes it.

    It ends when there is nothing to do, and when the object is gone: the thread does not keep it
    alive. Under gevent it is a greenlet.

    :param name: of the thread.
    :param turn: a method of the object. What it raises is logged, and it is called again later.
    :param what: it does, for the log: ``The background check``.
    """

    def __init__(self, name: str, turn: Turn, what: str = "") -> None:
        self._name = name
        self.what = what or f"The thread {name}"
        self._turn = weakref.WeakMethod(turn, self._release)
        self._lock = ProcessLock()
        # Of this class of queue alone the documentation says that a finalizer may put into it.
        self._inbox: queue.SimpleQueue[None] | None = None
        self._pid = 0
        self._complained = False
        watch_forks(self)

    @property
    def running(self) -> bool:
        """Whether a thread of this process works or waits for its next turn."""
        return self._inbox is not None and self._pid == os.getpid()

    def wake(self) -> bool:
        """Have a turn taken now; starts the thread where there is none.

        :returns: whether there is a thread. Out of threads or memory there may be none; then the
            next call tries again.
        """
        with self._lock:
            if self.running:
                self._put()
                return True
            self._inbox, self._pid = queue.SimpleQueue(), os.getpid()
            inbox = self._inbox
        try:
            threading.Thread(
                target=_work, args=(self, self._turn, inbox), name=self._name, daemon=True
            ).start()
        except RuntimeError as exc:
            self._inbox = None
            if not self._complained:
                logger.error("%s cannot start yet: %s", self.what, exc)
            self._complained = True
            return False
        self._complained = False
        return True

    def after_fork(self) -> None:
        """Forget the thread: it stayed in the parent process."""
        self._inbox = None

    def may_end(self, inbox: queue.SimpleQueue[None]) -> bool:
        """Tell the thread whether it may end: nobody has woken it meanwhile."""
        with self._lock:
            if self._inbox is inbox and not inbox.empty():
                return False
            self.forget(inbox)
        return True

    def forget(self, inbox: queue.SimpleQueue[None]) -> None:
        """Take note that the thread with this inbox has ended."""
        if self._inbox is inbox:
            self._inbox = None

    def _put(self) -> None:
        if self._inbox is not None and self._inbox.empty():
            self._inbox.put(None)

    def _release(self, _: object) -> None:
        """Let the thread end: the object is gone."""
        self._put()


def _work(worker: Worker, turn: weakref.WeakMethod[Turn], inbox: queue.SimpleQueue[None]) -> None:
    try:
        while True:
            call = turn()
            if call is None:
                return
            pause = _take(worker, call)
            del call  # while it waits nobody is kept alive
            if pause is None:
                if worker.may_end(inbox):
                    return
                pause = 0.0
            _wait(inbox, pause)
    finally:
        worker.forget(inbox)


def _take(worker: Worker, turn: Turn) -> float | None:
    try:
        return turn()
    except Exception:
        logger.exception("%s failed unexpectedly", worker.what)
        return AFTER_ERROR


def _wait(inbox: queue.SimpleQueue[None], seconds: float) -> None:
    with contextlib.suppress(queue.Empty):
        inbox.get(timeout=max(0.0, seconds))
