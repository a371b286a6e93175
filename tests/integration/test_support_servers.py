"""The server helper itself: what the other tests take for granted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import redis

from tests.support import RedisServer, eventually
from tests.support.ports import PortLease


def test_killed_server_refuses_and_comes_back_on_its_port(own_server: RedisServer) -> None:
    port = own_server.port
    client = own_server.client()
    client.set("k", "v")
    own_server.kill()
    assert not own_server.alive
    with pytest.raises(redis.ConnectionError):
        client.ping()
    own_server.restart()
    assert own_server.port == port
    assert client.get("k") is None


def test_paused_server_accepts_and_says_nothing_until_resumed(own_server: RedisServer) -> None:
    own_server.pause()
    hasty = own_server.client(socket_timeout=0.1)
    with pytest.raises(redis.TimeoutError):
        hasty.ping()
    own_server.resume()
    assert own_server.client().ping()


def test_reset_undoes_what_a_test_did(redis_server: RedisServer) -> None:
    client = redis_server.client()
    before = client.config_get("maxmemory")
    client.set("k", "v")
    client.config_set("maxmemory", "100mb")
    client.acl_setuser("bob", enabled=True)
    redis_server.reset()
    assert client.dbsize() == 0
    assert client.config_get("maxmemory") == before
    assert "bob" not in client.acl_users()


def test_calls_counts_commands_but_not_the_looking(redis_server: RedisServer) -> None:
    client = redis_server.client()
    for _ in range(3):
        client.get("k")
    client.set("k", "v")
    assert redis_server.calls("GET") == 3
    assert redis_server.calls() == 4


def test_password_acl_and_unix_socket() -> None:
    acl = ["user bob on >builder ~* +get"]
    with RedisServer(password="p@ss/word", acl=acl, unix_socket=True) as server:
        assert redis.Redis.from_url(server.url).ping()
        assert redis.Redis.from_url(server.unix_url).ping()
        assert server.client().acl_whoami() == "test-helper"
        bob = server.client(username="bob", password="builder")
        with pytest.raises(redis.exceptions.NoPermissionError):
            bob.set("k", "v")


def test_bad_option_fails_with_the_servers_own_words() -> None:
    with (
        pytest.raises(RuntimeError, match="no-such-directive"),
        RedisServer(options={"no-such-directive": "1"}),
    ):
        pass


def test_leased_ports_differ_and_are_free_again_after_release() -> None:
    with PortLease() as first, PortLease() as second:
        assert first.port != second.port


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_server_dies_with_a_killed_parent() -> None:
    code = """
        import sys
        from tests.support import RedisServer
        server = RedisServer().start()
        print(server.process.pid, server.directory, flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid, directory = parent.stdout.readline().split()
        os.kill(int(pid), 0)
        parent.send_signal(signal.SIGKILL)
    eventually(lambda: not _exists(int(pid)), 5, "server gone")
    shutil.rmtree(directory)


def _exists(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # Where nobody reaps orphans, a dead process stays in the table as a zombie.
    return "State:\tZ" not in status
