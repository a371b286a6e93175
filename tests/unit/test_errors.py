"""What the guard raises: a redis exception, an HTTP error, and a value that travels."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import redis
from werkzeug.exceptions import HTTPException, ServiceUnavailable, TooManyRequests

from flask_redis_guard import (
    CircuitOpen,
    ConfigurationError,
    Decision,
    GuardError,
    Rate,
    RateLimitExceeded,
    RedisTimeout,
    RedisUnavailable,
)

DECISION = Decision(False, 5, 0, 60.0, 12.3, Rate(5, 60))
UNAVAILABLE = (RedisUnavailable, CircuitOpen, RedisTimeout)
TRAVELS: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda e, v=v: pickle.loads(pickle.dumps(e, v)) for v in range(pickle.HIGHEST_PROTOCOL + 1)),
]


def body_of(error: HTTPException) -> tuple[int, dict[str, Any], Any]:
    response = error.get_response()
    return response.status_code, json.loads(response.get_data()), response.headers


@pytest.mark.parametrize("kind", UNAVAILABLE)
@pytest.mark.parametrize("travel", TRAVELS)
def test_unavailable_travels_whole(
    kind: type[RedisUnavailable], travel: Callable[[Any], Any]
) -> None:
    error = kind("GET", "timeout", 29.1)
    arrived = travel(error)
    assert type(arrived) is kind
    assert (arrived.operation, arrived.reason, arrived.retry_after) == ("GET", "timeout", 30)
    assert str(arrived) == "Redis is unavailable for GET (timeout)"
    assert arrived.code == 503
    assert body_of(arrived)[2]["Retry-After"] == body_of(error)[2]["Retry-After"]


def test_clients_are_not_told_to_return_in_step() -> None:
    answers = [body_of(RedisUnavailable("GET", "timeout", 30))[2] for _ in range(200)]
    assert {int(headers["Retry-After"]) for headers in answers} == set(range(30, 37))
    assert body_of(RedisUnavailable("GET", "timeout", 1))[2]["Retry-After"] == "1"


@pytest.mark.parametrize("travel", TRAVELS)
def test_limit_error_travels_whole(travel: Callable[[Any], Any]) -> None:
    arrived = travel(RateLimitExceeded(DECISION))
    assert arrived.decision == DECISION
    assert arrived.retry_after == 13
    assert body_of(arrived)[0] == 429


@pytest.mark.parametrize("travel", TRAVELS)
def test_configuration_error_travels_whole(travel: Callable[[Any], Any]) -> None:
    arrived = travel(ConfigurationError("KEY", 0, "more"))
    assert str(arrived) == "KEY is 0; accepted: more"
    assert (arrived.key, arrived.value, arrived.accepted) == ("KEY", 0, "more")


@pytest.mark.parametrize("kind", UNAVAILABLE)
def test_unavailable_is_what_existing_code_catches(kind: type[RedisUnavailable]) -> None:
    assert issubclass(kind, GuardError)
    assert issubclass(kind, redis.ConnectionError)
    assert issubclass(kind, ServiceUnavailable)
    with pytest.raises(redis.RedisError):
        raise kind("GET", "connection")
    assert issubclass(kind, redis.TimeoutError) is (kind is RedisTimeout)
    assert not issubclass(kind, TooManyRequests)


def test_the_others_are_what_they_say() -> None:
    assert issubclass(RateLimitExceeded, TooManyRequests)
    assert not issubclass(RateLimitExceeded, redis.RedisError)
    assert issubclass(ConfigurationError, ValueError)
    assert not issubclass(ConfigurationError, HTTPException)


@pytest.mark.parametrize(("seconds", "shown"), [(0, 1), (0.01, 1), (1, 1), (1.01, 2), (33, 33)])
def test_retry_after_is_rounded_up_and_at_least_one(seconds: float, shown: int) -> None:
    assert CircuitOpen("GET", "circuit-open", seconds).retry_after == shown


def test_bodies_are_problems_of_the_registered_types() -> None:
    status, problem, headers = body_of(CircuitOpen("SECRET-OPERATION", "circuit-open", 7))
    assert status == problem["status"] == 503
    assert problem["type"].endswith("#temporary-reduced-capacity")
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["Cache-Control"] == "no-store"
    assert "SECRET" not in json.dumps(problem)
    status, problem, headers = body_of(RateLimitExceeded(DECISION))
    assert status == problem["status"] == 429
    assert problem["type"].endswith("#quota-exceeded")
    assert headers["Content-Type"] == "application/problem+json"


def test_redis_attributes_are_there_for_code_that_reads_them() -> None:
    plain, ours = redis.ConnectionError("x"), RedisUnavailable("GET", "connection")
    for name in vars(plain):
        assert hasattr(ours, name), name
    assert repr(ours)
