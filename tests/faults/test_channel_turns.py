"""Whose time and whose errors count in a shared round trip, whichever line a thread stops at."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import redis

from flask_redis_guard import RedisUnavailable
from flask_redis_guard.client.channel import MEANWHILE, Batch, Call, Channel
from flask_redis_guard.client.script import Script
from tests.support import Proxy, RedisServer
from tests.support.guarded import NEVER_OPENS, Guarded


class Gathering(deque[Call]):
    """Callers who wait; a thread that wants to know how many stops before it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.stops: threading.Thread | None = None
        self.has_stopped, self.may_go_on = threading.Event(), threading.Event()

    def __len__(self) -> int:
        if threading.current_thread() is self.stops:
            self.has_stopped.set()
            assert self.may_go_on.wait(10)
        return super().__len__()


@pytest.fixture
def guarded(redis_server: RedisServer) -> Iterator[Guarded]:
    made = Guarded(redis_server.url, REDIS_GUARD_TIMEOUT=2, **NEVER_OPENS)
    yield made
    made.close()


def _call(guarded: Guarded, word: bytes, timeout: float = 5.0) -> Call:
    wake: Any = threading.Lock()
    wake.acquire()
    operation = guarded.gate.begin("ECHO")
    operation.allowance, operation.part = timeout, timeout / 8
    return Call(operation, b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(word), word), wake)


def _together(guarded: Guarded, *calls: Call) -> Batch:
    batch = Batch(guarded.client.connection_pool, calls[0])
    batch.members[:] = calls
    for call in calls:
        call.batch = batch
    return batch


def _finish(channel: Channel, *calls: Call) -> None:
    for call in calls:
        while not call.done:
            channel._go_on(call)


def test_who_joins_late_is_served(guarded: Guarded) -> None:
    channel = guarded.client.channel
    channel._waiting = waiting = Gathering()
    first, stopped, late = (_call(guarded, word) for word in (b"first", b"stopped", b"late"))
    batch = _together(guarded, first, stopped)
    channel._in_flight[batch] = None
    waiting.stops = threading.Thread(target=channel._go_on, args=(stopped,))
    waiting.stops.start()
    assert waiting.has_stopped.wait(10)
    channel._go_on(first)  # while the other is about to take along who waits
    waiting.append(late)
    waiting.may_go_on.set()
    waiting.stops.join()
    _finish(channel, first, stopped, late)
    assert [call.result() for call in (first, stopped, late)] == [b"first", b"stopped", b"late"]


def test_who_has_no_time_left_to_connect_leaves_it_to_the_next(
    redis_server: RedisServer,
) -> None:
    guarded = Guarded(redis_server.url, REDIS_GUARD_MAX_CONNECTIONS=1, **NEVER_OPENS)
    channel, pool = guarded.client.channel, guarded.client.connection_pool
    taken = pool.take(guarded.gate.begin("HOLD"))
    hasty, patient = _call(guarded, b"hasty", 0.1), _call(guarded, b"patient")
    batch = _together(guarded, hasty, patient)
    with pytest.raises(redis.ConnectionError, match="No connection available"):
        channel._go_on(hasty)
    assert not patient.done
    pool.give_back(taken)
    _finish(channel, patient)
    assert patient.result() == b"patient"
    assert hasty not in batch._sent_to
    guarded.close()


def test_who_is_told_that_no_time_is_left_for_the_reply_leaves_it_to_the_next(
    guarded: Guarded,
) -> None:
    channel, pool = guarded.client.channel, guarded.client.connection_pool
    connection = pool.take(guarded.gate.begin("CONNECT"))
    connection._distance = 1.0  # as if connecting had taken so long
    pool.give_back(connection)
    hasty, patient = _call(guarded, b"hasty", 0.5), _call(guarded, b"patient")
    batch = _together(guarded, hasty, patient)
    with pytest.raises(redis.TimeoutError, match="Not sent"):
        channel._go_on(hasty)
    _finish(channel, patient)
    assert patient.result() == b"patient"
    assert hasty not in batch._sent_to


