"""Server-side sessions that are never lost silently."""

from flask_redis_guard.sessions.store import SessionStore
from flask_redis_guard.web.sessions.interface import GuardedSessionInterface
from flask_redis_guard.web.sessions.session import session

__all__ = ["GuardedSessionInterface", "SessionStore", "session"]
