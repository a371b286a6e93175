"""What only the laboratory has: buttons that take Redis away, and the timeline to watch."""

from __future__ import annotations

from flask import Blueprint, Response, abort, jsonify, request
from flask.typing import ResponseReturnValue

from example_app.laboratory import DEEDS, IN_MEMORY, Laboratory
from flask_redis_guard import RedisGuard

LOCAL = ("127.0.0.1", "localhost", "[::1]")


def from_this_machine() -> bool:
    """Tell whether the current request is the visitor's own.

    Other sites that the visitor has open can send requests here too, but not by the name of this
    host, whatever their own names resolve to.
    """
    return request.host in LOCAL or request.host.rpartition(":")[0] in LOCAL


def controls(lab: Laboratory, guard: RedisGuard) -> Blueprint:
    """Return the blueprint of the page's buttons.

    :param lab: whose server they act on; without one there is nothing to take away.
    :param guard: what is watched.
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
        entries, position = lab.told(request.args.get("after", 0, int))
        return jsonify(
            redis=lab.ask("state")["state"],
            workers=[worker.as_dict() for worker in guard.workers()],
            timeline=entries,
            position=position,
        )

    @blueprint.post(f"/redis/<any({','.join(DEEDS)}):deed>")
    def act(deed: str) -> ResponseReturnValue:
        told = lab.ask(deed)
        if told["state"] == IN_MEMORY:
            abort(409, "The laboratory runs on the in-memory store: there is no server.")
        if "error" in told:
            abort(409, told["error"])
        return jsonify(redis=told["state"])

    return blueprint
