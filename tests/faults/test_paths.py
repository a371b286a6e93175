"""Every door, through a killed, a hung and a restarted server and past an open breaker.

The results make ``docs/paths.md``; ``python -m tests.faults.test_paths`` writes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import pytest
import redis

from flask_redis_guard import CircuitOpen, RedisUnavailable
from tests.faults.paths import PATHS, Path
from tests.support import ClusterSetup, RedisServer, SentinelSetup, eventually
from tests.support.guarded import NEVER_OPENS, PROTOCOLS, Guarded

#: Seconds for one operation; short only where nothing answers, for the rest happens at once if the
#: machine is not busy.
TIMEOUTS = {"killed": 2.0, "hung": 0.3, "restarted": 2.0, "breaker open": 0.3}
#: What a path may exceed its deadline by on a busy machine.
SLACK = 1.0
PAGE = FilePath(__file__).parents[2] / "docs" / "paths.md"
Setup = RedisServer | SentinelSetup | ClusterSetup
FAULTS = tuple(TIMEOUTS)


class Result:
    """What one path did during one fault.

    :param path: the door.
    :param guarded: the app that it leads to.
    :param prepared: what the path's first step returned.
    """

    def __init__(self, path: Path, guarded: Guarded, prepared: Any) -> None:
        self.path = path
        self.error: BaseException | None = None
        guarded.finished.clear()
        started = time.monotonic()
        self.value: Any = None
        try:
            self.value = path.act(prepared)
        except (redis.RedisError, redis.exceptions.LockError) as exc:
            self.error = exc
        self.seconds = time.monotonic() - started
        self.finished = list(guarded.finished)

    @property
    def cell(self) -> str:
        """What the documentation says."""
        if isinstance(self.error, RedisUnavailable):
            return f"`{self.error.reason}`"
        return "waits on" if self.path.waits and self.value is None else "answers"


def run_all(setup: Setup, fault: str, protocol: int = 2) -> dict[str, Result]:
    """Prepare every path, make the fault, and act on every path."""
    prepared = []
    for path in PATHS:
        if path.cluster or not isinstance(setup, ClusterSetup):
            url = f"{setup.url}?protocol={protocol}"
            guarded = Guarded(url, REDIS_GUARD_TIMEOUT=TIMEOUTS[fault], **NEVER_OPENS)
            eventually(partial(answers, guarded.client), 20, "the servers answer")
            prepared.append((path, guarded, path.prepare(guarded.client)))
    if fault == "breaker open":
        for _, guarded, _ in prepared:
            guarded.gate.breaker.force_open()
    make_fault(setup, fault)
    # Each has to wait for its deadline where nobody answers, and need not wait for the others.
    at_once = 8 if fault == "hung" else 1
    try:
        with ThreadPoolExecutor(at_once) as pool:
            results = pool.map(lambda each: Result(*each), prepared)
            return {result.path.name: result for result in results}
    finally:
        end_fault(setup)
        for _, guarded, _ in prepared:
            guarded.close()


def answers(client: Any) -> bool:
    """Whether a command goes through; after a fault, nodes may yet vote or load."""
    try:
        return bool(client.set("k", "v"))
    except RedisUnavailable:
        return False


def make_fault(setup: Setup, fault: str) -> None:
    """Do to all servers what the fault is called."""
    servers = [setup] if isinstance(setup, RedisServer) else setup.servers
    for server in servers:
        if fault == "hung":
            server.pause()
        elif fault in ("killed", "restarted"):
            server.kill()
    if fault == "restarted":
        end_fault(setup)


def end_fault(setup: Setup) -> None:
    """Bring all servers back and wait until they are one again."""
    servers = [setup] if isinstance(setup, RedisServer) else setup.servers
    for server in servers:
        server.resume()
        if not server.alive:
            server.start(wait=False)
    for server in servers:
        server.wait_ready()
    if isinstance(setup, ClusterSetup):
        eventually(setup.settled, 20, "the cluster is well again")


@pytest.fixture(scope="module", params=[*PROTOCOLS, "cluster"])
def setup(request: pytest.FixtureRequest) -> Any:
    if request.param == "cluster":
        with ClusterSetup() as cluster:
            yield cluster, PROTOCOLS[-1]
    else:
        with RedisServer() as server:
            yield server, request.param


@pytest.fixture(scope="module", params=FAULTS)
def results(
    setup: tuple[Setup, int], request: pytest.FixtureRequest
) -> tuple[str, dict[str, Result]]:
    servers, protocol = setup
    return request.param, run_all(servers, request.param, protocol)


def test_each_path_is_one_operation_with_one_outcome(
    results: tuple[str, dict[str, Result]],
) -> None:
    fault, found = results
    for name, result in found.items():
        outcomes = [outcome for _, outcome, _ in result.finished]
        if fault == "breaker open":
            assert outcomes == [], name
        elif result.path.waits:
            assert len(outcomes) <= 1, (name, result.finished)
        elif isinstance(result.error, RedisUnavailable):
            assert outcomes.count("failure") == 1, (name, result.finished)
            assert outcomes[-1] == "failure", (name, result.finished)
        else:
            assert set(outcomes) == {"success"}, (name, result.finished)


def test_no_path_takes_longer_than_its_deadline(results: tuple[str, dict[str, Result]]) -> None:
    fault, found = results
    for name, result in found.items():
        assert result.seconds < TIMEOUTS[fault] + result.path.patience + SLACK, name


def test_no_path_gets_past_an_open_breaker(results: tuple[str, dict[str, Result]]) -> None:
    fault, found = results
    for name, result in found.items():
        if result.path.waits and result.value is None and not result.error:
            continue  # for a message, which is no operation
        if fault == "breaker open":
            assert isinstance(result.error, CircuitOpen), (name, result.error)
        elif fault in ("killed", "hung"):
            assert isinstance(result.error, RedisUnavailable), (name, result.error)


def test_the_documentation_says_what_happens(results: tuple[str, dict[str, Result]]) -> None:
    fault, found = results
    rows = dict(read_page())
    assert list(rows) == [path.name for path in PATHS], "python -m tests.faults.test_paths"
    for name, result in found.items():
        assert rows[name][FAULTS.index(fault)] == result.cell, (name, repr(result.error))


def read_page() -> list[tuple[str, list[str]]]:
    """The rows of the table in the documentation."""
    lines = PAGE.read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [(row[0], row[1:]) for row in cells[2:]]


def write_page(run: Callable[[str], dict[str, Result]]) -> None:
    """Write the table anew, from what happens."""
    columns = [run(fault) for fault in FAULTS]
    head, _, _ = PAGE.read_text().partition("|")
    lines = [f"| path | {' | '.join(FAULTS)} |", "|---" * 5 + "|"]
    for path in PATHS:
        cells = [column[path.name].cell for column in columns]
        lines.append(f"| {path.name} | {' | '.join(cells)} |")
    PAGE.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    with RedisServer() as server:
        write_page(lambda fault: run_all(server, fault))
