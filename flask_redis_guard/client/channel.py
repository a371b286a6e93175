"""Round trips that callers share.

A caller that finds nothing in flight sends at once. Callers that come while a round trip is under
way form the next batch, which the first of them sends when a round trip has ended, or the last of
them when they are many: nobody waits for a timer, and one caller alone pays next to nothing for it.

Each keeps its own time, permit, outcome and error. One member of a batch *drives* it: it writes and
reads for all. If its time is used up, or it is killed, another member goes on exactly where it
stopped: what was sent and what was received is known at every moment, since both are noted by the
very call that does it. Where the connection breaks each member is refused, once: nothing is sent a
second time.

There is no lock: each step is one operation of a list, a deque or a dictionary, so that neither a
killed greenlet nor an exception of a signal handler can leave one held. Waking somebody is a hint.
A caller that waits looks for itself at every part of its time whether there is something to do.
"""

from __future__ import annotations

import contextlib
import importlib
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import repeat
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as redis_errors

from flask_redis_guard.client.replies import Incomplete, read_reply
from flask_redis_guard.client.transport.sockets import NOT_READY, is_ready

if TYPE_CHECKING:
    from flask_redis_guard.client.operation import Operation
    from flask_redis_guard.client.transport.pool import GuardedPool

#: Round trips in flight at once before callers wait for each other, as far as threads agree on it:
#: among greenlets, and among threads (to wake one costs more). Where the network takes its time,
#: and until that is known, each caller has its own as long as the pool has connections: to wait for
#: a batch would cost more than it saves.
GREENLETS, THREADS = 1, 4

#: Seconds that a round trip over such a network takes at least. One that took less disproves it.
SLOW: Final = 0.005

#: Of so many greenlets that met nobody, one lets the others run before it sends. A server on the
#: same host may have answered before a greenlet comes to wait: then none would meet another.
LOOK_AROUND: Final = 32

#: So many that wait form a batch of their own while others are on their way: the server works on
#: one half of the callers while this process works for the other.
MEANWHILE: Final = 32

#: Commands in a batch: they keep a server busy for less than a millisecond.
BATCH: Final = 128

_TIMEOUTS: Final = (redis_errors.TimeoutError, TimeoutError)


class Call:
    """One command of one caller.

    :param operation: the caller's.
    :param packed: the command, as it is sent.
    :param wake: a semaphore at which the caller waits; it is taken.
    """

    __slots__ = (
        "batch",
        "done",
        "error",
        "left",
        "operation",
        "packed",
        "reply",
        "taken",
        "wake",
    )

    def __init__(self, operation: Operation, packed: bytes, wake: Any) -> None:
        self.operation = operation
        self.packed = packed
        self.batch: Batch | None = None
        #: Whether somebody else has it in hand, though it may not be in a batch yet.
        self.taken = False
        self.reply: Any = None
        self.error: BaseException | None = None
        #: Whether there is a reply or an error.
        self.done = False
        #: Whether the caller has gone without either.
        self.left = False
        self.wake = wake

    def hint(self) -> None:
        """Let the caller look whether there is something to do."""
        try:  # noqa: SIM105 - contextlib.suppress() costs more than what it would stand around
            self.wake.release()
        except (RuntimeError, ValueError):
            pass  # it has not looked yet since the last

    def result(self) -> Any:
        """Return the reply; an error as an exception.

        :raises redis.RedisError: if there is none.
        """
        if self.error is not None:
            raise self.error
        return self.reply


