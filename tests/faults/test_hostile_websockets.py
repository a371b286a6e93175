"""Clients that send more than anybody reads, and what no library would send."""

from __future__ import annotations

import contextlib
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import Event, Thread
from typing import Any

import pytest
import requests
import websocket

from tests.support import GunicornApp, RedisServer, eventually
from tests.support.websockets import (
    CLIENTS,
    Client,
    PywsgiApp,
    Refused,
    SockClient,
    SocketIOClient,
    all_at_once,
    frame,
    serve,
    upgraded,
)

MEGABYTE = 2**20
KINDS = pytest.mark.parametrize("kind", ["pywsgi", "gevent", "gthread"])


@contextmanager
def flooding(app: GunicornApp | PywsgiApp, unit: bytes, first: bytes = b"") -> Iterator[list[int]]:
    """Send frames as fast as they are taken; yields a list with the bytes sent so far.

    :param unit: what is sent again and again.
    :param first: what is sent before.
    """
    sent, enough = [0], Event()
    client = upgraded(app.url, "busy?user=flood")
    client.sendall(first)
    client.settimeout(0.5)

    def flood() -> None:
        block = unit * (MEGABYTE // len(unit))
        with contextlib.suppress(ConnectionError):
            while not enough.is_set() and sent[0] < 50 * MEGABYTE:
                with contextlib.suppress(TimeoutError):
                    sent[0] += client.send(block[sent[0] % len(unit) :])

    thread = Thread(target=flood)
    thread.start()
    try:
        yield sent
    finally:
        enough.set()
        thread.join()
        client.close()


def taken(sent: list[int]) -> bool:
    """Tell whether a flood goes on."""
    return sent[0] > MEGABYTE


@KINDS
def test_flood_of_messages_waits_with_its_client_while_the_handler_is_busy(
    kind: str, redis_server: RedisServer
) -> None:
    with serve(kind, redis_server.url) as app, upgraded(app.url, "busy?user=a") as honest:
        honest.sendall(frame(1, b"x" * 100) * 5000 + frame(1, b"end"))
        before = app.get().json()["memory"]
        with flooding(app, frame(1, b"x" * 1000)) as sent:

            def stands_still() -> bool:
                until, seen = time.monotonic() + 1, sent[0]
                eventually(lambda: sent[0] > seen or time.monotonic() > until, 5)
                return seen > 0 and sent[0] == seen

            eventually(stands_still, 30, "nothing more is taken")
            # What the kernel buffers, of both sides, is all that was taken.
            assert sent[0] < 20 * MEGABYTE
            assert app.get(timeout=5).json()["memory"] - before < 8 * MEGABYTE
        assert app.get("/busy/end").status_code == 204
        assert honest.recv(6) == b"\x81\x045000"  # nothing that waited is lost
        honest.close()
        eventually(lambda: app.get().json()["places"] == 0, 10, "the places are free again")


@pytest.mark.parametrize("kind", ["pywsgi", "gevent"])
def test_flood_of_what_is_no_message_leaves_the_worker_to_others(
    kind: str, redis_server: RedisServer
) -> None:
    pings = frame(9), b""
    fragments = frame(0, final=False), frame(1, final=False)
    with serve(kind, redis_server.url) as app:
        for unit, first in (pings, fragments):
            with flooding(app, unit, first) as sent:
                eventually(partial(taken, sent), 15, "the flood is on")
                # To read the whole flood takes a minute.
                assert app.get(timeout=20).status_code == 200


def test_compressed_message_is_measured_as_it_is_read(redis_server: RedisServer) -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(bytes(100 * MEGABYTE)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    with (
        serve("gthread", redis_server.url) as app,
        upgraded(
            app.url, "busy?user=a", "Sec-WebSocket-Extensions: permessage-deflate\r\n"
        ) as client,
    ):
        before = app.get().json()["memory"]
        client.sendall(frame(2, bomb[:-4], compressed=True))
        assert client.recv(4)[2:] == (1009).to_bytes(2, "big")
        # A thousandfold what is read at once, and its copies.
        assert app.get().json()["memory"] - before < 30 * MEGABYTE


@KINDS
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_message_too_large_for_the_reader_ends_its_handler(
    kind: str, client: type[Client], redis_server: RedisServer
) -> None:
    # Larger than Engine.IO's max_http_buffer_size.
    large = frame(1, b"x" * (2_000 if client is SockClient else 1_000_001))
    with serve(kind, redis_server.url) as app:

        def left() -> dict[str, Any]:
            state: dict[str, Any] = app.get().json()
            threads = [name for name in state["threads"] if "_service_task" not in name]
            return {"threads": threads, "places": state["places"]}

        def all_connected() -> list[Client]:
            while True:
                made = all_at_once(40, lambda _: client(app.url, "sized", "somebody"))
                refused = [each for each in made if isinstance(each, BaseException)]
                connected = [each for each in made if not isinstance(each, BaseException)]
                if not refused:
                    return connected
                # A starved worker says 503, but nobody may be told that the limit is reached.
                codes = {each.code if isinstance(each, Refused) else each for each in refused}
                assert codes <= {503, 1013}, refused
                for connection in connected:
                    connection.close()
                eventually(lambda: left() == {"threads": [], "places": 0}, 20, "all have ended")

        # All places of the limit, again and again: one that is kept refuses the next. Engine.IO
        # takes its time to end a connection.
        for _ in range(10 if client is SockClient else 5):
            connections = all_connected()
            for connection in connections:
                assert connection.ws.sock is not None
                connection.ws.sock.sendall(large)
            for connection in connections:
                with contextlib.suppress(websocket.WebSocketException, ConnectionError):
                    while connection.ws.recv_data(True)[0] != websocket.ABNF.OPCODE_CLOSE:
                        pass
                connection.close()
            eventually(lambda: left() == {"threads": [], "places": 0}, 20, "all have ended")


SOCKETIO = "socket.io/?EIO=4&transport=websocket&user=somebody"


def ended(client: socket.socket) -> bool:
    """Tell whether the server has ended a connection whose client says nothing."""
    client.settimeout(0.05)
    with contextlib.suppress(TimeoutError):
        try:
            while client.recv(4096):
                pass
        except ConnectionError:
            pass
        return True
    return False


def test_engine_without_a_namespace_is_closed_and_cut(redis_server: RedisServer) -> None:
    with serve("gthread", redis_server.url) as app:
        admitted = [SocketIOClient(app.url, "few", "somebody") for _ in range(5)]
        before = app.get().json()["threads"]
        refused, silent = upgraded(app.url, SOCKETIO), upgraded(app.url, SOCKETIO)
        refused.sendall(frame(1, b"40/few,"))
        told = b""
        while b"Rate limit exceeded" not in told:
            told += refused.recv(4096)
        poll = f"{app.url}/socket.io/?EIO=4&transport=polling&user=somebody"
        session = requests.get(poll, timeout=5).text.partition('"sid":"')[2].partition('"')[0]
        # From then on none of them says a word, not even that it has heard the goodbye.
        for client in (refused, silent):
            eventually(lambda client=client: ended(client), 20, "it is cut")  # type: ignore[misc]
            client.close()
        assert requests.get(f"{poll}&sid={session}", timeout=5).status_code == 400
        for connection in admitted:
            connection.send("still here")
            assert connection.receive() == "still here"
        eventually(
            lambda: len(app.get().json()["threads"]) <= len(before), 10, "no thread is left of them"
        )
        for connection in admitted:
            connection.close()


def test_engine_collects_no_more_than_its_greatest_message(redis_server: RedisServer) -> None:
    with serve("gthread", redis_server.url) as app:
        honest = SocketIOClient(app.url, "chat", "somebody")
        before = app.get().json()["memory"]
        with upgraded(app.url, SOCKETIO) as client, contextlib.suppress(ConnectionError):
            client.sendall(frame(2, bytes(50 * MEGABYTE)))
        with upgraded(app.url, SOCKETIO) as client:
            client.sendall(frame(1, b"40/chat,"))
            client.sendall(frame(1, b'459999-/chat,["say",{"_placeholder":true,"num":0}]'))
            client.sendall(frame(2, bytes(900_000)) * 50)
            client.sendall(frame(9))
            told = b""
            while b"\x8a\x00" not in told:  # the answer comes after all that was read
                told += client.recv(4096)
            assert app.get().json()["memory"] - before < 30 * MEGABYTE
        honest.send("still here")
        assert honest.receive() == "still here"
        honest.close()
