"""Every door of the client: how each is used, in two steps with the fault in between."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

Step = Callable[[Any], Any]


def _nothing(client: Any) -> Any:
    return client


@dataclass(frozen=True)
class Path:
    """One door.

    :param name: as the documentation's table has it.
    :param act: what is done during the fault, with what ``prepare`` returned.
    :param prepare: what was done with the client while all was well.
    :param cluster: whether it exists on a cluster.
    :param patience: seconds it may take beyond the timeout, by its own arguments.
    :param waits: whether it waits for others, which is no operation.
    """

    name: str
    act: Step
    prepare: Step = _nothing
    cluster: bool = True
    patience: float = 0.0
    waits: bool = False


def _pipeline(**options: Any) -> Step:
    def act(client: Any) -> Any:
        pipeline = client.pipeline(transaction=options.get("transaction", False))
        pipeline.incr("n").incr("n").get("n")
        return pipeline.execute(raise_on_error=options.get("raise_on_error", True))

    return act


def _unknown_script(client: Any) -> Any:
    script = client.register_script("return redis.call('GET', KEYS[1])")
    client.script_flush()
    return lambda: script(keys=["k"])


def _watching(client: Any) -> Any:
    pipeline = client.pipeline()
    pipeline.watch("k")
    pipeline.multi()
    pipeline.set("k", "v")
    return pipeline


def _transaction(client: Any) -> Any:
    def change(pipeline: Any) -> None:
        pipeline.multi()
        pipeline.set("k", "v")

    return client.transaction(change, "k")


def _locked(client: Any) -> Any:
    # Of its own: one that an earlier fault kept from being released would be waited for.
    lock = client.lock(f"lock:{secrets.token_hex(4)}", timeout=30, thread_local=False)
    lock.acquire()
    return lock


def _subscribed(client: Any) -> Any:
    subscriber = client.pubsub()
    subscriber.subscribe("channel")
    subscriber.get_message(timeout=1)
    return subscriber


def _subscribe(client: Any) -> Any:
    with client.pubsub() as subscriber:
        subscriber.subscribe("channel")
        return subscriber.get_message(timeout=0.1)


def _monitor(client: Any) -> Any:
    with client.monitor():
        return True


def _module(name: str, queue: Step) -> Step:
    def act(client: Any) -> Any:
        pipeline = getattr(client, name)().pipeline(transaction=False)
        queue(pipeline)
        return pipeline.execute()

    return act


def _raw(client: Any) -> Any:
    pool = client.connection_pool
    connection = pool.get_connection("GET")
    try:
        connection.send_command("GET", "k")
        return connection.read_response()
    finally:
        pool.release(connection)


PATHS = (
    Path("`get`, `set` and every other command", lambda client: client.incr("n")),
    Path("`execute_command`", lambda client: client.execute_command("GET", "k")),
    Path("`eval`", lambda client: client.eval("return ARGV[1]", 1, "k", "v")),
    Path("script, loaded anew", lambda script: script(), _unknown_script),
    Path("`pipeline(transaction=False)`", _pipeline()),
    Path("`pipeline()`, a transaction", _pipeline(transaction=True), cluster=False),
    Path("`execute(raise_on_error=False)`", _pipeline(raise_on_error=False)),
    Path("`watch`", lambda client: client.pipeline().watch("k"), cluster=False),
    Path("`execute` after `watch`", lambda pipeline: pipeline.execute(), _watching, cluster=False),
    Path("`transaction()`", _transaction, cluster=False),
    Path("`lock().acquire()`", lambda client: client.lock("lock:2", timeout=9).acquire()),
    Path("`lock().release()`", lambda lock: lock.release(), _locked),
    Path("`scan_iter`", lambda client: list(client.scan_iter())),
    Path("`blpop`", lambda client: client.blpop("empty", timeout=0.1), patience=0.1),
    Path("`pubsub().subscribe`", _subscribe, patience=0.1, waits=True),
    Path(
        "`pubsub().get_message`",
        lambda subscriber: subscriber.get_message(timeout=0.1),
        _subscribed,
        patience=0.1,
        waits=True,
    ),
    Path("`publish`", lambda client: client.publish("channel", "message")),
    Path("`monitor()`", _monitor),
    Path(
        "`client()`, one connection",
        lambda single: single.get("k"),
        lambda client: client.client(),
        cluster=False,
    ),
    Path(
        "plain `redis.Redis` on its pool",
        lambda plain: plain.get("k"),
        lambda client: redis.Redis(connection_pool=client.connection_pool),
        cluster=False,
    ),
    Path("connection out of its pool", _raw, cluster=False),
    Path("`json().pipeline()`", _module("json", lambda p: p.get("k")), cluster=False),
    Path("`ft().pipeline()`", _module("ft", lambda p: p.search("k")), cluster=False),
    Path("`ts().pipeline()`", _module("ts", lambda p: p.get("k")), cluster=False),
)