class Channel:
    """What callers of one pool share.

    :param pool: where connections come from.
    """

    def __init__(self, pool: GuardedPool) -> None:
        self._pool = pool
        #: Digests of the scripts that the server has been given.
        self.known: set[bytes] = set()

    def forget(self) -> None:
        """Start, with its pool, and anew in a new process: nobody of the old one is waited for."""
        self._in_flight: dict[Batch | Operation, None] = {}
        self._waiting: deque[Call] = deque()
        monkey = sys.modules.get("gevent.monkey")
        green = monkey is not None and monkey.is_module_patched("threading")
        #: Lets other greenlets run, once.
        self._pause: Callable[[], object] | None = sys.modules["gevent"].sleep if green else None
        self._new_wake: Callable[[], Any] = _new_lock
        self._sleep: Callable[[Any, float], bool] = _sleep
        if green:
            self._new_wake = partial(importlib.import_module("gevent.lock").Semaphore, 0)
            self._sleep = partial(_sleep_green, importlib.import_module("gevent").get_hub)
        self._usual = GREENLETS if green else THREADS
        self._far = self._lanes = max(self._usual, self._pool.max_connections)
        self._alone = 0

    def ask(self, operation: Operation, packed: bytes) -> Any:
        """Send one command and return its reply, in bytes; an error as an exception.

        :param operation: the caller's.
        :param packed: the command, as it is sent.
        :raises redis.RedisError: if there is none.
        """
        in_flight = self._in_flight
        if not self._waiting and len(in_flight) < self._lanes:
            try:
                in_flight[operation] = None
                if self._pause is not None:
                    if not self._alone % LOOK_AROUND:
                        self._pause()
                    self._alone += 1
                if not self._waiting:
                    reply = self._pool.exchange(operation, packed)
                    # Only what was answered tells how far the server is.
                    self._lanes = self._far if operation.waited > SLOW else self._usual
                    return reply
            finally:
                in_flight.pop(operation, None)
                if self._waiting:
                    self._wake_next()
        return self._share(Call(operation, packed, self._new_wake()))

    def _share(self, call: Call) -> Any:
        self._waiting.append(call)
        try:
            while not call.done:
                if not self._wait(call):
                    self._sweep(call.operation)
                    raise redis_errors.TimeoutError("Timeout waiting for a reply")
                if not call.done:
                    self._go_on(call)
        finally:
            self._leave(call)
        return call.result()

    def _wait(self, call: Call) -> bool:
        """Wait until there is something to do for a call's caller.

        :returns: false if its time is used up.
        """
        operation, began = call.operation, monotonic()
        if self._is_due(call, operation.part):  # as most are
            return True
        operation.count(began, operation.part)
        return operation.wait(partial(self._is_due, call))

    def _is_due(self, call: Call, seconds: float) -> bool:
        """Wait for a hint, and tell whether there is something to do for a call's caller."""
        if not self._has_turn(call) and seconds and not self._sleep(call.wake, seconds):
            self._sweep(
                call.operation
            )  # what an exception left behind holds up nobody for longer than this
            # Nobody has been answered for so long that the network may have become slow.
            self._lanes = self._far
        return self._has_turn(call)

    def _has_turn(self, call: Call) -> bool:
        if call.done:
            return True
        if call.batch is not None:
            return not call.batch.is_driven
        if call.taken:
            return False
        busy, lanes = len(self._in_flight), self._lanes
        return busy < lanes or (busy == lanes < self._far and len(self._waiting) >= MEANWHILE)

    def _go_on(self, call: Call) -> None:
        if call.batch is None:
            try:
                self._waiting.remove(call)
            except ValueError:
                call.taken = True
                return
            if len(self._in_flight) + len(self._waiting) < self._lanes > self._usual:
                # Over a slow network a batch could have to wait for a handshake besides.
                self._go_alone(call)
                return
            call.batch = Batch(self._pool, call)
            self._in_flight[call.batch] = None
        if call.batch.is_over and not call.done:  # an exception of a signal handler tore it out
            raise redis_errors.ConnectionError("Batch lost: it ended before its time")
        try:
            call.batch.drive(call, self._waiting)
        finally:
            self._after(call.batch, call.operation)

    def _go_alone(self, call: Call) -> None:
        operation = call.operation
        try:
            self._in_flight[operation] = None
            if self._waiting:
                self._wake_next()
            call.reply = self._pool.exchange(operation, call.packed)
            call.done = True
            self._lanes = self._far if operation.waited > SLOW else self._usual
        finally:
            self._in_flight.pop(operation, None)
            if self._waiting:
                self._wake_next()

    def _after(self, batch: Batch, operation: Operation) -> None:
        """Let somebody else drive a batch that is not over; or the next one be sent.

        :param operation: of who sees to it.
        """
        if not batch.is_over:
            batch.hand_on(operation)
        if batch.is_over:
            self._in_flight.pop(batch, None)
            if batch.is_answered:
                self._lanes = self._far if batch.took > SLOW else self._usual
            if len(batch.members) > 1:
                self._alone = 0
            if self._waiting:
                self._wake_next()

    def _sweep(self, operation: Operation) -> None:
        """Forget what is not in flight any more, and who drives no more.

        An exception that a signal handler raised in an unlucky line can leave it behind.

        :param operation: of who sees to it.
        """
        for each in list(self._in_flight):
            if isinstance(each, Batch):
                each.free_turn()
                self._after(each, operation)
            elif each.settled:
                self._in_flight.pop(each, None)

    def _leave(self, call: Call) -> None:
        if call.done:
            return
        call.left = True
        try:
            self._waiting.remove(call)
        except ValueError:
            if call.batch is not None:
                self._after(call.batch, call.operation)
        else:
            if self._waiting:
                self._wake_next()

    def _wake_next(self) -> None:
        try:  # noqa: SIM105 - as above
            self._waiting[0].hint()
        except IndexError:
            pass  # somebody took it meanwhile


