"""Fixtures of the tests of sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from flask_redis_guard import RedisGuard, SessionStore
from tests.support import RedisServer
from tests.support.session_apps import session_app


class Setup(NamedTuple):
    """An app with guarded sessions, and the server that they are on."""

    app: Flask
    guard: RedisGuard
    server: RedisServer

    @property
    def store(self) -> SessionStore:
        return self.guard.sessions_for(self.app)

    def client(self, *, like: FlaskClient | None = None) -> FlaskClient:
        """A browser; with ``like`` one that holds the same session cookie."""
        client = self.app.test_client()
        if like is not None:
            client.set_cookie("session", cookie_of(like))
        return client

    def stored_keys(self) -> list[str]:
        """All keys on the server."""
        with self.server.client() as plain:
            keys: list[str] = plain.keys("*")
            return keys


def cookie_of(client: FlaskClient) -> str:
    """The session cookie that a browser holds."""
    cookie = client.get_cookie("session")
    assert cookie is not None, "there is no session cookie"
    return cookie.value


@pytest.fixture
def make_setup(redis_server: RedisServer) -> Callable[..., Setup]:
    """Makes an app with guarded sessions; its arguments are configuration."""

    def make(**config: Any) -> Setup:
        app, guard = session_app(redis_server.url, **config)
        return Setup(app, guard, redis_server)

    return make


@pytest.fixture
def setup(make_setup: Callable[..., Setup]) -> Setup:
    """An app with guarded sessions and the default configuration."""
    return make_setup()


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[SessionStore]:
    """A store on a plain client of redis-py's."""
    with redis_server.client(decode_responses=False) as client:
        yield SessionStore(client)


@contextlib.contextmanager
def round_trips(server: RedisServer) -> Iterator[list[str]]:
    """The names of the commands that the server is sent in the block, those in scripts not."""
    seen: list[str] = []
    with server.client() as plain, redis.Redis(port=server.port) as own, own.monitor() as monitor:
        # Connect before anything is counted, and drop what that showed.
        plain.execute_command("ECHO", "the beginning")
        next(c for c in monitor.listen() if "the beginning" in c["command"])
        yield seen
        plain.execute_command("ECHO", "the end")
        for command in monitor.listen():
            if "the end" in command["command"]:
                return
            if command["client_type"] != "lua":
                seen.append(command["command"].split()[0].upper())
