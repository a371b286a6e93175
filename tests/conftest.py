"""Fixtures that every test may use."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ClusterSetup, RedisServer, SentinelSetup

_numbers = itertools.count()


def pytest_sessionfinish() -> None:
    """Let `make coverage` have what this worker measured: one that is slow to end is killed."""
    coverage = sys.modules.get("coverage")
    measuring = coverage and coverage.Coverage.current()
    if measuring:
        measuring.save()


@pytest.fixture(scope="session")
def _boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("boards")


@pytest.fixture(autouse=True)
def _own_host(_boards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is a host of its own: apps of others are no workers of its apps."""
    monkeypatch.setenv("REDIS_GUARD_HOST_STATE", str(_boards / str(next(_numbers))))


@pytest.fixture(scope="session")
def _shared_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(_shared_server: RedisServer) -> RedisServer:
    """A real server as freshly started, shared by tests that leave it alive and unpaused."""
    _shared_server.reset()
    return _shared_server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A real server of the test's own, to kill, pause and restart."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def sentinel_setup() -> Iterator[SentinelSetup]:
    """One primary, one replica, three sentinels, for all tests of a module."""
    with SentinelSetup() as setup:
        yield setup


@pytest.fixture(scope="module")
def cluster_setup() -> Iterator[ClusterSetup]:
    """Three primaries with a replica each, for all tests of a module."""
    with ClusterSetup() as setup:
        yield setup
