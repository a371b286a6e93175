"""Limits for Flask-SocketIO."""

from flask_redis_guard.contrib.socketio.handlers import SocketIOLimits, limit_handshakes

__all__ = ["SocketIOLimits", "limit_handshakes"]
