"""The context managers of :mod:`flask_redis_guard.testing` as pytest fixtures.

``pytest_plugins = ["flask_redis_guard.testing.fixtures"]`` in a ``conftest.py`` brings them in.
They need a fixture ``app`` that gives the Flask app, as Flask's own tutorial has it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask

from flask_redis_guard import testing
from flask_redis_guard.core.breaker import CircuitBreaker


@pytest.fixture
def redis_outage(app: Flask) -> Iterator[CircuitBreaker]:
    """Redis cannot be reached during the test; gives the app's breaker."""
    with testing.outage(app) as breaker:
        yield breaker


@pytest.fixture
def redis_hang(app: Flask) -> Iterator[CircuitBreaker]:
    """Redis does not answer during the test; gives the app's breaker."""
    with testing.hang(app) as breaker:
        yield breaker


@pytest.fixture
def redis_read_only(app: Flask) -> Iterator[CircuitBreaker]:
    """Redis takes no writes during the test; gives the app's breaker."""
    with testing.read_only(app) as breaker:
        yield breaker
