"""Whatever bytes come over a WebSocket: its connection ends or goes on, and nothing else does."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import RedisServer, eventually
from tests.support.apps import GunicornApp
from tests.support.websockets import APP, frame, upgraded

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))

FRAME = st.builds(
    frame,
    st.integers(0, 15),
    st.binary(max_size=300),
    final=st.booleans(),
    compressed=st.booleans(),
)
WIRE = st.lists(FRAME | st.binary(max_size=20), max_size=8).map(b"".join)


@pytest.fixture(scope="module")
def app() -> Iterator[GunicornApp]:
    with (
        RedisServer() as server,
        GunicornApp(APP, worker_class="gevent", env={"REDIS_URL": server.url}) as running,
    ):
        yield running


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(sent=WIRE)
@example(sent=frame(8, b"\x03"))
@example(sent=frame(8, b"\xff\xff\xfe"))
@example(sent=frame(1, b"\xff\xfe"))
@example(sent=b"\x81\xff" + b"\xff" * 8 + b"\0\0\0\0")
@example(sent=frame(1, b"x", compressed=True))
@example(sent=frame(0, b"continuation of nothing"))
def test_frames(app: GunicornApp, sent: bytes) -> None:
    with upgraded(app.url, "chat?user=somebody") as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)  # whatever it was, nothing more comes
        client.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65_536):
                pass
    told = eventually(lambda: _at_rest(app), 10, "the connection has left nothing")
    assert told
    assert "Traceback" not in app.log(), app.log()


def _at_rest(app: GunicornApp) -> bool:
    told = app.get("/").json()
    return bool(told["places"] == 0 and told["threads"] == [])
