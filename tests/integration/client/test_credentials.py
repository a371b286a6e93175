"""A credential provider that streams: connections are made anew with what it has now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis import credentials

from tests.support import ClusterSetup, RedisServer, SentinelSetup
from tests.support.guarded import Guarded

Streaming = getattr(credentials, "StreamingCredentialProvider", None)
pytestmark = pytest.mark.skipif(Streaming is None, reason="redis-py before 5.3 has none")


class Tokens(Streaming or object):  # type: ignore[misc]
    """Gives the credentials of now, and tells one callback of new ones, as providers do."""

    def __init__(self, servers: list[RedisServer]) -> None:
        self._servers = servers
        self._number = 0
        self._renewed: Callable[[Any], None] = lambda token: None
        self._failed: Callable[[Exception], None] = lambda error: None
        self._set("on", ">token-0", "~*", "+@all")

    def _set(self, *words: str) -> None:
        for server in self._servers:
            with redis.Redis(port=server.port) as admin:
                admin.execute_command("ACL", "SETUSER", "caller", *words)

    def get_credentials(self) -> tuple[str, str]:
        return "caller", f"token-{self._number}"

    def on_next(self, callback: Callable[[Any], None]) -> None:
        self._renewed = callback

    def on_error(self, callback: Callable[[Exception], None]) -> None:
        self._failed = callback

    def is_streaming(self) -> bool:
        return True

    def renew(self) -> None:
        """Have the servers know another password, and no more the one before the one of before."""
        self._set(f">token-{self._number + 1}")
        self._number += 1
        self._renewed(None)
        if self._number > 1:
            self._set(f"<token-{self._number - 2}")

    def fail(self) -> None:
        """Get no new credentials."""
        self._failed(ConnectionError("https://user:secret@issuer"))

    def connections(self) -> set[tuple[int, str]]:
        """Return those that the callers have."""
        found = set()
        for server in self._servers:
            with redis.Redis(port=server.port, decode_responses=True) as admin:
                clients = admin.client_list()
                found |= {(server.port, each["id"]) for each in clients if each["user"] == "caller"}
        return found


@pytest.mark.parametrize("topology", ["redis_server", "sentinel_setup", "cluster_setup"])
def test_new_credentials_cost_no_request(topology: str, request: pytest.FixtureRequest) -> None:
    setup: RedisServer | SentinelSetup | ClusterSetup = request.getfixturevalue(topology)
    servers = [setup] if isinstance(setup, RedisServer) else list(setup.servers)
    tokens = Tokens(servers)
    options = {"credential_provider": tokens}
    guarded = Guarded(setup.url, REDIS_GUARD_CLIENT_OPTIONS=options, REDIS_GUARD_TIMEOUT=2)
    with guarded.app.app_context():
        limiter = guarded.guard.limiter
    over, errors = threading.Event(), []

    def decide(name: str) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            try:
                limiter.hit("1000000/minute", f"{name}-{turn % 20}")
            except Exception as exc:
                errors.append(exc)

    callers = [threading.Thread(target=decide, args=(f"caller-{n}",)) for n in range(8)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(5):
            over.wait(0.1)
            before = tokens.connections()
            tokens.renew()
    finally:
        over.wait(0.2)
        over.set()
        for caller in callers:
            caller.join()
    assert errors == []
    after = tokens.connections()
    assert before
    assert after
    assert not before & after
    guarded.close()


def test_that_there_are_none_is_said_without_a_secret(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = Tokens([redis_server])
    options = {"credential_provider": tokens}
    guarded = Guarded(redis_server.url, REDIS_GUARD_CLIENT_OPTIONS=options)
    tokens.fail()
    assert guarded.client.ping()
    assert "no new credentials: ConnectionError" in caplog.text
    assert "secret" not in caplog.text
    guarded.close()
