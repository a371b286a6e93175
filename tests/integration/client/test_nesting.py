"""Code of others runs inside operations: callbacks, credential providers. Whose permit it uses."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from greenlet import greenlet

from flask_redis_guard import CircuitOpen, RedisUnavailable
from tests.support import RedisServer, SilentServer, run_python
from tests.support.guarded import Guarded

Work = Callable[[], Any]


class PasswordFrom(redis.CredentialProvider):
    """Asks a Redis for the password of another one.

    :param client: of the one that is asked.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def get_credentials(self) -> tuple[str]:
        return (self.client.get("password").decode(),)


def test_each_of_two_guards_has_its_own_permit_inside_the_others_operation() -> None:
    with RedisServer(password="secret") as server, RedisServer() as vault:
        vault.client().set("password", "secret")
        asked = Guarded(vault.url)
        options = {"credential_provider": PasswordFrom(asked.client)}
        url = f"redis://127.0.0.1:{server.port}/1"
        guarded = Guarded(url, REDIS_GUARD_CLIENT_OPTIONS=options)
        assert guarded.client.set("k", "v") is True
        assert asked.finished == [("GET", "success", None)]
        # What follows the other's operation still belongs to this one: SELECT, and SET itself.
        assert guarded.finished == [("SET", "success", None)]
        assert guarded.client.client_info()["db"] == 1

        asked.gate.breaker.force_open()
        guarded.client.connection_pool.disconnect()
        with pytest.raises(CircuitOpen) as refusal:
            guarded.client.get("k")
        assert refusal.value.operation == "GET"
        assert len(asked.finished) == 1
        guarded.close()
        asked.close()


def test_the_deadline_of_the_inner_guard_is_its_own(redis_server: RedisServer) -> None:
    with SilentServer() as silent:
        asked = Guarded(silent.url, REDIS_GUARD_TIMEOUT=0.1)
        guarded = Guarded(redis_server.url, REDIS_GUARD_TIMEOUT=5)

        def ask_the_other(reply: bytes) -> bytes:
            with pytest.raises(RedisUnavailable) as refusal:
                asked.client.get("k")
            assert refusal.value.reason == "timeout"
            return guarded.client.get("k") or reply  # the outer one's own client, same operation

        guarded.client.set_response_callback("ECHO", ask_the_other)
        assert guarded.client.echo("told") == b"told"
        assert asked.finished == [("GET", "failure", "timeout")]
        assert guarded.finished == [("ECHO", "success", None)]
        guarded.close()
        asked.close()


def in_a_thread(work: Work) -> Any:
    found: list[Any] = []
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: found.append(context.run(work)))
    thread.start()
    thread.join()
    return found[0]


def in_asyncio(work: Work) -> Any:
    async def from_another_thread() -> Any:
        return await asyncio.to_thread(work)

    return asyncio.run(from_another_thread())


def in_a_greenlet(work: Work) -> Any:
    child = greenlet(work)
    child.gr_context = contextvars.copy_context()
    return child.switch()


@pytest.mark.parametrize("run", [in_a_thread, in_asyncio, in_a_greenlet])
def test_who_inherits_a_context_takes_a_permit_of_its_own(
    run: Callable[[Work], Any], redis_server: RedisServer
) -> None:
    guarded = Guarded(redis_server.url, REDIS_GUARD_TIMEOUT=0.3)

    def within(reply: bytes) -> Any:
        threading.Event().wait(0.4)  # past the deadline of the outer operation
        return run(lambda: guarded.client.get(reply))

    guarded.client.set_response_callback("ECHO", within)
    guarded.client.set("k", "value")
    assert guarded.client.echo("k") == b"value"
    assert [name for name, _, _ in guarded.finished] == ["SET", "GET", "ECHO"]
    guarded.close()


def test_a_context_that_outlives_its_operation_passes_nobody(redis_server: RedisServer) -> None:
    guarded = Guarded(redis_server.url)
    kept: list[contextvars.Context] = []
    guarded.client.set_response_callback("ECHO", lambda _: kept.append(contextvars.copy_context()))
    guarded.client.echo("k")
    guarded.gate.breaker.force_open()
    with pytest.raises(CircuitOpen):
        kept[0].run(guarded.client.get, "k")
    guarded.close()


def test_a_greenlet_spawned_inside_an_operation_takes_its_own(redis_server: RedisServer) -> None:
    told = run_python(
        f"""
        from gevent import monkey; monkey.patch_all()
        import gevent
        from flask_redis_guard import CircuitOpen
        from tests.support.guarded import Guarded
        guarded = Guarded({redis_server.url!r})
        spawned = []

        def within(reply):
            spawned.append(gevent.spawn(guarded.client.get, "k"))
            gevent.sleep(0.05)  # it runs while this operation is under way
            guarded.gate.breaker.force_open()
            spawned.append(gevent.spawn(guarded.client.get, "k"))
            gevent.sleep(0.05)

        guarded.client.set_response_callback("ECHO", within)
        guarded.client.echo("k")
        print([name for name, _, _ in guarded.finished])
        print(type(spawned[1].exception).__name__)
        """
    )
    assert told.splitlines() == ["['GET', 'ECHO']", "CircuitOpen"]
