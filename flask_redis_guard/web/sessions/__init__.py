"""Server-side sessions that are never lost silently."""

from flask_redis_guard.sessions.store import SessionStore
from flask_redis_guard.web.sessions.session import GuardedSessionInterface, session

__all__ = ["GuardedSessionInterface", "SessionStore", "session"]
