"""What only a demo has: buttons that take Redis away, and the alerts to watch."""

from __future__ import annotations

from flask import Blueprint, Response, abort, jsonify, request
from flask.typing import ResponseReturnValue

from example_app.alerts import AlertLog
from example_app.embedded import EmbeddedServer

LOCAL = ("127.0.0.1", "localhost", "[::1]")


def from_this_machine() -> bool:
    """Tell whether the current request is the visitor's own.

    Other sites that the visitor has open can send requests here too, but not by the name of this
    host, whatever their own names resolve to.
    """
    return request.host in LOCAL or request.host.rpartition(":")[0] in LOCAL


def controls(server: EmbeddedServer | None, alerts: AlertLog) -> Blueprint:
    """Return the blueprint of the page's buttons.

    :param server: what they act on; without one there is nothing to take away.
    :param alerts: what has happened.
    """
    blueprint = Blueprint("demo", __name__, url_prefix="/demo")

    @blueprint.before_request
    def only_from_the_page() -> None:
        # No other site can send this header without asking first.
        pressed = request.method != "POST" or request.headers.get("X-Demo") == "1"
        if not (pressed and from_this_machine()):
            abort(403)

    @blueprint.get("/state")
    def state() -> Response:
        redis = "in memory" if server is None else server.state
        return jsonify(redis=redis, alerts=alerts.latest())

    @blueprint.post("/redis/<any(kill,hang,start):deed>")
    def act(deed: str) -> ResponseReturnValue:
        if server is None:
            abort(409, "The demo runs on the in-memory store: there is no server to take away.")
        getattr(server, deed)()
        return jsonify(redis=server.state)

    return blueprint
