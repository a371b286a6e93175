"""Fixtures that every test may use."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support import ClusterSetup, RedisServer, SentinelSetup


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


@pytest.fixture(autouse=True)
def gevent_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Background checks start by themselves, whatever has imported gevent into this process.

    Flask-SocketIO does; a guard that finds gevent loaded and not patched waits for a request.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        monkeypatch.delitem(sys.modules, "gevent", raising=False)


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
