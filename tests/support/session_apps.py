"""Applications whose ``session`` is guarded, for the tests of sessions."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, jsonify, request

from flask_redis_guard import GuardedSessionInterface, RedisGuard, session

SECRET_KEY = "the key of the tests"


def session_app(redis_url: str, **config: Any) -> tuple[Flask, RedisGuard]:
    """An app with a guard and guarded sessions, and without background checks.

    :param config: more of ``app.config``.
    """
    app = Flask("session_app")
    app.config.update(
        {
            "REDIS_URL": redis_url,
            "SECRET_KEY": SECRET_KEY,
            "REDIS_GUARD_HEALTH_CHECK_INTERVAL": 0,
            **config,
        }
    )
    guard = RedisGuard(app)
    app.session_interface = GuardedSessionInterface(guard)
    _add_views(app)
    return app, guard


def _add_views(app: Flask) -> None:
    @app.get("/untouched")
    def untouched() -> str:
        return "untouched"

    @app.get("/read")
    def read() -> Response:
        return jsonify(dict(session))

    @app.post("/write")
    def write() -> Response:
        session.update(request.get_json())
        return jsonify(saved=True)

    @app.post("/remove/<key>")
    def remove(key: str) -> Response:
        del session[key]
        return jsonify(saved=True)

    @app.post("/login/<user>")
    def login(user: str) -> Response:
        session["user"] = user
        session.bind_user(user)
        return jsonify(sid=session.sid)

    @app.post("/regenerate")
    def regenerate() -> Response:
        session.regenerate()
        return jsonify(sid=session.sid)

    @app.post("/logout")
    def logout() -> Response:
        session.clear()
        return jsonify(saved=True)

    @app.post("/slow")
    def slow() -> Response:
        """Read, let whatever a test wants happen meanwhile, and then change something."""
        dict(session)
        for step in app.config["SLOW"]:
            step()
        return jsonify(saved=True)
