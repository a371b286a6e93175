"""The session interface: the cookie, and what becomes of a response whose session was not saved."""

from __future__ import annotations

import hashlib
import hmac
from binascii import b2a_base64
from functools import partial
from typing import Any, Final, Protocol

from flask import Flask, Request, Response, request_tearing_down
from flask.sessions import SessionInterface, SessionMixin, session_json_serializer
from itsdangerous import Signer

from flask_redis_guard import runtime
from flask_redis_guard.errors import ConfigurationError
from flask_redis_guard.sessions import codec, ids
from flask_redis_guard.sessions.store import SessionStore
from flask_redis_guard.web import refusals
from flask_redis_guard.web.sessions.session import Session

#: Flask's own: the same types, never pickle. A tag that an app registers with it counts here too.
codec.serializer = session_json_serializer

#: Cookies of one name that are looked at; a browser sends several for several paths and domains.
_MOST_COOKIES: Final = 16
#: In the environment of a request whose context Flask's test client keeps after it.
_PRESERVED: Final = "werkzeug.debug.preserve_context"


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
    :raises ConfigurationError: for anything else, such as the app.
    """

    #: Separates these signatures from all others made with the app's ``SECRET_KEY``.
    salt = "flask-redis-guard.session"
    key_derivation = "hmac"
    digest_method = staticmethod(hashlib.sha256)
    #: Flask's own, shared with it: a tag registered here holds for both.
    serializer = session_json_serializer
    session_class = Session

    def __init__(self, guard: Guard) -> None:
        if isinstance(guard, type) or not hasattr(guard, "sessions_for"):
            raise ConfigurationError(
                "the argument of GuardedSessionInterface",
                guard,
                "the app's RedisGuard, as in GuardedSessionInterface(guard)",
            )
        #: The keys derived from secrets: deriving one costs more than signing with it.
        self._keys: dict[str | bytes, bytes] = {}

    def open_session(self, app: Flask, request: Request) -> Session | None:
        """Return the session of a request without asking Redis; ``None`` without a secret key."""
        if not app.secret_key:
            return None
        prove = partial(self._prove, app, request)
        guarded = app.extensions.get(runtime.EXTENSION) or runtime.of(app)
        session = self.session_class(guarded.sessions, app, request, prove)
        if _PRESERVED in request.environ:
            request_tearing_down.connect(session.torn_down, app)
        return session

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Save what changed and set the cookie.

        :raises RedisUnavailable: unless Redis said that it is saved. The response is closed then;
            the net under the app's errors answers 503 in its place.
        :raises SessionTooLarge: for more than the size limit.
        """
        assert isinstance(session, Session)  # noqa: S101
        if session.accessed:
            _vary(response)
        try:
            is_saved = session.save()
        except Exception as error:
            refusals.discard(response, error)
            raise
        if is_saved:
            self._set_cookie(app, session, response)
        elif session.accessed:  # a WebSocket's, mostly
            session.warn_of_loss()
        if response.is_streamed:
            session.streaming = True
            response.call_on_close(session.warn_of_loss)

    def _set_cookie(self, app: Flask, session: Session, response: Response) -> None:
        stored_id, cookie = session.stored_id, session.cookie
        if stored_id is None:
            if session.modified:
                response.delete_cookie(self.get_cookie_name(app), **self._attributes(app))
            return
        is_new = cookie is None or not cookie.startswith(stored_id)
        if is_new or self.should_set_cookie(app, session):
            if is_new:
                cookie = f"{stored_id}.{self._signature(app.secret_key, stored_id).decode()}"
            expires = self.get_expiration_time(app, session)
            name, attributes = self.get_cookie_name(app), self._attributes(app)
            response.set_cookie(name, cookie or "", expires=expires, **attributes)

    def _attributes(self, app: Flask) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "domain": self.get_cookie_domain(app),
            "path": self.get_cookie_path(app),
            "secure": self.get_cookie_secure(app),
            "samesite": self.get_cookie_samesite(app),
            "httponly": self.get_cookie_httponly(app),
        }
        if hasattr(self, "get_cookie_partitioned"):  # Flask 3.1
            attributes["partitioned"] = self.get_cookie_partitioned(app)
        return attributes

    def _prove(self, app: Flask, request: Request) -> dict[str, str | None]:
        """Return the ids that the request's cookies prove, each with its cookie, without Redis.

        Several of one name come after an app on a sister domain set one for all of them, or a
        change of ``SESSION_COOKIE_PATH``: which of them is of a session, only Redis knows. Of one
        that is signed with a fallback key ``None`` stands there: it is to be replaced while that
        key is still known.
        """
        proven: dict[str, str | None] = {}
        for cookie in request.cookies.getlist(self.get_cookie_name(app)):
            session_id, _, signature = cookie.partition(".")
            if not ids.OURS.fullmatch(session_id):
                continue
            given, secret = signature.encode(errors="replace"), app.secret_key
            if hmac.compare_digest(self._signature(secret, session_id), given):
                proven.setdefault(session_id, cookie)
            else:
                for secret in app.config.get("SECRET_KEY_FALLBACKS") or ():
                    if hmac.compare_digest(self._signature(secret, session_id), given):
                        proven.setdefault(session_id, None)
            if len(proven) == _MOST_COOKIES:
                break
        return proven

    def _signature(self, secret: Any, session_id: str) -> bytes:
        """Return the signature of an id, as an itsdangerous ``Signer`` writes it."""
        key = self._keys.get(secret)
        if key is None:
            if len(self._keys) >= 100:  # secrets were rotated, and nobody needs the old ones
                self._keys.clear()
            signer = Signer(
                secret,
                salt=self.salt,
                key_derivation=self.key_derivation,
                digest_method=self.digest_method,
            )
            key = self._keys[secret] = signer.derive_key()
        digest = hmac.digest(key, session_id.encode(), self.digest_method)
        return b2a_base64(digest, newline=False).translate(ids.URL_SAFE).rstrip(b"=")


def _vary(response: Response) -> None:
    if "Vary" in response.headers:
        response.vary.add("Cookie")
    else:
        response.headers["Vary"] = "Cookie"
