"""A chat whose connections and messages are limited: open two windows of it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import redis
from flask import Blueprint, abort, render_template, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed

from flask_redis_guard import RedisGuard, session, websocket_limited

#: Carries what is said from the worker that hears it to all workers.
CHANNEL = "example:chat"


class Room:
    """Passes on what was said in any worker to the listeners of this one."""

    def __init__(self) -> None:
        self._listeners: set[Any] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._subscribed = threading.Event()

    def __len__(self) -> int:
        return len(self._listeners)

    def join(self, listener: Any, client: redis.Redis) -> None:
        """Add a listener; the first one of a process has it subscribe."""
        with self._lock:
            self._listeners.add(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._relay, args=(client,), daemon=True)
                self._thread.start()
        self._subscribed.wait(1)

    def leave(self, listener: Any) -> None:
        """Remove a listener; with the last one the subscription ends."""
        with self._lock:
            self._listeners.discard(listener)

    def _relay(self, client: redis.Redis) -> None:
        while True:
            try:
                with client.pubsub() as subscriber:
                    subscriber.subscribe(CHANNEL)
                    while self._is_wanted():
                        self._pass_on(subscriber.get_message(timeout=0.5))
                    return
            except redis.RedisError:
                # Nobody can say anything either while Redis is away.
                self._subscribed.clear()
                time.sleep(0.5)

    def _is_wanted(self) -> bool:
        with self._lock:
            if not self._listeners:
                self._thread = None
                self._subscribed.clear()
                return False
        return True

    def _pass_on(self, message: dict[str, Any] | None) -> None:
        if message is None:
            return
        if message["type"] == "subscribe":
            self._subscribed.set()
            return
        for listener in list(self._listeners):
            with suppress(ConnectionClosed, OSError):  # it is going away by itself
                listener.send(message["data"].decode())


def chat(guard: RedisGuard, room: Room) -> Blueprint:
    """Return the blueprint of the chat.

    :param guard: limits it, and carries what is said.
    :param room: who listens in this process.
    """
    blueprint = Blueprint("chat", __name__, url_prefix="/chat")
    sock = Sock()

    @blueprint.get("/")
    def page() -> str:
        """Show the chat. It needs no Redis: who visits is asked by the page."""
        return render_template("chat.html")

    @blueprint.before_request
    def only_from_this_site() -> None:
        """Refuse pages of other sites: browsers let them open WebSockets, cookies included."""
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            abort(403)

    # Two decorators, two subjects: connections are counted for each address, all else for each
    # user that is logged in (or for the address, as long as nobody is). One call to Redis for
    # each message.
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
        room.join(ws, guard.client)
        try:
            while True:
                guard.client.publish(CHANNEL, f"{name}: {ws.receive()}")
        finally:
            room.leave(ws)

    return blueprint
