"""A chat whose connections and messages are limited: open two windows of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, abort, render_template, request, session
from flask_sock import Sock
from simple_websocket import ConnectionClosed

from flask_redis_guard import websocket_limited

blueprint = Blueprint("chat", __name__, url_prefix="/chat")
sock = Sock()
#: Who hears what is said, in this process; several would share it by Redis's PUBLISH.
listeners: set[Any] = set()


@blueprint.get("/")
def page() -> str:
    """Show the chat."""
    return render_template("chat.html", user=session.get("user"))


@blueprint.before_request
def only_from_this_site() -> None:
    """Refuse pages of other sites: browsers let them open WebSockets anywhere, cookies included."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        abort(403)


# Two decorators, two subjects: connections are counted for each address, all else for each user
# that is logged in (or for the address, as long as nobody is). One call to Redis for each message.
@sock.route("/socket", bp=blueprint)  # type: ignore[untyped-decorator]
@websocket_limited(connections="50/minute")
@websocket_limited(
    concurrent=5,
    messages="60/minute",
    max_message_size=10_240,
    key=lambda: session.get("user"),
    lease=20,
)
def talk(ws: Any) -> None:
    """Pass on what one visitor says to all."""
    name = session.get("user", "somebody")
    listeners.add(ws)
    try:
        while True:
            said = f"{name}: {ws.receive()}"
            for listener in list(listeners):
                with suppress(ConnectionClosed, OSError):  # it is going away by itself
                    listener.send(said)
    finally:
        listeners.discard(ws)
