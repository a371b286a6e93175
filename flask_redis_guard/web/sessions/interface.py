"""The session interface: the cookie, and what becomes of a response whose session was not saved."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any, Protocol

from flask import Flask, Request, Response
from flask.sessions import SessionInterface, SessionMixin
from itsdangerous import BadSignature, Signer

from flask_redis_guard.sessions import codec, ids
from flask_redis_guard.sessions.store import SessionStore
from flask_redis_guard.web import refusals
from flask_redis_guard.web.sessions.session import Session


class Guard(Protocol):
    """What the interface needs of a ``RedisGuard``."""

    def sessions_for(self, app: Flask) -> SessionStore:
        """Return an app's session store."""


class GuardedSessionInterface(SessionInterface):
    """Keeps Flask's ``session`` in Redis.

    Install it with ``app.session_interface = GuardedSessionInterface(guard)``.

    The cookie holds nothing but a signed id. All ``SESSION_COOKIE_*`` settings,
    ``PERMANENT_SESSION_LIFETIME``, ``SESSION_REFRESH_EACH_REQUEST`` and ``SECRET_KEY_FALLBACKS``
    mean what they mean to Flask.

    :param guard: the guard, whose ``init_app`` is called with the app before its first request.
    """

    #: Separates these signatures from all others made with the app's ``SECRET_KEY``.
    salt = "flask-redis-guard.session"
    key_derivation = "hmac"
    digest_method = staticmethod(hashlib.sha256)
    #: Flask's own, shared with it: a tag registered here holds for both.
    serializer = codec.serializer
    session_class = Session

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def open_session(self, app: Flask, request: Request) -> Session | None:
        """Return the session of a request without asking Redis; ``None`` without a secret key."""
        signer = self._signer(app)
        if signer is None:
            return None
        cookies = request.cookies.getlist(self.get_cookie_name(app))
        # Of several, as after an app on a sister domain set one for all of them, one that counts.
        cookie = (
            next((value for value in cookies if _verified(signer, value)), None)
            if len(cookies) > 1
            else "".join(cookies)
        )
        return self.session_class(
            self._guard.sessions_for(app),
            cookie,
            partial(_verified, signer),
            lifetime_ms=max(1, int(app.permanent_session_lifetime.total_seconds() * 1000)),
            renew_on_read=bool(app.config["SESSION_REFRESH_EACH_REQUEST"]),
            is_websocket=lambda: bool(request.url_rule and request.url_rule.websocket),
        )

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Save what changed and set the cookie.

        :raises RedisUnavailable: unless Redis said that it is saved. The response is closed then;
            the net under the app's errors answers 503 in its place.
        :raises SessionTooLarge: for more than the size limit.
        """
        if session.accessed:
            response.vary.add("Cookie")
        assert isinstance(session, Session)  # noqa: S101
        try:
            is_saved = session.save()
        except Exception as error:
            refusals.discard(response, error)
            raise
        if is_saved:
            self._set_cookie(app, session, response)
        if not is_saved:  # a WebSocket's, mostly
            session.warn_of_loss(app.json.dumps)
        elif response.is_streamed:
            response.call_on_close(partial(session.warn_of_loss, app.json.dumps))

    def _set_cookie(self, app: Flask, session: Session, response: Response) -> None:
        name = self.get_cookie_name(app)
        options: dict[str, Any] = {
            "domain": self.get_cookie_domain(app),
            "path": self.get_cookie_path(app),
            "secure": self.get_cookie_secure(app),
            "samesite": self.get_cookie_samesite(app),
            "httponly": self.get_cookie_httponly(app),
        }
        if hasattr(self, "get_cookie_partitioned"):  # Flask 3.1
            options["partitioned"] = self.get_cookie_partitioned(app)
        signer = self._signer(app)
        if session.stored_id is None or signer is None:
            if session.modified:
                response.delete_cookie(name, **options)
                response.vary.add("Cookie")
            return
        value = signer.sign(session.stored_id).decode()
        # A cookie signed with a fallback key is replaced while that key is still known.
        if value != session.cookie or self.should_set_cookie(app, session):
            expires = self.get_expiration_time(app, session)
            response.set_cookie(name, value, expires=expires, **options)
            response.vary.add("Cookie")

    def _signer(self, app: Flask) -> Signer | None:
        if not app.secret_key:
            return None
        return Signer(
            [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.secret_key],  # the newest last
            salt=self.salt,
            key_derivation=self.key_derivation,
            digest_method=self.digest_method,
        )


def _verified(signer: Signer, cookie: str) -> str | None:
    """Return the id that a cookie proves, without asking Redis."""
    try:
        session_id = signer.unsign(cookie).decode()
    except (BadSignature, UnicodeError):
        return None
    return session_id if ids.is_ours(session_id) else None