def test_a_batch_that_everybody_left_leaves_no_reply(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy:
        guarded = Guarded(proxy.url, REDIS_GUARD_TIMEOUT=5, **NEVER_OPENS)
        guarded.client.ping()
        channel = guarded.client.channel
        proxy.delay(0.1)  # the replies come when the next caller has sent
        calls = [_call(guarded, word, 0.05) for word in (b"first", b"second")]
        batch = _together(guarded, *calls)
        for call in calls:
            with pytest.raises(redis.TimeoutError):
                channel._go_on(call)
        assert batch.is_over
        assert guarded.client.echo("own") == b"own"
        guarded.close()


def test_a_connection_that_breaks_under_a_batch_is_one_failure(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy:
        guarded = Guarded(proxy.url, REDIS_GUARD_TIMEOUT=5, **NEVER_OPENS)
        guarded.client.ping()
        guarded.finished.clear()
        proxy.cut_after(1)
        calls = [_call(guarded, word) for word in (b"first", b"second", b"third")]
        _together(guarded, *calls)
        guarded.client.channel._go_on(calls[0])
        for call in calls:
            assert call.error is not None
            assert isinstance(guarded.gate.fail(call.operation, call.error), RedisUnavailable)
        guarded.close()
    assert guarded.finished == [
        ("ECHO", "failure", "connection"),
        ("ECHO", "neutral", "connection"),
        ("ECHO", "neutral", "connection"),
    ]


def test_who_goes_alone_makes_room_for_the_next(guarded: Guarded) -> None:
    channel = guarded.client.channel
    channel._lanes = channel._usual + 2  # over a slow network
    alone, other = _call(guarded, b"alone"), _call(guarded, b"other")
    channel._waiting.extend((alone, other))
    channel._go_on(alone)
    assert alone.result() == b"alone"
    assert other.wake.acquire(timeout=0)
    assert not channel._in_flight
    _finish(channel, other)
    assert other.result() == b"other"


def test_a_reply_that_came_while_its_caller_slept_is_returned(guarded: Guarded) -> None:
    channel = guarded.client.channel
    call = _call(guarded, b"slept", 0.1)
    channel._in_flight.update({_call(guarded, b"other").operation: None for _ in range(99)})
    call.done, call.reply = True, b"slept"  # though it was not told in which batch it is
    assert channel._wait(call)


def test_many_who_wait_do_not_wait_for_others_on_their_way(guarded: Guarded) -> None:
    channel = guarded.client.channel
    calls = [_call(guarded, b"%d" % number) for number in range(MEANWHILE)]
    others = [_call(guarded, b"other").operation for _ in range(channel._far)]
    channel._lanes = channel._usual
    channel._in_flight.update(dict.fromkeys(others[: channel._usual]))
    channel._waiting.extend(calls[:-1])
    assert not channel._has_turn(calls[0])
    channel._waiting.append(calls[-1])
    assert channel._has_turn(calls[-1])
    channel._go_on(calls[-1])
    assert [call.reply for call in calls] == [b"%d" % number for number in range(MEANWHILE)]
    # Where each has a connection of its own there may be none for such a batch.
    channel._lanes = channel._far
    channel._in_flight.update(dict.fromkeys(others))
    channel._waiting.extend(_call(guarded, b"more") for _ in range(MEANWHILE))
    assert not channel._has_turn(channel._waiting[-1])


def test_one_that_never_was_answered_tells_nothing_of_the_network() -> None:
    guarded = Guarded("redis://127.0.0.1:1", REDIS_GUARD_TIMEOUT=1, **NEVER_OPENS)
    channel = guarded.client.channel
    far = channel._lanes
    with pytest.raises(RedisUnavailable):
        Script("echo", "return ARGV[1]").run(guarded.client, (), (b"x",))
    assert channel._lanes == far > channel._usual
    lost = _call(guarded, b"lost")
    _together(guarded, lost)
    channel._go_on(lost)
    assert isinstance(lost.error, Exception)
    assert channel._lanes == far


def test_what_an_exception_left_behind_costs_nobody_a_request(guarded: Guarded) -> None:
    channel = guarded.client.channel
    channel._lanes = channel._far = channel._usual
    over, settled = _together(guarded, _call(guarded, b"over")), _call(guarded, b"x").operation
    over.is_over = settled.settled = True
    more = [_together(guarded, _call(guarded, b"%d" % n)) for n in range(channel._usual - 2)]
    for batch in more:
        batch.members[0].left = True
    channel._in_flight.update(dict.fromkeys((over, settled, *more)))
    assert Script("echo", "return ARGV[1]").run(guarded.client, (), (b"x",)) == b"x"
    assert not channel._in_flight


class Struck(list[bytes]):
    """What was received; a signal handler raises once, right after the first of it."""

    struck = False

    def extend(self, more: Iterable[bytes]) -> None:
        super().extend(more)
        if not self.struck:
            self.struck = True
            raise KeyboardInterrupt


def test_replies_that_came_before_an_interruption_are_handed_out(guarded: Guarded) -> None:
    channel = guarded.client.channel
    first, other = _call(guarded, b"first"), _call(guarded, b"other", 1)
    batch = _together(guarded, first, other)
    batch._received = Struck()
    with pytest.raises(KeyboardInterrupt):
        channel._go_on(first)
    _finish(channel, other)
    assert other.result() == b"other"


def test_the_turn_of_one_who_is_gone_is_free(guarded: Guarded) -> None:
    channel = guarded.client.channel
    gone, other = _call(guarded, b"gone"), _call(guarded, b"other", 1)
    batch = _together(guarded, gone, other)
    channel._in_flight[batch] = None
    assert batch._take(0, gone.operation)
    assert not channel._is_due(other, 0.01)  # it may be at work
    gone.left = True
    guarded.gate.fail(gone.operation, KeyboardInterrupt())
    assert channel._is_due(other, 0.01)
    _finish(channel, other)
    assert other.result() == b"other"
