"""What the gate makes of an operation that ended in a special way."""

from __future__ import annotations

from time import monotonic

import pytest
from redis import exceptions as redis_errors

from flask_redis_guard import RedisTimeout, RedisUnavailable
from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import Trust
from flask_redis_guard.core.breaker import CircuitBreaker, CircuitState


def make() -> Gate:
    return Gate(CircuitBreaker(failure_threshold=1), 0.5)


@pytest.mark.parametrize(
    ("seconds", "reason", "state"),
    [(0.5, "timeout", CircuitState.OPEN), (5.0, "worker-busy", CircuitState.CLOSED)],
)
def test_a_timeout_counts_if_this_process_was_there_to_be_answered(
    seconds: float, reason: str, state: CircuitState
) -> None:
    gate = make()
    operation = gate.begin("GET")
    operation.count(monotonic() - seconds, operation.allowance)
    error = gate.fail(operation, redis_errors.TimeoutError("Timeout reading from socket"))
    assert isinstance(error, RedisTimeout)
    assert (error.reason, gate.breaker.state) == (reason, state)


def test_what_a_replaced_primary_answered_is_refused() -> None:
    gate = make()
    operation = gate.begin("SET")
    operation.trust = Trust()
    operation.trust.revoked = True
    with pytest.raises(RedisUnavailable) as caught:
        gate.succeed(operation, True)
    assert caught.value.reason == "failover"
    assert gate.breaker.state is CircuitState.CLOSED
    assert operation.settled


@pytest.mark.parametrize(
    ("waited", "opened_by", "given_up"),
    [
        (0.25, "another", True),
        (0.2, "another", False),
        (0.25, "itself", False),
        (0.25, "nobody", False),
    ],
)
def test_whose_circuit_another_worker_opens_waits_no_more_than_half_of_its_time(
    waited: float, opened_by: str, given_up: bool
) -> None:
    gate = make()
    operation = gate.begin("GET")
    if opened_by == "another":
        gate.breaker.adopt(5)
    elif opened_by == "itself":
        gate.fail(gate.begin("SET"), redis_errors.TimeoutError("Timeout reading from socket"))
    operation.waited = waited
    looks = iter([False, True])
    assert operation.wait(lambda _: next(looks))  # who gives up looks once more, too
    assert operation.given_up is given_up
    error = gate.fail(operation, redis_errors.TimeoutError("Timeout reading from socket"))
    assert isinstance(error, RedisTimeout)
    assert error.reason == ("given-up" if given_up else "timeout")
    assert error.retry_after > 1


@pytest.mark.parametrize("what", ["blocks", "probes"])
def test_who_may_wait_longer_does(what: str) -> None:
    gate = make()
    if what == "probes":
        gate.breaker.adopt(5)
    operation = gate.begin("BLPOP", probe=what == "probes")
    if what == "blocks":
        operation.patience = 5.0
        gate.breaker.adopt(5)
    operation.waited = 0.4
    looks = iter([False, True])
    assert operation.wait(lambda _: next(looks))
    assert not operation.given_up
