"""``flask redis-guard`` against real servers and a running app."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from flask_redis_guard import RedisGuard
from tests.support import (
    GunicornApp,
    Proxy,
    RedisServer,
    SilentServer,
    TLSIdentity,
    eventually,
)
from tests.support.faults import LoopbackServer

TOKEN = "command-test-token-0123456789"
ROOT = Path(__file__).resolve().parents[2]

APP = """
from flask import Flask
from flask_redis_guard import RedisGuard

app = Flask("shop")
app.config.update(
    REDIS_GUARD_FAILURE_THRESHOLD=2,
    REDIS_GUARD_OPEN_SECONDS=0.3,
    REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.2,
    REDIS_GUARD_HEALTH_TOKEN="command-test-token-0123456789",
)
guard = RedisGuard(app)
guard.start(app)
"""


def run(url: str, *args: str, **config: Any) -> Result:
    app = Flask("cli-test")
    app.config.update(
        REDIS_URL=url,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
        REDIS_GUARD_HEALTH_TOKEN=TOKEN,
        **config,
    )
    RedisGuard(app)
    return app.test_cli_runner().invoke(args=["redis-guard", *args])


def findings(result: Result) -> dict[str, str]:
    lines = [json.loads(line) for line in result.output.splitlines()]
    return {line["step"]: line["status"] for line in lines}


# -- check -------------------------------------------------------------------------------------


def test_check_passes(redis_server: RedisServer) -> None:
    result = run(redis_server.url, "check", "--json")
    assert set(findings(result).items()) == {
        (step, "pass")
        for step in ("connection", "version", "write", "scripts", "eviction", "clock")
    }
    assert result.exit_code == 0
    with redis_server.client() as client:
        assert client.dbsize() == 0  # it cleans up after itself


def test_check_without_a_server_says_what_to_look_at(own_server: RedisServer) -> None:
    own_server.kill()
    for environment in ("production", "development"):  # no in-memory store answers for Redis
        result = run(own_server.url, "check", ENVIRONMENT=environment)
        assert result.exit_code == 1
        assert result.output.startswith("fail  connection  connection: nobody listens")


def test_check_names_a_host_that_does_not_resolve() -> None:
    for url in (
        "redis://:hunter2@no-such-host.invalid:7000/0",
        "redis+sentinel://:hunter2@no-such-host.invalid:1,127.0.0.1:1/main",
        "redis+cluster://:hunter2@127.0.0.1:1,no-such-host.invalid",
    ):
        result = run(url, "check", REDIS_GUARD_TIMEOUT=2)
        assert result.exit_code == 1
        assert "the name no-such-host.invalid does not resolve: is it misspelt?" in result.output
        assert result.output.count("\n") == 1
        assert "hunter2" not in result.output


def test_check_tells_tls_from_none(redis_server: RedisServer, tmp_path: Path) -> None:
    result = run(f"rediss://:hunter2@127.0.0.1:{redis_server.port}/0", "check")
    assert result.exit_code == 1
    where = f"127.0.0.1:{redis_server.port}"
    assert f"{where} answers as Redis does, but without TLS: write redis://" in result.output
    with Proxy(redis_server.port, tls=TLSIdentity(str(tmp_path))) as proxy:
        result = run(f"redis://127.0.0.1:{proxy.port}/0", "check")
        assert f"127.0.0.1:{proxy.port} speaks TLS: write rediss:// for redis://" in result.output
        result = run(f"rediss://127.0.0.1:{proxy.port}/0", "check")  # nobody knows its authority
        assert "speaks TLS: look at its certificate" in result.output
    assert "hunter2" not in result.output


def test_check_names_a_socket_that_is_not_there(tmp_path: Path) -> None:
    result = run(f"unix://{tmp_path}/redis.sock", "check")
    assert f"there is no socket {tmp_path}/redis.sock" in result.output


def test_check_finds_what_is_no_redis() -> None:
    with Nonsense(as_http("hello")) as server:
        result = run(f"redis://127.0.0.1:{server.port}", "check")
    assert f"what answers at 127.0.0.1:{server.port} is no Redis" in result.output


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("app.config['REDIS_URL'] = 'http://h'\nRedisGuard(app)", 5, "REDIS_URL is '***'"),
        ("@rate_limited('5/min')\ndef view(): ...", 4, "rates is '5/min'"),
        ("RedisGuard(app).limit_app('5/minute', key=3.5)", 4, "key is 3.5"),
    ],
)
def test_error_of_configuration_is_one_line(
    tmp_path: Path, source: str, line: int, words: str
) -> None:
    (tmp_path / "shop.py").write_text(
        "from flask import Flask\nfrom flask_redis_guard import RedisGuard, rate_limited\n"
        f"app = Flask('shop')\n{source}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "shop", "redis-guard", "check"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (told,) = done.stderr.strip().splitlines()
    assert told.startswith("Error: ")
    assert words in told
    assert told.endswith(f"({tmp_path}/shop.py, line {line})")


def test_check_of_a_hung_server_ends() -> None:
    with SilentServer() as silent:
        result = run(silent.url, "check", "--json", REDIS_GUARD_TIMEOUT=0.2)
    assert findings(result) == {"connection": "fail"}
    assert "timeout" in result.output


def test_check_finds_a_wrong_password_and_does_not_tell_the_right_one() -> None:
    with RedisServer(password="correct-horse") as server:
        assert run(server.url, "check").exit_code == 0
        wrong = server.url.replace("correct-horse", "battery-staple")
        result = run(wrong, "check")
        assert result.exit_code == 1
        assert "authentication" in result.output
        assert "battery-staple" not in result.output


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_check_finds_a_server_that_throws_counters_away(
    redis_server: RedisServer, policy: str
) -> None:
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", policy)
        assert run(redis_server.url, "check").exit_code == 0  # there is no limit to be reached
        client.config_set("maxmemory", "100mb")
    result = run(redis_server.url, "check", "--json")
    assert result.exit_code == 1
    assert findings(result)["eviction"] == "fail"
    assert policy in result.output


def test_check_finds_a_replica(own_server: RedisServer) -> None:
    with RedisServer(options={"replicaof": f"127.0.0.1 {own_server.port}"}) as replica:
        result = run(replica.url, "check", "--json")
    assert findings(result)["connection"] == "pass"
    assert findings(result)["write"] == "fail"
    assert "read-only" in result.output
    assert result.exit_code == 1


def test_check_finds_missing_permissions() -> None:
    acl = ["user default on nopass ~* &* +@all -evalsha -eval -info"]
    with RedisServer(acl=acl) as server:
        result = run(server.url, "check", "--json")
        strict = run(server.url, "check", "--json", "--strict")
    assert findings(result)["scripts"] == "fail"
    assert findings(result)["version"] == "warn"
    assert findings(result)["write"] == "pass"
    assert result.exit_code == strict.exit_code == 1


def test_check_of_the_in_memory_store_is_a_warning() -> None:
    result = run("memory://", "check", "--json", ENVIRONMENT="testing")
    assert (findings(result), result.exit_code) == ({"connection": "warn"}, 0)
    assert run("memory://", "check", "--strict", ENVIRONMENT="testing").exit_code == 1


# -- status and watch --------------------------------------------------------------------------


def test_status_of_this_process(own_server: RedisServer) -> None:
    result = run(own_server.url, "status", "--json")
    assert result.exit_code == 0
    assert json.loads(result.output)["redis"]["healthy"] is True
    own_server.kill()
    result = run(own_server.url, "status")
    assert result.exit_code == 1
    assert result.output.startswith("fail circuit closed, no answer")


def test_status_of_nothing(redis_server: RedisServer) -> None:
    redis_server_port = redis_server.port  # speaks, but not HTTP
    with SilentServer() as silent:
        silent.close()
        for port in (silent.port, redis_server_port):
            result = run(redis_server.url, "status", "--url", f"http://127.0.0.1:{port}")
            assert result.exit_code == 3
            assert result.output.startswith("unreachable")
    result = run(redis_server.url, "status", "--url", "ftp://example.org")
    assert result.exit_code == 2


@contextmanager
def watching(app: GunicornApp, redis_url: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "flask", "--app", "app_under_test", "redis-guard", "watch"]
    with subprocess.Popen(
        [*command, "--url", app.url, "--interval", "0.1"],
        cwd=app.directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": redis_url}
        | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        # A job that a shell started in the background ignores it, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read what is printed; the test's timeout ends a wait in vain."""
    assert process.stdout is not None
    assert any(words in line for line in process.stdout), f"ended without {words!r}"


