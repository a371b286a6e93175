"""The real scripts with a clock that tests turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import fakeredis
import pytest
import redis

from flask_redis_guard.limiting.limiter import RateLimiter
from tests.support import RedisServer
from tests.support.clocked import Clocked

_subjects = itertools.count()


class ServerTime:
    """The time that scripts are told, in microseconds, and fresh subjects to count."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.now

    def start(self, now: int) -> int:
        """A new trace: from this time on, with a subject never seen before."""
        self.now = now
        return next(_subjects)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module", params=["server", "memory"])
def store(request: pytest.FixtureRequest) -> redis.Redis:
    """A client of a real server, and of the in-memory store of development."""
    if request.param == "memory":
        return fakeredis.FakeRedis()
    server: RedisServer = request.getfixturevalue("server")
    return server.client()


@pytest.fixture(scope="module")
def clock() -> ServerTime:
    return ServerTime()


@pytest.fixture(scope="module")
def limiter(server: RedisServer, clock: ServerTime) -> RateLimiter:
    """On a real server, asking it every time."""
    return RateLimiter(Clocked(server.client(), clock), denial_cache_size=0)
