"""An app on a real server, and a client whose address a test chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_redis_guard import RedisGuard
from tests.support import RedisServer


class Made(NamedTuple):
    app: Flask
    guard: RedisGuard
    client: FlaskClient

    def codes(self, path: str, times: int, method: str = "GET", **options: Any) -> list[int]:
        """The status codes of so many equal requests."""
        return [self.client.open(path, method=method, **options).status_code for _ in range(times)]


@pytest.fixture
def make_app(redis_server: RedisServer) -> Callable[..., Made]:
    """Makes guarded apps on the shared server; their background checks are off."""

    def make(**config: Any) -> Made:
        app = Flask("tests")
        app.config.update(
            {
                "REDIS_URL": redis_server.url,
                "REDIS_GUARD_HEALTH_CHECK_INTERVAL": 0,
                "REDIS_GUARD_TIMEOUT": 5,  # on a busy machine; a killed server answers at once
                **config,
            }
        )
        app.secret_key = "not so secret"
        return Made(app, RedisGuard(app), app.test_client())

    return make
