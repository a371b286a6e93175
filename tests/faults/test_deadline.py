"""``REDIS_GUARD_TIMEOUT`` bounds every path, whatever the server does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flask_redis_guard import RedisTimeout, RedisUnavailable
from tests.support import (
    DrippingServer,
    HandshakeStaller,
    Proxy,
    RedisServer,
    SilentServer,
    TLSIdentity,
    eventually,
)
from tests.support.guarded import NEVER_OPENS, Guarded

pytestmark = pytest.mark.timing

TIMEOUT = 0.5
SLACK = 0.4  # for a busy machine


def _pipeline(client: Any) -> Any:
    return client.pipeline(transaction=False).get("a").get("b").execute()


def _subscribe(client: Any) -> Any:
    with client.pubsub() as subscriber:
        subscriber.subscribe("channel")


PATHS: dict[str, Callable[[Any], Any]] = {
    "get": lambda client: client.get("k"),
    "pipeline": _pipeline,
    "transaction": lambda client: client.transaction(lambda pipe: pipe.multi(), "k"),
    "eval": lambda client: client.eval("return 1", 0),
    "lock": lambda client: client.lock("l").acquire(blocking=False),
    "scan": lambda client: list(client.scan_iter()),
    "own connection": lambda client: client.client().get("k"),
}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLSIdentity:
    return TLSIdentity(str(tmp_path_factory.mktemp("tls")))


@contextmanager
def _silent_tls(tls: TLSIdentity) -> Iterator[str]:
    with SilentServer() as server:
        yield f"rediss://127.0.0.1:{server.port}/0?ssl_ca_certs={tls.ca_file}"


@contextmanager
def _dripping_tls(tls: TLSIdentity) -> Iterator[str]:
    with DrippingServer(drip_handshake=False) as server, Proxy(server.port, tls=tls) as proxy:
        proxy.drip(0.05)  # single bytes of TLS records
        yield proxy.url


@contextmanager
def _url(server: Any, login: str = "") -> Iterator[str]:
    with server:
        yield server.url.replace("://", f"://{login}")


SERVERS: dict[str, Callable[[TLSIdentity], Any]] = {
    "drips a byte every 0.4 s": lambda tls: _url(DrippingServer(drip_handshake=False)),
    "drips in the handshake": lambda tls: _url(DrippingServer(), ":secret@"),
    "says nothing": lambda tls: _url(SilentServer(), ":secret@"),
    "stalls in the handshake": lambda tls: _url(HandshakeStaller(), ":secret@"),
    "stalls the TLS handshake": _silent_tls,
    "drips TLS records": _dripping_tls,
}


@pytest.mark.parametrize("server", SERVERS)
def test_every_path_ends_at_the_deadline(server: str, tls: TLSIdentity) -> None:
    with SERVERS[server](tls) as url:
        guarded = Guarded(url, REDIS_GUARD_TIMEOUT=TIMEOUT, **NEVER_OPENS)
        # redis-py reads all certificates for each TLS connection: a tenth of a second of CPU.
        names = list(PATHS)[:1] if "TLS" in server else list(PATHS)
        threads = [threading.Thread(target=_measure, args=(guarded, name)) for name in names]
        guarded.seconds, guarded.errors = {}, {}  # type: ignore[attr-defined]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert {type(error) for error in guarded.errors.values()} == {RedisTimeout}  # type: ignore[attr-defined]
        assert max(guarded.seconds.values()) < TIMEOUT + SLACK, guarded.seconds  # type: ignore[attr-defined]
        guarded.close()


def _measure(guarded: Any, name: str) -> None:
    started = time.monotonic()
    try:
        PATHS[name](guarded.client)
    except Exception as exc:
        guarded.errors[name] = exc
    guarded.seconds[name] = time.monotonic() - started


def test_waiting_for_a_free_connection_ends_at_the_deadline(redis_server: RedisServer) -> None:
    guarded = Guarded(
        redis_server.url,
        REDIS_GUARD_TIMEOUT=0.3,
        REDIS_GUARD_MAX_CONNECTIONS=2,
        REDIS_GUARD_FAILURE_THRESHOLD=1,
    )
    pool = guarded.client.connection_pool
    held = [pool.get_connection("_"), pool.get_connection("_")]
    for act in PATHS.values():
        started = time.monotonic()
        with pytest.raises(RedisUnavailable) as refusal:
            act(guarded.client)
        assert refusal.value.reason == "pool-exhausted"
        assert time.monotonic() - started < 0.3 + SLACK
    assert guarded.gate.breaker.state.value == "closed"
    assert {outcome for _, outcome, _ in guarded.finished} == {"neutral"}
    # One given back goes to a caller that waits for it.
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(guarded.client.ping()))
    waiter.start()
    eventually(lambda: pool.waiting == 1, message="somebody waits")
    pool.release(held.pop())
    waiter.join(5)
    assert got == [True]
    pool.release(held.pop())
    guarded.close()


def test_a_blocking_command_lives_its_own_timeout(redis_server: RedisServer) -> None:
    guarded = Guarded(redis_server.url, REDIS_GUARD_TIMEOUT=0.3)
    started = time.monotonic()
    assert guarded.client.blpop("empty", timeout=2) is None
    assert 1.9 < time.monotonic() - started < 2.5
    assert guarded.client.xread({"stream": "$"}, block=400) in ([], {}, None)
    assert [outcome for _, outcome, _ in guarded.finished] == ["success", "success"]
    redis_server_busy = threading.Timer(0.6, lambda: _push(redis_server))
    redis_server_busy.start()
    assert guarded.client.blpop("list", timeout=0) == (b"list", b"item")
    redis_server_busy.join()
    guarded.close()


def _push(server: RedisServer) -> None:
    with server.client() as client:
        client.rpush("list", "item")


def test_unix_sockets_keep_the_deadline(tmp_path: Path) -> None:
    with RedisServer(unix_socket=True) as server:
        guarded = Guarded(server.unix_url, REDIS_GUARD_TIMEOUT=0.3)
        assert guarded.client.set("k", "v") is True
        server.pause()
        started = time.monotonic()
        with pytest.raises(RedisTimeout):
            guarded.client.get("k")
        assert time.monotonic() - started < 0.3 + SLACK
        server.resume()
        guarded.close()
