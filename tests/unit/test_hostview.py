"""What a host thinks is a function of what its workers say, and never more than that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_redis_guard.core.breaker import CircuitBreaker, CircuitState, Outcome, Permit
from flask_redis_guard.core.hostview import (
    AHEAD,
    GRACE,
    RESET,
    SPAN,
    TURN,
    HostView,
    OperatorCommand,
    WorkerState,
    derive,
    newest,
)
from tests.unit.clock import FakeClock

NOW = 1000.0


def view(*workers: WorkerState, now: float = NOW, **options: Any) -> HostView:
    return derive(workers, now, **{"threshold": 5, "window": 10.0, **options})


def worker(slot: int = 0, **fields: Any) -> WorkerState:
    return WorkerState(slot, 100 + slot, **{"due_at": NOW + 1, "probes": True, **fields})


def opened(slot: int = 0, at: float = NOW - 1, **fields: Any) -> WorkerState:
    return worker(
        slot, **{"state": CircuitState.OPEN, "opened_at": at, "failing_since": at - 0.5, **fields}
    )


def command(number: int = 1, action: str = RESET, at: float = NOW) -> OperatorCommand:
    return OperatorCommand(number, action, at, 1e9, "somebody")


def test_one_that_opened_convinces_all() -> None:
    found = view(worker(0), opened(1), worker(2))
    assert found.refusing
    assert (found.opened_at, found.prober, found.fresh) == (NOW - 1, 1, (0, 1, 2))


@pytest.mark.parametrize(
    "odd",
    [
        {"alive": False},
        {"opened_at": NOW + AHEAD + 1},
        {"opened_at": float("nan")},
        {"failures": -1},
        {"due_at": float("inf")},
        {"state": CircuitState.FORCED_OPEN},
        {"state": CircuitState.DISABLED},
    ],
)
def test_one_that_cannot_be_right_convinces_nobody(odd: dict[str, Any]) -> None:
    assert not view(worker(0), replace(opened(1), **odd)).refusing


def test_one_that_is_answered_since_does_not_believe_that_redis_is_away() -> None:
    assert not view(opened(1), worker(0, succeeded_at=NOW - 1.2)).refusing
    assert not view(opened(1), answered=NOW - 1.2).refusing
    assert view(opened(1), worker(0, succeeded_at=NOW - 2)).refusing


def test_proof_of_one_ends_it_for_all_and_not_what_came_later() -> None:
    assert not view(opened(0), worker(1, proven_at=NOW - 0.5)).refusing
    assert view(opened(0), opened(2, NOW - 0.2), worker(1, proven_at=NOW - 0.9)).refusing


def test_reset_ends_what_came_before_whichever_slot_remembers_it() -> None:
    assert not view(opened(0), command=command()).refusing
    assert not view(opened(0), worker(1, command=command())).refusing
    assert view(opened(0), command=command(at=NOW - 2)).refusing
    later = command(2, "disable")
    assert view(worker(0, command=later), command=command()).command == later
    assert newest([command(0), command(3, "destroy"), None]) is None


def test_failures_of_several_open_together_once_they_are_no_moment() -> None:
    def failing(slot: int, times: int, since: float) -> WorkerState:
        return worker(
            slot, failures=times, failing_since=since, failing_from=since, failed_at=since
        )

    rows = [failing(slot, 1, NOW - SPAN) for slot in range(5)]
    assert view(*rows).refusing
    assert not view(*rows[:4]).refusing
    assert not view(*rows, now=NOW - 0.1).refusing
    assert not view(*rows, worker(7, succeeded_at=NOW - 0.1)).refusing
    assert not view(*rows, now=NOW + 11).refusing
    timeouts = [replace(row, failing_from=NOW - 0.5, failing_since=NOW) for row in rows]
    assert view(*timeouts).refusing


def test_those_who_wait_in_vain_too_count_with_the_first_timeout() -> None:
    failed = worker(
        0,
        failures=1,
        failing_since=NOW,
        failing_from=NOW - 0.5,
        failed_at=NOW,
        succeeded_at=NOW - 2,
    )
    waiting = [worker(slot, asked_at=NOW - 0.3) for slot in range(1, 5)]
    assert view(failed, *waiting).refusing
    assert not view(failed, waiting[0]).refusing  # however many of its operations wait
    assert not view(replace(failed, asked_at=NOW - 0.3)).refusing  # as it would alone
    # Slow, but not away: one that began after the first that failed has been answered.
    slow = worker(7, succeeded_at=NOW - 0.32)
    assert not view(failed, slow, *waiting).refusing
    assert not view(
        failed, worker(7, succeeded_at=NOW - 0.6, heard_at=NOW - 0.3), *waiting
    ).refusing
    assert not view(failed, *waiting[1:]).refusing
    assert not view(*waiting, replace(waiting[0], slot=6)).refusing  # nobody has failed yet
    refused = replace(failed, failing_from=NOW)  # at once: that says nothing of who waits
    assert not view(refused, *waiting).refusing
    for odd in (
        {"asked_at": NOW - 0.2},  # not for long
        {"asked_at": NOW - 0.9},  # it has stopped
        {"succeeded_at": NOW - 0.2},
        {"state": CircuitState.DISABLED},
        {"alive": False},
    ):
        assert not view(failed, *waiting[1:], replace(waiting[0], **odd)).refusing


def test_the_lowest_asks_then_each_in_turn_and_no_one_who_is_stopped() -> None:
    three = [opened(slot, NOW - 1, due_at=NOW + 100) for slot in (3, 5, 8)]
    assert view(*three).prober == 3
    assert view(*three, now=NOW + TURN).prober == 5
    stopped = replace(three[0], due_at=NOW - GRACE - 0.1)
    assert view(stopped, *three[1:]).prober == 5
    assert view(replace(three[0], probes=False), *three[1:]).prober == 5
    assert view(worker(0), *three).prober == 3
    assert view(*(replace(one, probes=False) for one in three)).prober is None


TIMES = st.floats(0, 2000) | st.sampled_from([0.0, NOW, float("nan"), float("inf"), -1.0])
STATES = st.builds(
    WorkerState,
    slot=st.integers(0, 5),
    pid=st.integers(0, 9),
    state=st.sampled_from(CircuitState),
    alive=st.booleans(),
    opened_at=TIMES,
    proven_at=TIMES,
    failures=st.integers(-1, 9),
    failing_since=TIMES,
    failing_from=TIMES,
    failed_at=TIMES,
    succeeded_at=TIMES,
    asked_at=TIMES,
    heard_at=TIMES,
    probes=st.booleans(),
    beat_at=TIMES,
    due_at=TIMES,
    command=st.none() | st.builds(command, st.integers(0, 3), at=TIMES),
)


@given(st.lists(STATES, max_size=6, unique_by=lambda each: each.slot), st.randoms())
def test_all_agree_in_whatever_order_they_read(workers: list[WorkerState], random: Any) -> None:
    shuffled = list(workers)
    random.shuffle(shuffled)
    found = view(*workers)
    assert found == view(*shuffled)
    assert found == view(*workers, replace(worker(9), alive=False))  # a dead one adds nothing
    if found.prober is not None:
        prober = next(each for each in workers if each.slot == found.prober)
        assert prober.alive
        assert prober.probes
        assert prober.is_fresh(NOW)
    if found.refusing:
        assert any(each.alive and each.is_sane(NOW) for each in workers)


ACTS = st.lists(
    st.sampled_from(["fail", "succeed", "adopt", "release", "wait", "probe"]), max_size=40
)


@settings(max_examples=300)
@given(ACTS)
def test_no_word_from_others_admits_what_the_worker_alone_would_refuse(acts: list[str]) -> None:
    """Two breakers meet the same; one of them also hears whatever others may say."""
    clock = FakeClock()
    alone, told = (
        CircuitBreaker(failure_threshold=3, clock=clock, random=lambda: 0.0) for _ in range(2)
    )

    def ask(breaker: CircuitBreaker, *, probe: bool = False) -> Permit | None:
        answer = breaker.try_acquire(probe=probe)
        return answer if isinstance(answer, Permit) else None

    for act in acts:
        if act == "adopt":
            told.adopt(3)
        elif act == "release":
            told.release()
        elif act == "wait":
            clock.advance(7)
        else:
            outcome = Outcome.FAILURE if act == "fail" else Outcome.SUCCESS
            permit = ask(told, probe=act == "probe")
            if permit is None:
                continue  # refused: nothing was asked of Redis
            other = ask(alone, probe=act == "probe")
            told.settle(permit, outcome)
            if other is not None:
                alone.settle(other, outcome)
        if told.state is CircuitState.CLOSED:
            assert alone.state in (CircuitState.CLOSED, CircuitState.HALF_OPEN)
            assert told.failure_count >= alone.failure_count or alone.failure_count >= 3


def test_released_breaker_counts_on_from_where_it_was() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=3, clock=clock)
    for _ in range(2):
        breaker.settle(breaker.try_acquire(), Outcome.FAILURE)  # type: ignore[arg-type]
    assert breaker.adopt(5)
    assert not breaker.adopt(5)
    assert breaker.state is CircuitState.OPEN
    assert not breaker.try_acquire()
    assert breaker.release()
    assert breaker.failure_count == 2
    breaker.settle(breaker.try_acquire(), Outcome.FAILURE)  # type: ignore[arg-type]
    assert breaker.state is CircuitState.OPEN
    assert not breaker.release()  # this one it has seen for itself


def test_a_probe_that_fails_is_seen_for_itself() -> None:
    breaker = CircuitBreaker(clock=FakeClock())
    breaker.adopt(5)
    permit = breaker.try_acquire(probe=True)
    assert isinstance(permit, Permit)
    assert breaker.borrowed
    breaker.settle(permit, Outcome.FAILURE)
    assert not breaker.release()
    assert breaker.state is CircuitState.OPEN
