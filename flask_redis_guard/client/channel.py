"""Shared round trips: callers that come while one is under way go together in the next.

A caller that finds nothing in flight sends at once, on a connection of the pool. Callers that come
meanwhile queue up; as soon as a lane is free, the first of them takes it and sends what all of them
want in one write. Nobody waits for a timer. Every caller keeps its own deadline, permit, outcome
and error:

* Who leads reads the replies of all. One that is killed, or whose time is up, while replies are
  owed hands the lane to a caller that still waits; its own reply is thrown away when it comes.
* A caller whose time is up before it was sent is taken out of the queue: nothing is sent for it.
* A connection that breaks refuses each caller of its batch once. Nothing is sent a second time.
  It is one piece of evidence, so it counts once against the breaker.

Commands are sent as bytes and replies are read below redis-py's command layer.
"""

from __future__ import annotations

import queue
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis import exceptions as errors

if TYPE_CHECKING:
    from flask_redis_guard.client.operation import Operation
    from flask_redis_guard.client.transport.pool import GuardedPool

#: Batches in flight at once while round trips are quick.
LANES = 1

#: Further lanes for round trips that take long, and the seconds that a caller waits then: where
#: the network takes its time, waiting for a batch would cost more than it saves.
EXTRA_LANES = 15
SLOW = 0.005

#: Commands of one batch.
MOST = 128

#: Of so many callers that met nobody, one lets other greenlets run before it sends. A server on
#: the same host may have answered before a greenlet comes to wait: then none would meet another.
LOOK_AROUND = 32

BULK, NUMBER, STATUS, ERROR, ARRAY = b"$:+-*"

#: How deep arrays may lie in one another.
DEEPEST = 8

_NOTHING = object()


class Call:
    """One command of one caller.

    :param packed: the command in RESP.
    :param operation: whose deadline it keeps.
    """

    __slots__ = ("abandoned", "box", "operation", "packed", "reply")

    def __init__(self, packed: bytes, operation: Operation) -> None:
        self.packed = packed
        self.operation = operation
        #: The reply; an exception for an error reply, or for why there is none.
        self.reply: Any = _NOTHING
        #: Whether nobody waits for the reply any more.
        self.abandoned = False
        #: Wakes a caller that sleeps: with a lane to lead, or with ``None`` for its reply. One that
        #: leads at once has none.
        self.box: queue.SimpleQueue[Lane | None] | None = None

    def answer(self, reply: Any) -> None:
        """Give the caller its reply."""
        self.reply = reply
        if self.box is not None:
            self.box.put(None)

    def offer(self, lane: Lane) -> bool:
        """Have the caller lead a lane; false if it is gone."""
        if self.box is None:
            return False
        self.box.put(lane)
        # It may be gone, perhaps just now. One of us gets the lane: taking it out is atomic.
        return self.take_offer() is None if self.abandoned else True

    def take_offer(self) -> Lane | None:
        """Return a lane that was offered and not taken, if there is one."""
        while self.box is not None:
            try:
                lane = self.box.get_nowait()
            except queue.Empty:
                break
            if lane is not None:
                return lane
        return None


class Lane:
    """One round trip at a time: its connection, and the calls whose replies are owed."""

    __slots__ = ("buffer", "connection", "home", "operation", "owed", "parsed")

    def __init__(self, home: deque[Lane] | None) -> None:
        #: Where it waits while nobody leads it; ``None`` once it has been replaced.
        self.home = home
        #: The operation of who leads it, or led it last.
        self.operation: Operation | None = None
        self.connection: Any = None
        self.owed: deque[Call] = deque()
        self.buffer = b""
        #: Whether the connection's own parser reads the replies.
        self.parsed = False