def test_status_and_watch_of_a_running_app(own_server: RedisServer) -> None:
    with GunicornApp(APP, env={"REDIS_URL": own_server.url}) as app:
        result = run(own_server.url, "status", "--url", app.url, "--json")
        assert result.exit_code == 0, result.output
        answer = json.loads(result.output)
        assert answer["process"] != os.getpid()
        assert answer["details"]["server_version"]  # so the token was sent
        wrong = run(own_server.url, "status", "--url", app.url, "--json", "--token", "x" * 16)
        assert set(json.loads(wrong.output)) == {"status", "redis"}
        stranger = run(own_server.url, "status", "--url", app.url, "--token", "x" * 16)
        assert stranger.exit_code == 0
        assert stranger.output.endswith("failures in a row\n")
        full = run(own_server.url, "status", "--url", app.url + "/api/v1/health/detailed")
        assert full.exit_code == 0
        assert run(own_server.url, "status", "--url", app.url + "/elsewhere").exit_code == 3

        with watching(app, own_server.url) as watch:
            read_until(watch, "pass circuit closed")
            own_server.kill()
            read_until(watch, "fail circuit open")
            own_server.start()
            read_until(watch, "pass circuit closed")
            watch.send_signal(signal.SIGINT)
            assert watch.wait(10) == 0

        own_server.kill()
        eventually(
            lambda: run(own_server.url, "status", "--url", app.url).exit_code == 1,
            10,
            "the status of an open circuit",
            interval=0.2,
        )


