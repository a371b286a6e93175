"""The state machine of the circuit breaker, on a clock of its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flask_redis_guard.core.breaker import (
    CircuitBreaker,
    CircuitState,
    Outcome,
    Permit,
    Refusal,
    Transition,
)
from tests.support import run_python
from tests.unit.clock import FakeClock

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


class Bench:
    """A breaker with its clock, its dice and all that it announced."""

    def __init__(self, dice: float = 0.0, **settings: Any) -> None:
        self.clock = FakeClock()
        self.told: list[Transition] = []
        options = {"failure_threshold": 3, "open_seconds": 30, "lease_seconds": 5, **settings}
        self.breaker = CircuitBreaker(
            clock=self.clock, random=lambda: dice, on_transition=self.told.append, **options
        )

    def permit(self, *, probe: bool = False) -> Permit:
        permit = self.breaker.try_acquire(probe=probe)
        assert isinstance(permit, Permit)
        return permit

    def refusal(self, *, probe: bool = False) -> Refusal:
        refusal = self.breaker.try_acquire(probe=probe)
        assert isinstance(refusal, Refusal)
        return refusal

    def call(self, outcome: Outcome) -> None:
        self.breaker.settle(self.permit(), outcome)

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.call(Outcome.FAILURE)

    def trip(self) -> None:
        self.fail(3)
        assert self.breaker.state is OPEN

    def half_open(self) -> None:
        self.trip()
        self.clock.advance(30)
        assert self.breaker.state is HALF_OPEN

    def steps(self) -> list[tuple[CircuitState, CircuitState, str]]:
        return [(t.previous, t.current, t.reason) for t in self.told]


# -- closed --------------------------------------------------------------------------------------


def test_opens_at_the_threshold_and_not_before() -> None:
    bench = Bench()
    bench.fail(2)
    assert bench.breaker.state is CLOSED
    assert bench.breaker.failure_count == 2
    bench.fail()
    assert bench.breaker.state is OPEN
    assert bench.told == [Transition(CLOSED, OPEN, "consecutive-failures", 3, 30)]


def test_success_between_starts_the_count_anew() -> None:
    bench = Bench(failure_rate=1.0)
    for _ in range(5):
        bench.fail(2)
        bench.call(Outcome.SUCCESS)
    assert bench.breaker.state is CLOSED
    assert bench.breaker.failure_count == 0


def test_neutral_touches_no_counter() -> None:
    bench = Bench()
    bench.fail(2)
    for _ in range(10):
        bench.call(Outcome.NEUTRAL)
    assert bench.breaker.failure_count == 2
    bench.fail()
    assert bench.breaker.state is OPEN


def test_everybody_shares_one_permit_while_nothing_fails() -> None:
    bench = Bench()
    assert bench.permit() is bench.permit()


def test_rate_opens_what_consecutive_failures_do_not() -> None:
    bench = Bench(failure_rate=0.5, minimum_calls=20, window_seconds=10)
    for call in range(19):
        bench.call(Outcome.SUCCESS if call % 2 else Outcome.FAILURE)
    assert bench.breaker.state is CLOSED
    bench.call(Outcome.SUCCESS)  # the twentieth, but a success never opens
    assert bench.breaker.state is CLOSED
    bench.fail()
    assert bench.told == [Transition(CLOSED, OPEN, "failure-rate", 11, 30)]


def test_rate_below_its_limit_never_opens() -> None:
    bench = Bench(failure_rate=0.5, minimum_calls=20)
    for call in range(300):
        bench.call(Outcome.FAILURE if call % 5 < 2 else Outcome.SUCCESS)
        bench.clock.advance(0.05)
    assert bench.breaker.state is CLOSED


def test_failures_leave_the_window_as_time_passes() -> None:
    bench = Bench(failure_threshold=100, failure_rate=0.5, minimum_calls=20, window_seconds=10)
    bench.fail(19)
    bench.clock.advance(11)
    bench.fail(19)
    assert bench.breaker.state is CLOSED
    bench.fail()
    assert bench.breaker.state is OPEN


# -- open ----------------------------------------------------------------------------------------


def test_open_refuses_and_says_for_how_long() -> None:
    bench = Bench()
    bench.trip()
    bench.clock.advance(12.5)
    assert bench.refusal() == Refusal(OPEN, 17.5)
    assert not bench.refusal()
    assert bench.breaker.retry_after == 17.5
    assert bench.breaker.seconds_in_state == 12.5


@settings(deadline=None)  # busy machines are no bugs
@given(dice=st.floats(0, 1, exclude_max=True))
def test_jitter_only_adds_and_at_most_a_tenth(dice: float) -> None:
    bench = Bench(dice)
    bench.trip()
    assert 30 <= bench.told[0].open_for <= 33
    bench.clock.advance(29.999)
    assert bench.breaker.state is OPEN
    bench.clock.advance(3.002)
    assert bench.breaker.state is HALF_OPEN


def test_time_alone_makes_it_half_open_for_whoever_looks_first() -> None:
    looks: list[Callable[[CircuitBreaker], object]] = [
        lambda breaker: breaker.state,
        lambda breaker: breaker.retry_after,
        lambda breaker: breaker.try_acquire(),
    ]
    for look in looks:
        bench = Bench()
        bench.trip()
        bench.clock.advance(30)
        look(bench.breaker)
        assert bench.steps()[1:] == [(OPEN, HALF_OPEN, "open-time-over")]


def test_result_of_an_earlier_generation_changes_nothing() -> None:
    bench = Bench()
    early = bench.permit()
    bench.trip()
    bench.breaker.settle(early, Outcome.SUCCESS)
    assert bench.breaker.state is OPEN
    bench.clock.advance(30)
    assert bench.breaker.state is HALF_OPEN
    for outcome in Outcome:
        bench.breaker.settle(early, outcome)
    assert bench.breaker.state is HALF_OPEN
    assert bench.breaker.failure_count == 3


def test_failures_of_an_earlier_closed_time_do_not_open_the_next() -> None:
    bench = Bench()
    early = bench.permit()
    bench.trip()
    bench.breaker.reset()
    for _ in range(3):
        bench.breaker.settle(early, Outcome.FAILURE)
    assert bench.breaker.state is CLOSED
    assert bench.breaker.failure_count == 0


# -- half-open -----------------------------------------------------------------------------------


@pytest.mark.parametrize("permits", [1, 3])
def test_half_open_gives_no_more_than_its_permits(permits: int) -> None:
    bench = Bench(half_open_permits=permits)
    bench.half_open()
    held = [bench.permit() for _ in range(permits)]
    assert bench.refusal() == Refusal(HALF_OPEN, 5)
    bench.breaker.settle(held[0], Outcome.NEUTRAL)
    bench.permit()
    bench.refusal()


def test_half_open_permits_hold_against_64_threads() -> None:
    bench = Bench(half_open_permits=2)
    bench.half_open()
    barrier = threading.Barrier(64)
    answers: list[Permit | Refusal] = []

    def ask() -> None:
        barrier.wait()
        answers.append(bench.breaker.try_acquire())

    threads = [threading.Thread(target=ask) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 64
    assert sum(isinstance(answer, Permit) for answer in answers) == 2


def test_successful_probes_close_it() -> None:
    bench = Bench(success_threshold=2)
    bench.half_open()
    bench.call(Outcome.SUCCESS)
    assert bench.breaker.state is HALF_OPEN
    bench.call(Outcome.SUCCESS)
    assert bench.breaker.state is CLOSED
    assert bench.breaker.failure_count == 0
    assert bench.steps()[-1] == (HALF_OPEN, CLOSED, "probes-succeeded")


def test_failed_probe_opens_it_for_another_whole_time() -> None:
    bench = Bench()
    bench.half_open()
    bench.call(Outcome.SUCCESS)
    bench.fail()
    assert bench.told[-1] == Transition(HALF_OPEN, OPEN, "probe-failed", 4, 30)
    bench.clock.advance(29.9)
    bench.refusal()
    bench.clock.advance(0.1)
    bench.call(Outcome.SUCCESS)
    assert bench.breaker.state is HALF_OPEN  # the success before the failure is forgotten


def test_probe_in_flight_of_an_earlier_round_takes_no_place_in_the_next() -> None:
    bench = Bench(half_open_permits=2, open_seconds=1, lease_seconds=60)
    bench.trip()
    bench.clock.advance(1)
    lost = bench.permit()
    bench.fail()
    bench.clock.advance(1)
    bench.permit()
    bench.permit()
    bench.breaker.settle(lost, Outcome.FAILURE)
    assert bench.breaker.state is HALF_OPEN


def test_neutral_probe_counts_neither_way() -> None:
    bench = Bench(success_threshold=1)
    bench.half_open()
    bench.call(Outcome.NEUTRAL)
    assert bench.breaker.state is HALF_OPEN


def test_probe_settled_twice_counts_once() -> None:
    bench = Bench(success_threshold=2)
    bench.half_open()
    permit = bench.permit()
    bench.breaker.settle(permit, Outcome.SUCCESS)
    bench.breaker.settle(permit, Outcome.SUCCESS)
    assert bench.breaker.state is HALF_OPEN


def test_lost_probe_returns_its_permit_and_its_late_result_counts_for_nothing() -> None:
    bench = Bench(success_threshold=1)
    bench.half_open()
    lost = bench.permit()
    bench.clock.advance(4.9)
    assert bench.refusal().retry_after == pytest.approx(0.1)
    bench.clock.advance(0.1)
    current = bench.permit()
    for outcome in (Outcome.FAILURE, Outcome.SUCCESS):
        bench.breaker.settle(lost, outcome)
        assert bench.breaker.state is HALF_OPEN
    bench.refusal()  # the lost one did not free the current one's place
    bench.breaker.settle(current, Outcome.SUCCESS)
    assert bench.breaker.state is CLOSED


def test_result_after_the_lease_counts_for_nothing() -> None:
    bench = Bench(success_threshold=1)
    bench.half_open()
    permit = bench.permit()
    bench.clock.advance(5)
    bench.breaker.settle(permit, Outcome.SUCCESS)
    assert bench.breaker.state is HALF_OPEN


def test_first_probe_is_the_monitors_until_it_went_through() -> None:
    bench = Bench()
    bench.breaker.reserve_probes(5)
    bench.half_open()
    assert bench.refusal() == Refusal(HALF_OPEN, 5)
    bench.breaker.settle(bench.permit(probe=True), Outcome.SUCCESS)
    bench.call(Outcome.SUCCESS)
    assert bench.breaker.state is CLOSED


def test_neutral_probe_of_the_monitor_leaves_users_out() -> None:
    bench = Bench()
    bench.breaker.reserve_probes(5)
    bench.half_open()
    bench.breaker.settle(bench.permit(probe=True), Outcome.NEUTRAL)
    bench.refusal()


def test_dead_monitor_wedges_nothing() -> None:
    bench = Bench()
    bench.breaker.reserve_probes(5)
    bench.half_open()
    bench.clock.advance(4.9)
    bench.refusal()
    bench.clock.advance(0.1)
    bench.permit()


def test_ending_the_reservation_lets_users_probe_at_once() -> None:
    bench = Bench()
    bench.breaker.reserve_probes(5)
    bench.half_open()
    bench.breaker.reserve_probes(0)
    bench.permit()


# -- operators -----------------------------------------------------------------------------------


def test_forced_open_stays_so_until_reset() -> None:
    bench = Bench()
    bench.breaker.force_open()
    bench.clock.advance(10_000)
    assert bench.refusal(probe=True) == Refusal(CircuitState.FORCED_OPEN, 30)
    assert bench.breaker.retry_after == 30
    bench.breaker.reset()
    bench.permit()
    assert [t.reason for t in bench.told] == ["operator", "operator"]


def test_disabled_lets_everybody_pass_and_counts_nothing() -> None:
    bench = Bench()
    bench.trip()
    bench.breaker.disable()
    bench.fail(100)
    assert bench.breaker.state is CircuitState.DISABLED
    assert bench.breaker.retry_after == 0
    bench.breaker.reset()
    assert bench.breaker.failure_count == 0


def test_permit_of_a_disabled_breaker_says_nothing_after_it() -> None:
    bench = Bench(failure_threshold=1)
    bench.breaker.disable()
    permit = bench.permit()
    bench.breaker.reset()
    bench.breaker.settle(permit, Outcome.FAILURE)
    assert bench.breaker.state is CLOSED


def test_reset_of_a_closed_breaker_forgets_and_announces_nothing() -> None:
    bench = Bench()
    bench.fail(2)
    bench.breaker.reset()
    bench.fail(2)
    assert bench.breaker.state is CLOSED
    assert bench.told == []


# -- the background prober while open ------------------------------------------------------------


def test_only_the_prober_passes_while_open_and_one_probe_at_once() -> None:
    bench = Bench()
    bench.trip()
    bench.refusal()
    permit = bench.permit(probe=True)
    bench.refusal(probe=True)
    bench.breaker.settle(permit, Outcome.NEUTRAL)
    assert bench.breaker.state is OPEN
    bench.permit(probe=True)


def test_two_successes_of_the_prober_close_it_and_no_user_passes_between() -> None:
    bench = Bench(success_threshold=2)
    bench.breaker.reserve_probes(5)
    bench.trip()
    bench.breaker.settle(bench.permit(probe=True), Outcome.SUCCESS)
    assert bench.breaker.state is HALF_OPEN
    assert bench.breaker.refusing
    bench.refusal()
    bench.breaker.settle(bench.permit(probe=True), Outcome.SUCCESS)
    assert bench.breaker.state is CLOSED
    told = [(t.previous, t.current, t.reason) for t in bench.told[1:]]
    assert told == [
        (OPEN, HALF_OPEN, "redis-answered"),
        (HALF_OPEN, CLOSED, "probes-succeeded"),
    ]


def test_failure_of_the_second_probe_opens_it_again() -> None:
    bench = Bench()
    bench.trip()
    bench.breaker.settle(bench.permit(probe=True), Outcome.SUCCESS)
    bench.breaker.settle(bench.permit(probe=True), Outcome.FAILURE)
    assert bench.breaker.state is OPEN
    assert bench.told[-1].reason == "probe-failed"


def test_open_time_lets_no_user_probe_while_the_prober_is_at_work() -> None:
    bench = Bench(open_seconds=30)
    bench.trip()
    for _ in range(40):
        bench.breaker.expect_probe(3)
        bench.clock.advance(1)
        bench.breaker.settle(bench.permit(probe=True), Outcome.FAILURE)
        assert bench.breaker.state is OPEN
        assert 0 < bench.refusal().retry_after <= 30
    assert [t.current for t in bench.told] == [OPEN]  # a dead Redis is told once
    assert bench.breaker.seconds_in_state == 40


def test_prober_that_died_wedges_nothing() -> None:
    bench = Bench(open_seconds=30)
    bench.trip()
    bench.breaker.expect_probe(3)
    hung = bench.permit(probe=True)
    bench.clock.advance(30)
    assert bench.breaker.state is HALF_OPEN
    bench.permit()
    bench.breaker.settle(hung, Outcome.SUCCESS)  # far too late
    assert bench.breaker.state is HALF_OPEN


def test_operator_keeps_the_prober_out_too() -> None:
    bench = Bench()
    bench.trip()
    permit = bench.permit(probe=True)
    bench.breaker.force_open()
    bench.refusal(probe=True)
    bench.breaker.settle(permit, Outcome.SUCCESS)
    assert bench.breaker.state is CircuitState.FORCED_OPEN


@pytest.mark.parametrize("step", range(1, 40))
def test_exception_anywhere_in_a_transition_wedges_nothing_and_lets_nobody_pass_unasked(
    step: int,
) -> None:
    # What a signal handler may do: raise between any two lines of the breaker's own code.
    bench = Bench(failure_threshold=1, success_threshold=1, open_seconds=30)
    done = 0

    def tracer(frame: Any, event: str, arg: object) -> Any:
        nonlocal done
        if not frame.f_code.co_filename.endswith("core/breaker.py"):
            return None
        done += event == "line"
        if done == step:
            raise KeyboardInterrupt
        return tracer

    permit = bench.permit()
    measuring = sys.gettrace()  # by `make coverage`, also of the tests that follow
    sys.settrace(tracer)
    try:
        bench.breaker.settle(permit, Outcome.FAILURE)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(measuring)
    thread = threading.Thread(target=bench.breaker.try_acquire, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()  # no lock is held
    if bench.breaker.state is CLOSED:  # the failure was lost, the next one opens it
        bench.fail()
    bench.clock.advance(40)
    assert bench.breaker.state is HALF_OPEN
    probe = bench.permit()
    bench.refusal()
    bench.breaker.settle(probe, Outcome.SUCCESS)
    assert bench.breaker.state is CLOSED
    bench.breaker.force_open()
    assert bench.told[-1].current is CircuitState.FORCED_OPEN  # announcements go on


def test_signal_handler_in_the_middle_of_the_breaker_may_use_it() -> None:
    bench = Bench()
    with bench.breaker._lock:
        bench.fail(2)
        bench.breaker.force_open()
    bench.refusal()


# -- telling -------------------------------------------------------------------------------------


def test_receiver_finds_the_lock_free_and_may_use_the_breaker() -> None:
    seen: list[tuple[CircuitState, str]] = []
    clock = FakeClock()

    def receiver(transition: Transition) -> None:
        seen.append((transition.current, breaker.state.value))
        if transition.current is OPEN:
            breaker.reset()  # causes a transition while one is being told
            seen.append((breaker.state, "after reset"))

    breaker = CircuitBreaker(failure_threshold=1, clock=clock, on_transition=receiver)
    permit = breaker.try_acquire()
    assert isinstance(permit, Permit)
    breaker.settle(permit, Outcome.FAILURE)
    assert seen == [(OPEN, "open"), (CLOSED, "after reset"), (CLOSED, "closed")]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_receiver_that_fails_leaves_the_breaker_correct(
    interruption: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[CircuitState] = []
    clock = FakeClock()

    def receiver(transition: Transition) -> None:
        told.append(transition.current)
        raise interruption

    breaker = CircuitBreaker(
        failure_threshold=1, success_threshold=1, clock=clock, on_transition=receiver
    )

    def go(outcome: Outcome) -> None:
        permit = breaker.try_acquire()
        assert isinstance(permit, Permit)
        breaker.settle(permit, outcome)

    def expect(outcome: Outcome) -> None:
        if interruption is RuntimeError:
            go(outcome)
        else:
            with pytest.raises(interruption):
                go(outcome)

    expect(Outcome.FAILURE)
    assert breaker.state is OPEN
    clock.advance(40)
    if interruption is RuntimeError:
        assert breaker.state is HALF_OPEN
        assert "receiver of a circuit breaker transition failed" in caplog.text
    else:
        with pytest.raises(interruption):
            _ = breaker.state
    expect(Outcome.SUCCESS)
    assert breaker.state is CLOSED
    assert told == [OPEN, HALF_OPEN, CLOSED]


def test_fork_in_the_middle_of_an_announcement_silences_nobody() -> None:
    told = run_python(
        """
        import os
        from flask_redis_guard import CircuitBreaker
        from flask_redis_guard.core.breaker import Outcome

        seen, children = [], []

        def receiver(transition):
            seen.append(transition.current.value)
            if len(seen) == 1:
                children.append(os.fork())

        breaker = CircuitBreaker(failure_threshold=1, on_transition=receiver)
        breaker.settle(breaker.try_acquire(), Outcome.FAILURE)
        breaker.force_open()
        if children[0]:
            os.waitpid(children[0], 0)
        print("parent" if children[0] else "child", *seen, flush=True)
        """
    )
    assert told == "child open forced-open\nparent open forced-open\n"


def test_fork_while_another_thread_announces_silences_nobody() -> None:
    told = run_python(
        """
        import os, threading, warnings
        from flask_redis_guard import CircuitBreaker

        warnings.simplefilter("ignore")  # of forking with threads
        inside, forked = threading.Event(), threading.Event()

        def receiver(transition):
            if os.getpid() == parent:
                inside.set()
                forked.wait(10)
            else:
                print(transition.current.value, flush=True)

        parent = os.getpid()
        breaker = CircuitBreaker(on_transition=receiver)
        thread = threading.Thread(target=breaker.force_open)
        thread.start()
        inside.wait(10)
        child = os.fork()
        if not child:
            breaker.disable()
            os._exit(0)
        os.waitpid(child, 0)
        forked.set()
        thread.join()
        """
    )
    assert told == "disabled\n"


def test_a_finalizer_in_the_middle_of_the_breaker_can_end_its_call() -> None:
    # A pipeline that the garbage collector finds in any allocation gives its permit back.
    bench = Bench()
    permit = bench.permit()
    bench.breaker.settle(permit, Outcome.FAILURE)
    with bench.breaker._lock:
        settling = threading.Thread(
            target=bench.breaker.settle, args=(permit, Outcome.NEUTRAL), daemon=True
        )
        settling.start()
        settling.join(5)
        assert not settling.is_alive()
    assert bench.breaker.failure_count == 1


def test_child_of_a_process_that_held_the_lock_can_use_the_breaker() -> None:
    told = run_python(
        """
        import os
        from flask_redis_guard import CircuitBreaker

        breaker = CircuitBreaker()
        breaker.force_open()
        with breaker._lock:  # another thread is in the middle of something
            child = os.fork()
            if not child:
                breaker.reset()
                print(breaker.state, flush=True)
                os._exit(0)
        os.waitpid(child, 0)
        """,
        timeout=10,
    )
    assert told == "closed\n"


def test_child_forked_within_a_transition_lets_nobody_pass_for_ever() -> None:
    bench = Bench(failure_threshold=1)
    # What such a child finds: the permit taken away, the state not yet changed.
    bench.breaker.shared = None
    bench.fail()
    assert bench.breaker.state is OPEN
    bench.refusal()


def test_transitions_of_many_threads_are_told_in_order() -> None:
    told: list[Transition] = []
    breaker = CircuitBreaker(failure_threshold=1, on_transition=told.append)

    def play() -> None:
        for _ in range(100):
            breaker.force_open()
            breaker.disable()
            breaker.reset()

    threads = [threading.Thread(target=play) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) > 100
    assert told[0].previous is CLOSED
    for before, after in pairwise(told):
        assert before.current is after.previous


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["failure_threshold", "minimum_calls", "success_threshold", "half_open_permits"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", None, True])
def test_counts_are_whole_numbers_of_at_least_one(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a whole number of at least 1"):
        CircuitBreaker(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["window_seconds", "open_seconds", "lease_seconds"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "5", None, True])
def test_seconds_are_finite_and_above_zero(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a finite number above 0"):
        CircuitBreaker(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, 1.01, float("nan"), "0.5"])
def test_rate_is_a_share(value: object) -> None:
    with pytest.raises(ValueError, match=r"^failure_rate must be .* at most 1"):
        CircuitBreaker(failure_rate=value)  # type: ignore[arg-type]


# -- all of it, at random ------------------------------------------------------------------------


class BreakerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, these things hold."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(half_open_permits=2, dice=0.5)
        self.open: list[Permit] = []

    @property
    def breaker(self) -> CircuitBreaker:
        return self.bench.breaker

    @rule(probe=st.booleans())
    def acquire(self, probe: bool) -> None:
        answer = self.breaker.try_acquire(probe=probe)
        state = self.breaker.state
        if isinstance(answer, Refusal):
            assert answer.state is state
            assert answer.retry_after >= 0
            assert state not in (CLOSED, CircuitState.DISABLED)
        else:
            assert state is not CircuitState.FORCED_OPEN
            assert probe or state is not OPEN
            self.open.append(answer)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def settle(self, data: st.DataObject, outcome: Outcome) -> None:
        permit = data.draw(st.sampled_from(self.open))
        before, count = self.breaker.state, self.breaker.failure_count
        stale = permit.generation != self.breaker._generation
        self.breaker.settle(permit, outcome)
        self.open.remove(permit)
        if stale or outcome is Outcome.NEUTRAL:
            assert self.breaker.state is before
            assert self.breaker.failure_count == count

    @rule(seconds=st.sampled_from([0.1, 4.0, 11.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    @rule(seconds=st.sampled_from([0, 5]))
    def reserve(self, seconds: float) -> None:
        self.breaker.reserve_probes(seconds)

    @rule(seconds=st.sampled_from([0, 5, 31]))
    def expect(self, seconds: float) -> None:
        self.breaker.expect_probe(seconds)

    @rule(deed=st.sampled_from(["reset", "force_open", "disable"]))
    def operate(self, deed: str) -> None:
        getattr(self.breaker, deed)()

    @invariant()
    def announcements_form_a_chain(self) -> None:
        current = CLOSED
        for transition in self.bench.told:
            assert transition.previous is current
            assert transition.current is not current
            current = transition.current
        assert self.breaker._state is current

    @invariant()
    def nothing_wedges(self) -> None:
        if self.breaker.state in (CLOSED, CircuitState.DISABLED):
            assert self.breaker.retry_after == 0
        elif self.breaker.state is OPEN:
            assert 0 < self.breaker.retry_after <= 33
        else:
            assert self.breaker.retry_after <= 30


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(deadline=None)