class Channel:
    """Sends commands over a pool's connections, many callers' in one round trip.

    :param pool: the guarded pool of one server.
    """

    def __init__(self, pool: GuardedPool) -> None:
        self._pool = pool
        self._idle: deque[Lane] = deque()
        self._extra: deque[Lane] = deque()
        self._lanes = [Lane(self._idle) for _ in range(LANES)]
        self._idle.extend(self._lanes)
        self._extra.extend(Lane(self._extra) for _ in range(EXTRA_LANES))
        self._waiting: deque[Call] = deque()
        self._slow_until = 0.0
        monkey = sys.modules.get("gevent.monkey")
        patched = monkey is not None and monkey.is_module_patched("threading")
        #: Lets other greenlets run, once; threads need no such thing.
        self._pause: Callable[[], object] | None = sys.modules["gevent"].sleep if patched else None
        self._alone = 0  # callers in a row that met nobody

    def exchange(self, packed: bytes, operation: Operation) -> Any:
        """Send a command and return its reply.

        :param packed: the command in RESP.
        :param operation: the caller's, entered.
        :raises redis.RedisError: an error reply, or why there is none.
        :raises OSError: as sockets do.
        """
        call = Call(packed, operation)
        try:
            lane = self._idle.pop()
        except IndexError:
            self._exchange_queued(call)
        else:
            try:
                self._lead(lane, call)
            finally:
                call.abandoned = True
                self._leave(lane)
        if isinstance(call.reply, Exception):
            raise call.reply
        return call.reply

    def _exchange_queued(self, call: Call) -> None:
        """Wait for the reply of a batch that somebody else leads, or for a lane to lead."""
        self._pool.admit(call.operation)
        call.box = queue.SimpleQueue()
        self._waiting.append(call)
        if self._slow_until and monotonic() < self._slow_until:
            with suppress(IndexError):
                self._idle.append(self._extra.pop())
        self._pass_on()  # a lane may have become free just now
        lane = None
        try:
            while call.reply is _NOTHING:
                lane = self._sleep(call, call.box)
                if lane is not None:
                    self._lead(lane, call)
        finally:
            call.abandoned = True
            lane = lane or call.take_offer()
            if lane is not None:
                self._leave(lane)

    def _sleep(self, call: Call, box: queue.SimpleQueue[Lane | None]) -> Lane | None:
        """Wait for the reply, or for a lane to lead.

        :raises TimeoutError: when the operation's time is used up.
        """
        operation, began, came = call.operation, monotonic(), []

        def comes(seconds: float) -> bool:
            with suppress(queue.Empty):
                came.append(box.get(timeout=seconds))
            return bool(came)

        if comes(operation.part):
            operation.waited += min(monotonic() - began, operation.part)
            return came[0]
        operation.count(began, operation.part)
        if operation.wait(comes):
            return came[0]
        self._replace_lost()
        raise TimeoutError("the operation's time is used up")

    def _lead(self, lane: Lane, call: Call) -> None:
        """Send a batch, unless one is under way, and read its replies until ours is there."""
        lane.operation = operation = call.operation
        if lane.connection is None:
            self._send(lane, call)
        else:
            lane.connection.lead(operation)
        while call.reply is _NOTHING:
            try:
                if lane.parsed:
                    reply = lane.connection.read_reply()
                    lane.owed.popleft().answer(reply)
                    continue
                data = lane.connection.receive_some()
                lane.buffer = lane.buffer + data if lane.buffer else data
                self._hand_out(lane)
            except (TimeoutError, errors.TimeoutError):
                raise  # ours: those who still have time read on
            except BaseException as exc:
                if not is_killed(exc):  # while it waited, so that nothing is half done
                    self._break(lane, call, exc)
                raise
        if operation.waited > SLOW:
            self._slow_until = monotonic() + 1.0

    def _send(self, lane: Lane, call: Call) -> None:
        lane.buffer = b""
        lane.connection = connection = self._pool.take(call.operation)
        connection.lead(call.operation)
        lane.parsed = connection.needs_parser
        if self._pause is not None and not self._alone % LOOK_AROUND:
            self._pause()
        # Taken only now: those that came meanwhile join as well.
        batch, waiting = [call], self._waiting
        while waiting and len(batch) < MOST:
            try:
                other = waiting.popleft()
            except IndexError:
                break
            if not other.abandoned:
                batch.append(other)
        lane.owed.extend(batch)
        if len(batch) == 1:
            self._alone += 1
            packed = call.packed
        else:
            self._alone = 0
            packed = b"".join([each.packed for each in batch])
        try:
            connection.send_together(packed, len(batch))
        except BaseException as exc:
            self._break(lane, call, exc)
            raise

    def _hand_out(self, lane: Lane) -> None:
        """Give every complete reply in the buffer to its caller.

        :raises redis.InvalidResponse: for what is no reply.
        """
        buffer, at, owed, connection = lane.buffer, 0, lane.owed, lane.connection
        while owed and at < len(buffer):
            try:
                reply, at = parse(buffer, at, connection.error_reply)
            except Incomplete:
                break
            connection.replied()
            owed.popleft().answer(reply)
        if not owed and at < len(buffer):
            raise errors.InvalidResponse("Protocol error: more replies than commands")
        lane.buffer = buffer[at:]

    def _break(self, lane: Lane, call: Call, exc: BaseException) -> None:
        """Refuse every caller of a batch whose connection cannot be used any more."""
        lane.connection.disconnect()
        while lane.owed:
            other = lane.owed.popleft()
            if other is not call and not other.abandoned:
                error = errors.ConnectionError(
                    "Batch lost: the connection of a shared round trip broke"
                )
                error.__cause__ = exc
                other.answer(error)

    def _leave(self, lane: Lane) -> None:
        """Hand a lane on: to a caller whose reply is owed, else to the first that waits."""
        for heir in list(lane.owed):
            if heir.offer(lane):
                return
        connection, lane.connection = lane.connection, None
        if connection is not None:
            if lane.owed:  # nobody waits for what is owed: it must not reach anybody else
                lane.owed.clear()
                connection.disconnect()
            connection.holder = None
            self._pool.release(connection)
        if lane.home is not None:
            lane.home.append(lane)
        if self._waiting:
            self._pass_on()

    def _replace_lost(self) -> None:
        """Replace each lane that nobody leads and that is not idle.

        An exception that a signal handler raised in an unlucky line can lose one, which would keep
        all later callers waiting.
        """
        idle = list(self._idle)
        for at, lane in enumerate(self._lanes):
            led = lane.operation is not None and not lane.operation.settled
            if not led and lane not in idle:
                lane.home = None
                self._lanes[at] = Lane(self._idle)
                self._idle.append(self._lanes[at])

    def _pass_on(self) -> None:
        """Have the first that waits lead an idle lane."""
        while self._waiting:
            try:
                lane = self._idle.pop()
            except IndexError:
                return
            try:
                taken = self._waiting.popleft().offer(lane)
            except IndexError:
                taken = False
            if not taken and lane.home is not None:
                lane.home.append(lane)