class Batch:
    """Commands of several callers, sent together on one connection.

    :param pool: where the connection comes from.
    :param first: the call whose caller makes it.
    """

    __slots__ = (
        "_at",
        "_connection",
        "_drivers",
        "_outgoing",
        "_pool",
        "_received",
        "_sent",
        "_sent_to",
        "_trust",
        "_turn",
        "is_over",
        "members",
        "took",
    )

    def __init__(self, pool: GuardedPool, first: Call) -> None:
        self._pool = pool
        self.members = [first]
        # Who drives, by the number of the turn. Taking one and saying who did is one step, and no
        # turn is taken twice, whatever an exception of a signal handler leaves undone.
        self._turn = 0
        self._drivers: dict[int, Operation] = {}
        #: Whether all members have their reply or error.
        self.is_over = False
        self._connection: Any = None
        self._trust: Any = None  # whom the operations rely on, as who took the connection does
        self._outgoing: bytes | None = None
        self._sent_to: list[Call] = []
        self._sent: list[int] = []
        self._received: list[bytes] = []
        #: Seconds for which replies were waited for.
        self.took = 0.0
        self._at = (0, 0)  # replies that were handed out, and the bytes of them

    @property
    def is_answered(self) -> bool:
        """Whether a reply has come: how long that took tells how far the server is."""
        return self._at[0] > 0

    def drive(self, call: Call, waiting: deque[Call]) -> None:
        """Write and read for all, until they are served or the caller has to leave.

        :param call: whose caller drives.
        :param waiting: who is taken along, unless all is sent already.
        :raises redis.RedisError: if its time is used up; others go on.
        """
        turn = self._turn
        try:
            if self._take(turn, call.operation) and not self.is_over and not call.done:
                self._fill(waiting)
                self._drive(call)
        except BaseException:
            call.left = True  # before the next driver sends what is left to send
            raise
        finally:
            self._end(turn, call.operation)

    @property
    def is_driven(self) -> bool:
        """Whether somebody drives it now."""
        return self._turn in self._drivers

    def _take(self, turn: int, operation: Operation) -> bool:
        """Take a turn, unless somebody else was faster."""
        return self._drivers.setdefault(turn, operation) is operation

    def _end(self, turn: int, operation: Operation) -> None:
        """End a turn that was taken by an operation."""
        if self._drivers.get(turn) is operation:
            self._turn = turn + 1

    def free_turn(self) -> None:
        """End the turn of one who is gone: an exception struck before it could say so."""
        turn = self._turn
        driver = self._drivers.get(turn)
        if driver is not None and driver.settled:
            self._turn = turn + 1

    def _fill(self, waiting: deque[Call]) -> None:
        """Take along who waits, unless it is sent already; each is moved by one step.

        Only who drives does so: who joined while another one sends would be forgotten.
        """
        if self._outgoing is not None:
            return
        number = min(len(waiting), BATCH - len(self.members))
        with contextlib.suppress(IndexError):  # another thread takes some along
            self.members.extend(map(deque.popleft, repeat(waiting, number)))
        for call in self.members:
            call.batch = self

    def hand_on(self, operation: Operation) -> None:
        """Let another member drive; if nobody is left, end it.

        :param operation: of who sees to it.
        """
        for call in self.members:
            call.batch = self
            if not call.done and not call.left:
                call.hint()
                return
        turn = self._turn
        try:
            if self._take(turn, operation) and not self.is_over:  # else who drives will come here
                self._close()
        finally:
            self._end(turn, operation)

    def _close(self) -> None:
        self.is_over = True
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._outgoing is not None and len(self._sent_to) != self._at[0]:
            connection.disconnect()
        connection.holder = None
        self._pool.release(connection)

    def _drive(self, call: Call) -> None:
        operation = call.operation
        try:
            if self._connection is None:
                self._connection = self._pool.take_greeted(operation)
                self._trust = operation.trust
            self._connection.holder = operation
            sock = self._connection._sock
            sock.operation = operation
            with sock.never_waiting() as plain:
                self._write(operation, plain)
                if self._received:  # and perhaps not looked at: an exception struck in between
                    self._hand_out()
                while self._at[0] < len(self._sent_to):
                    if call.done:
                        return  # who waits for the others' replies goes on
                    self._read(operation, plain)
                    self._hand_out()
        except Exception as exc:
            if self._is_of_one(operation, exc):
                if isinstance(exc, TimeoutError):
                    raise redis_errors.TimeoutError(str(exc)) from exc
                raise
            self._fail(call, exc)
        else:
            self._close()

    def _is_of_one(self, operation: Operation, exc: Exception) -> bool:
        """Whether only the driver's time is used up, so that the next member goes on."""
        late, timeout = operation.remaining() <= 0, isinstance(exc, _TIMEOUTS)
        return (timeout and late) or (self._outgoing is None and (timeout or late))

    def _write(self, operation: Operation, sock: Any) -> None:
        if self._outgoing is None:
            self._sent_to = [call for call in self.members if not call.left]
            for call in self._sent_to:
                call.operation.trust = self._trust
            self._outgoing = b"".join([call.packed for call in self._sent_to])
            self._connection._owed += len(self._sent_to)
        view = memoryview(self._outgoing)[sum(self._sent) :]
        while view:
            try:
                self._sent.extend(map(sock.send, (view,)))
            except NOT_READY:
                self._wait(operation, select.POLLOUT)
            view = memoryview(self._outgoing)[sum(self._sent) :]

    def _read(self, operation: Operation, sock: Any) -> None:
        known = len(self._received)
        while len(self._received) == known:
            try:
                self._received.extend(map(sock.recv, (65536,)))
            except NOT_READY:
                self._wait(operation, select.POLLIN)
        if not self._received[-1]:
            raise redis_errors.ConnectionError("Connection closed by server.")

    def _wait(self, operation: Operation, event: int) -> None:
        before = operation.waited
        try:
            if not operation.wait(partial(is_ready, self._connection._sock, event)):
                raise redis_errors.TimeoutError("Timeout reading from socket")
        finally:
            self.took += operation.waited - before

    def _hand_out(self) -> None:
        data = b"".join(self._received)
        number, at = self._at
        try:
            while number < len(self._sent_to):
                reply, at = read_reply(data, at)
                call = self._sent_to[number]
                self._connection.note_reply(reply)
                call.reply = reply
                call.done = True
                number += 1
                self._at = number, at
                call.hint()
        except Incomplete:
            return
        if at != len(data):
            raise redis_errors.InvalidResponse("Protocol Error: more replies than commands")
        self._connection._owed = 0

    def _fail(self, driver: Call, exc: Exception) -> None:
        """Refuse all who have no reply yet, each with an error of its own.

        It is one piece of evidence, so that it counts once against the breaker.
        """
        for call in self.members:
            if not call.done:
                if call is driver:
                    call.error = exc
                else:
                    call.error = redis_errors.ConnectionError(
                        "Batch lost: the connection of a shared round trip broke"
                    )
                    call.error.__cause__ = exc
                call.done = True
                call.hint()
        if self._connection is not None:
            self._connection.disconnect()
        self._close()


def _sleep(wake: Any, seconds: float) -> bool:
    """Wait until a lock is released.

    :returns: false if that took longer than so many seconds.
    """
    woken: bool = wake.acquire(timeout=seconds)
    return woken


def _sleep_green(get_hub: Callable[[], Any], wake: Any, seconds: float) -> bool:
    """Do the same for a greenlet: a timer of the loop costs a third of gevent's ``Timeout``."""
    timer = get_hub().loop.timer(seconds)
    try:
        timer.start(wake.release)
        wake.acquire()
        return bool(timer.active)
    finally:
        timer.close()


def _new_lock() -> Any:
    lock = threading.Lock()
    lock.acquire()
    return lock