class Nonsense(LoopbackServer):
    """Answers a request with the same bytes, all at once or one in a while."""

    def __init__(self, answer: bytes, interval: float = 0.0) -> None:
        self.answer, self.interval = answer, interval
        super().__init__()

    def handle(self, connection: socket.socket) -> None:
        connection.recv(65536)
        step = 1 if self.interval else len(self.answer)
        for at in range(0, len(self.answer), step):
            connection.sendall(self.answer[at : at + step])
            time.sleep(self.interval)


def as_http(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"-ERR unknown command\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200,
        as_http('{"status": "pass", "redis": {}, "process": 1}'),
        as_http('{"status": "pass", "redis": {}, "details": [1], "process": 1}'),
        as_http("[" * 100_000),
    ],
)
def test_status_of_what_is_no_health_route(answer: bytes) -> None:
    with Nonsense(answer) as server:
        result = run("redis://localhost", "status", "--url", f"http://127.0.0.1:{server.port}")
    assert result.exit_code == 3
    assert result.output.startswith("unreachable http://")
    assert isinstance(result.exception, SystemExit)


def test_status_ends_though_the_answer_does_not() -> None:
    with Nonsense(as_http(" " * 1000), interval=0.1) as server:
        started = time.monotonic()
        result = run("redis://localhost", "status", "--url", f"http://127.0.0.1:{server.port}")
        assert time.monotonic() - started < 15
    assert result.exit_code == 3
    assert "no answer in 5 s" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("--url", "http://[::1"),
        ("--url", "http://localhost:port"),
        ("--url", "http://localhost/\r\nInjected: yes"),
        ("--url", "http://me:secret-secret@localhost"),
        ("--url", "http://localhost", "--token", "secret-secret-secret\n"),
        ("--url", "http://localhost", "--token", "secret-secret-s\xe9cret"),
    ],
)
def test_a_wrong_address_or_token_is_wrong_usage_and_is_not_repeated(
    arguments: tuple[str, ...],
) -> None:
    result = run("redis://localhost", "status", *arguments)
    assert result.exit_code == 2
    assert "Invalid value for --" in result.output
    assert "secret" not in result.output


def test_what_another_process_says_moves_no_cursor() -> None:
    redis = '{"healthy":true,"latency_ms":1,"circuit_state":"\\u001b[2J","failure_count":0'
    body = f'{{"status":"pass","redis":{redis},"is_mock":false}},"process":1}}'
    with Nonsense(as_http(body)) as server:
        result = run("redis://localhost", "status", "--url", f"http://127.0.0.1:{server.port}")
    assert result.output.startswith("pass circuit ?[2J, 1.0 ms")


def test_token_is_not_sent_where_a_redirect_leads(redis_server: RedisServer) -> None:
    source = """
    from flask import Flask, redirect, request
    app = Flask(__name__)
    @app.get("/api/v1/health/detailed")
    def away():
        return redirect("/elsewhere")
    @app.get("/elsewhere")
    def elsewhere():
        print("followed with", request.headers.get("Authorization"), flush=True)
        return {"status": "pass", "redis": {}}
    """
    with GunicornApp(source) as app:
        result = run(redis_server.url, "status", "--url", app.url)
        assert result.exit_code == 3
        assert "followed" not in app.log()