class Incomplete(Exception):
    """The rest of a reply has not arrived yet."""


def parse(
    buffer: bytes, at: int, error_reply: Callable[[bytes], Exception], depth: int = 0
) -> tuple[Any, int]:
    """Read one reply of RESP2.

    :param buffer: what has arrived.
    :param at: where the reply begins.
    :param error_reply: makes an exception of an error reply, which is given and not raised.
    :returns: the reply, and where the next one begins.
    :raises Incomplete: if its end has not arrived.
    :raises redis.InvalidResponse: for what is no reply.
    """
    end = buffer.find(b"\r\n", at)
    if end < 0:
        raise Incomplete
    kind, line, after = buffer[at], buffer[at + 1 : end], end + 2
    if kind == BULK:
        size = _whole(line)
        if size < 0:
            return None, after
        after += size + 2
        if len(buffer) < after:
            raise Incomplete
        return buffer[end + 2 : after - 2], after
    if kind == NUMBER:
        return _whole(line), after
    if kind == STATUS:
        return line, after
    if kind == ERROR:
        return error_reply(line), after
    if kind != ARRAY or depth > DEEPEST:
        raise errors.InvalidResponse(f"Protocol error: {buffer[at : at + 1]!r}")
    items = []
    for _ in range(_whole(line)):
        item, after = parse(buffer, after, error_reply, depth + 1)
        items.append(item)
    return items, after


def _whole(line: bytes) -> int:
    """Return the number that a line of the protocol is.

    :raises redis.InvalidResponse: if it is none.
    """
    try:
        return int(line)
    except ValueError:
        raise errors.InvalidResponse(f"Protocol error: {line[:20]!r}") from None


def is_killed(exc: BaseException) -> bool:
    """Tell whether an exception is what gevent throws into a greenlet that waits."""
    return type(exc).__module__.partition(".")[0] in ("gevent", "greenlet")
