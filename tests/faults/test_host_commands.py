"""An operator's command reaches every worker of a host, whatever Redis does."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest
from flask import Flask

from flask_redis_guard import RedisGuard, runtime
from flask_redis_guard.core.hostview import DISABLE, FORCE_OPEN, RESET
from flask_redis_guard.host.operators import Operators
from tests.support import RedisServer, eventually
from tests.support.hosts import HostSetup, Shell


@pytest.mark.parametrize("redis", ["up", "down", "hung"])
def test_commands_reach_all_workers_within_a_second(own_server: RedisServer, redis: str) -> None:
    with HostSetup(own_server.url, 3) as host:
        for worker in host.workers:
            assert worker.ask() == "served"
        shell = Shell(host.directory, host.board, own_server.url)
        if redis == "down":
            own_server.kill()
        elif redis == "hung":
            own_server.pause()
        actions = [("force-open", "forced-open"), ("reset", "closed")]
        if redis == "up":
            actions.insert(1, ("disable", "disabled"))
        for action, state in actions:
            code, said = shell("breaker", action)
            assert code == 0, said
            assert "3 of 3 workers" in said
            assert host.states() == [state] * 3
            # One who looks at the last line of the log finds out who, and when.
            line = f"is carried out: {action}, given by carol"
            eventually(lambda text=line: host.log().count(text) == 3, 1)  # type: ignore[misc]
            if action == "force-open":
                assert {worker.ask() for worker in host.workers} == {"circuit-open"}
        if redis == "hung":
            own_server.resume()
        elif redis == "up":
            assert {worker.ask() for worker in host.workers} == {"served"}


def test_workers_that_come_later_follow_what_is_in_force(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 1) as host:
        assert host[0].ask() == "served"
        shell = Shell(host.directory, host.board, own_server.url)
        assert shell("breaker", "force-open")[0] == 0
        host.file.unlink()  # what they know outlives the file
        eventually(lambda: list(host.board.glob("*.board")), 3, "the worker has made another one")
        app = Flask("hosted")
        app.config.update(REDIS_URL=own_server.url, REDIS_GUARD_HOST_STATE=str(host.board))
        guard = RedisGuard(app)
        guard.start(app)
        with app.app_context():
            assert guard.breaker.state.value == "forced-open"
            assert [report.state for report in guard.workers()] == ["forced-open"] * 2
        app.extensions["redis_guard"].monitor.stop()


def test_shell_shows_all_workers_and_is_none(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 2) as host:
        shell = Shell(host.directory, host.board, own_server.url)
        code, said = shell("workers")
        assert code == 1
        assert "No worker of this app" in said
        assert shell("breaker", "reset")[0] == 1
        for worker in host.workers:
            assert worker.ask() == "served"
        host[1].signal(signal.SIGSTOP)
        time.sleep(2.5)
        code, said = shell("workers", "--json")
        assert code == 0, said
        reports = [json.loads(line) for line in said.splitlines()]
        assert [report["pid"] for report in reports] == [worker.pid for worker in host.workers]
        assert [report["responds"] for report in reports] == [True, False]
        code, said = shell("breaker", "force-open")
        assert (code, "1 of 2 workers" in said) == (1, True)
        host[1].signal(signal.SIGCONT)
        eventually(lambda: host[1].state == "forced-open", 2, "it has heard of it since")
        os.kill(host[1].pid, signal.SIGKILL)
        code, said = shell("breaker", "show")
        assert f"process {host[0].pid}" in said
        assert f"process {host[1].pid}" not in said
        assert "last command: force-open, by carol" in said


@pytest.fixture
def operators(own_server: RedisServer) -> Iterator[tuple[HostSetup, Operators]]:
    """Eight workers, and what commands them as the command line and the status page do."""
    with HostSetup(own_server.url, 8, REDIS_GUARD_RECOVERY_INTERVAL=20) as host:
        for worker in host.workers:
            assert worker.ask() == "served"
        app = Flask("hosted")
        app.config.update(REDIS_URL=own_server.url, REDIS_GUARD_HOST_STATE=str(host.board))
        RedisGuard(app)
        membership = runtime.of(app).host
        assert membership is not None
        membership.look_on()
        yield host, Operators(membership)


@pytest.mark.timing
@pytest.mark.parametrize("redis", ["up", "down", "hung"])
def test_eight_workers_follow_each_command_within_a_second(
    operators: tuple[HostSetup, Operators], own_server: RedisServer, redis: str
) -> None:
    host, all_workers = operators
    if redis == "down":
        own_server.kill()
    elif redis == "hung":
        own_server.pause()
    for action, state in (
        (FORCE_OPEN, "forced-open"),
        (DISABLE, "disabled"),
        (RESET, "closed"),
    ):
        began = time.monotonic()
        done = all_workers.wait(all_workers.give(action, "test"), 3)
        assert time.monotonic() - began <= 1
        assert done == (8, 8)
        states = set(host.states())
        # A background check may have found out meanwhile what a reset had forgotten.
        assert states == {state} or (action == RESET and redis != "up"), states


def test_recovery_after_a_reset_is_told_once(
    operators: tuple[HostSetup, Operators], own_server: RedisServer
) -> None:
    host, all_workers = operators
    for _ in range(3):
        before = sum(len(worker("recoveries")) for worker in host.workers)
        own_server.kill()
        for _ in range(5):
            host[0].ask()
        eventually(lambda: set(host.states()) == {"open"}, 2, "all have opened")
        own_server.start()
        command = all_workers.give(RESET, "test")
        for worker in host.workers:  # it reaches all of them before any has asked
            worker("part.look()")
        assert all_workers.wait(command, 1) == (8, 8)
        for worker in host.workers:
            worker.send("ask()")
        assert {worker.receive() for worker in host.workers} == {"served"}
        assert sum(len(worker("recoveries")) for worker in host.workers) == before + 1
