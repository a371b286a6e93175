"""Server-side sessions that are never lost silently."""

from flask_redis_guard.web.sessions.interface import GuardedSessionInterface
from flask_redis_guard.web.sessions.store import SessionStore

__all__ = ["GuardedSessionInterface", "SessionStore"]
