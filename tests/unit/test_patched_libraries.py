"""What is patched in other libraries is what it was when the patches were written."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import pytest
from engineio.async_drivers import threading as threading_driver
from engineio.async_drivers._websocket_wsgi import SimpleWebSocketWSGI
from engineio.socket import Socket
from simple_websocket.ws import Base, Server
from socketio.manager import Manager
from socketio.packet import Packet


def digest(code: Any) -> str:
    """Return a digest of source text, whatever its layout."""
    text = "".join(inspect.getsource(code).split())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


#: With simple-websocket 1.0 and 1.1, and with python-engineio 4.8.1 to 4.15. Where one is missing:
#: read what has changed beside ``web/websockets`` and ``contrib/socketio``, run their tests, and
#: only then add it here, and lift the bound in ``setup.cfg``.
KNOWN: list[tuple[Any, set[str]]] = [
    (Base.__init__, {"5ed322df5b3a"}),
    (Base.send, {"b5d899dc7b4a"}),
    (Base.receive, {"8aaf3cd17045"}),
    (Base.close, {"72c50186cd95"}),
    (Base._thread, {"f66d0aca6a12", "a2595ce80e71"}),
    (Base._handle_events, {"5777d991ac8e"}),
    (Server.__init__, {"56a5dbdf0928"}),
    (SimpleWebSocketWSGI, {"c468a92d3221", "95fd44365cc7", "dc45d81c3372"}),
    (Socket.close, {"2de0812036ed", "ebf40aa5c529"}),
    (Socket._upgrade_websocket, {"e734f4c20093", "3de6aceff0c5"}),
    (Socket._websocket_handler, {"fb3b8029c20c", "5fdf9cd1641a"}),
    (Manager.disconnect, {"f4cc693953ba"}),
    (Packet.add_attachment, {"c3d5479da196", "199e196f4f7d"}),
]


@pytest.mark.parametrize(
    ("code", "known"), KNOWN, ids=lambda value: getattr(value, "__qualname__", "")
)
def test_patched_code_is_known(code: Any, known: set[str]) -> None:
    assert digest(code) in known


def test_driver_of_threads_names_its_websocket() -> None:
    assert threading_driver._async["websocket"] is SimpleWebSocketWSGI
