"""Flask's ``session``: read on first access, written value by value at the end of the request.

First the session of one request, then the interface: the cookie, and what becomes of a response
whose session was not saved.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from binascii import b2a_base64
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

import flask
from flask import Flask, Request, Response, request_tearing_down
from flask.sessions import SessionInterface, SessionMixin, session_json_serializer
from itsdangerous import Signer

from flask_redis_guard import runtime
from flask_redis_guard.errors import ConfigurationError, GuardError, RedisUnavailable
from flask_redis_guard.sessions import codec, ids
from flask_redis_guard.sessions.codec import Change, Fields, Saved
from flask_redis_guard.sessions.store import SessionStore
from flask_redis_guard.web import refusals

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("flask_redis_guard")

#: Flask's own: the same types, never pickle. A tag that an app registers with it counts here too.
codec.serializer = session_json_serializer

#: Cookies of one name that are looked at; a browser sends several for several paths and domains.
_MOST_COOKIES: Final = 16
#: In the environment of a request whose context Flask's test client keeps after it.
_PRESERVED: Final = "werkzeug.debug.preserve_context"

#: Gives the ids that the request's cookies prove, in their order, each with its cookie; ``None``
#: for one that is to be replaced.
Prove = Callable[[], dict[str, str | None]]


class Identity(NamedTuple):
    """Whose session a request brought."""

    #: The id of the session that the request named and that is stored; else ``None``.
    session_id: str | None
    #: What stands for the user that it is bound to, as of
    #: :func:`flask_redis_guard.sessions.ids.user_tag`; ``None`` for a session of nobody.
    user: str | None


class _Opened:
    """What was found when the session was looked into first, and what became of it since."""

    __slots__ = ("brought", "change", "data", "id", "known", "stored")

    def __init__(self, session_id: str | None, stored: Fields, data: dict[str, Any]) -> None:
        #: The ids that it was found under, and that it is stored under now.
        self.brought = self.id = session_id
        self.stored = stored
        #: What was changed of it since.
        self.change: Change | None = None
        self.data = data
        #: The values as they are stored.
        self.known = dict(data)


class Session(SessionMixin):
    """The session of one request.

    Whatever looks into it or changes it raises ``RedisUnavailable`` where Redis cannot be asked:
    there is never an empty session in the place of one that could not be read.

    :param store: where it is kept.
    :param app: the app.
    :param request: the request.
    :param prove: gives the ids that the request's cookies prove; called when the session is first
        looked at.
    """

    modified = False
    accessed = False
    #: The cookie that the session was found by, if it may stay.
    cookie: str | None = None
    #: The id that it was saved under; ``None`` until then, and if nothing was left of it.
    stored_id: str | None = None
    #: Whether the response is complete, but for a body that is being sent.
    streaming = False

    _opened: _Opened | None = None
    _next_id: str | None = None
    _wiped = False
    _saved = False
    _failed = False
    _preserved = False
    _error: RedisUnavailable | None = None

    def __init__(self, store: SessionStore, app: Flask, request: Request, prove: Prove) -> None:
        self._store = store
        self._app = app
        self._request = request
        self._prove = prove

    # -- the mapping -----------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        return (self._opened or self._open()).data[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or the default without it."""
        return (self._opened or self._open()).data.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in (self._opened or self._open()).data

    def __iter__(self) -> Iterator[str]:
        return iter((self._opened or self._open()).data)

    def __len__(self) -> int:
        return len((self._opened or self._open()).data)

    def __repr__(self) -> str:
        return repr((self._opened or self._open()).data)

    def __setitem__(self, key: str, value: Any) -> None:
        self._writable().data[key] = value
        self.modified = True

    def __delitem__(self, key: str) -> None:
        del self._writable().data[key]
        self.modified = True

    def __or__(self, other: Any) -> dict[str, Any]:
        return {**self, **other}

    def __ror__(self, other: Any) -> dict[str, Any]:
        return {**other, **self}

    def __ior__(self, other: Any) -> Self:
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:
        """Return the values as a plain ``dict``."""
        return (self._opened or self._open()).data.copy()

    def clear(self) -> None:
        """Remove everything, also what another request adds at this moment.

        The session ends with it: what is put in afterwards begins a new one, which has a new id
        and is bound to nobody.
        """
        opened = self._writable()
        opened.data.clear()
        self._wiped = self.modified = True
        self._next_id = None
        if opened.id is not None:
            # On a cluster the slot is kept, unless it is the user's.
            self._next_id = ids.new_id(after=None if ids.user_of(opened.id) else opened.id)

    # -- ids and users ---------------------------------------------------------------------

    @property
    def loaded(self) -> bool:
        """Whether anybody looked into it, so that Redis was asked if there was anything to ask."""
        return self._opened is not None

    @property
    def new(self) -> bool:  # type: ignore[override]
        """Whether nothing is stored of it yet."""
        return (self._opened or self._open()).id is None

    @property
    def sid(self) -> str:
        """The id under which it will be stored at the end of the request, or is already."""
        opened = self._opened or self._open()
        if self._next_id is None:
            if opened.id is not None:
                return opened.id
            self._next_id = ids.new_id()
        return self._next_id

    def identity(self) -> Identity:
        """Tell which stored session, and which user's, the request brought.

        Only a session that Redis has counts: neither a forged cookie nor one whose session ended.
        This is the one round trip by which the session is opened, and the only one: whatever looks
        into the session afterwards finds it read. Without a cookie there is none. The answer stays
        the same for the whole request, also after a login or a logout in it.

        :raises RedisUnavailable: if Redis cannot tell.
        """
        brought = (self._opened or self._open()).brought
        return Identity(brought, None if brought is None else ids.user_of(brought))

    def regenerate(self) -> None:
        """Give the session a new id when it is saved; the old one is dead from that moment on.

        Call it whenever what a session may do grows, at login above all: an id that somebody
        planted or saw before is then worth nothing.
        """
        self._writable()
        self._next_id = ids.new_id(after=self.sid)
        self.modified = True

    def bind_user(self, user_id: ids.UserId) -> None:
        """Make the session one of a user's, which ``guard.sessions.revoke_user`` ends.

        The id changes as by :meth:`regenerate`, also if the session was that user's before: a
        logout may have left other values in it, and with them an id that somebody else knows.

        :param user_id: the user; ``5`` and ``"5"`` are the same.
        :raises ValueError: if it names nobody.
        """
        self._writable()
        if self._next_id is None or not ids.is_bound(self._next_id, user_id):
            self._next_id = ids.new_id(user_id)
            self.modified = True

    def unbind_user(self) -> None:
        """Make the session nobody's and keep what is in it, under a new id.

        For a logout that removes the user and leaves the rest, as Flask-Login's does;
        :meth:`clear` needs no such call.
        """
        self._writable()
        self._next_id = ids.new_id()
        self.modified = True

    # -- reading and saving ----------------------------------------------------------------

    def save(self) -> bool:
        """Store what changed; the session cannot be written afterwards.

        :returns: whether the cookie may tell of the session as it is now.
        :raises RedisUnavailable: unless Redis said that it is stored.
        :raises SessionTooLarge: for more than the size limit.
        """
        opened = self._opened
        if opened is None or self._failed or self._is_websocket():
            self._saved = True
            return False
        if not self._saved:  # an answer to an error that came after it is saved passes here again
            self._saved = self._failed = True
            try:
                self._store_change(opened)
            except RedisUnavailable as error:
                self._error = error
                raise
            self._failed = False
            self.stored_id = opened.id
        return True

    def warn_of_loss(self) -> None:
        """Log a change inside a value that nothing could forbid, where it cannot be saved."""
        self.streaming = False
        if self._opened is None or self._failed:
            return
        try:
            lost = bool(self._change(self._opened, _OfApp(self._app)))
        except TypeError:
            lost = True
        if lost:
            logger.error(
                "A change inside a session is lost: it came after the response was complete, or "
                "in a WebSocket handler, where the session is read-only"
            )

    def torn_down(self, sender: Flask, **_: Any) -> None:
        """Permit changes that nobody saves, once a context that a test preserves was torn down.

        Flask's test client keeps the context of its last request in a ``with`` block, for the test
        to look at: taking flashed messages out is a change.
        """
        # Asking for ``flask.session`` itself would count as a look at it.
        if flask.request._get_current_object() is self._request:  # type: ignore[attr-defined]
            self._preserved = True

    def _open(self) -> _Opened:
        if self._error is not None:
            self._raise_again()
        self.accessed = True
        found = None
        cookies = self._prove()
        if cookies:
            lifetime = None
            if self._app.config["SESSION_REFRESH_EACH_REQUEST"]:
                lifetime = max(1, int(self._app.permanent_session_lifetime.total_seconds() * 1000))
            try:
                found = self._store.find(list(cookies), lifetime)
            except RedisUnavailable as error:
                self._error = error
                raise
        if found is None:
            opened = _Opened(None, {}, {})
        else:
            self.cookie = cookies[found.id]
            opened = _Opened(*found)
        # One step, so that all threads of this request agree on what they see.
        self.__dict__.setdefault("_opened", opened)
        return self._opened or opened

    def _raise_again(self) -> None:
        assert self._error is not None  # noqa: S101
        raise type(self._error)(*self._error.args) from self._error

    def _writable(self) -> _Opened:
        if self._error is not None:
            self._raise_again()
        if self._saved and (self.streaming or not self._preserved):
            raise GuardError(
                "The response is complete, and this change of the session would be lost; in a "
                "streamed body, change the session before the streaming begins"
            )
        if self._is_websocket():
            raise GuardError(
                "The session is read-only in a WebSocket handler: the response that could carry "
                "its cookie was sent with the handshake"
            )
        return self._opened or self._open()

    def _is_websocket(self) -> bool:
        rule = self._request.url_rule
        return rule is not None and rule.websocket

    def _change(self, opened: _Opened, values: codec.Serializer | None = None) -> Change:
        if self._wiped:
            return codec.difference({}, {}, opened.data, values)._replace(wipe=True)
        if opened.change is not None:
            opened.stored, opened.change = opened.change.applied_to(opened.stored), None
        return codec.difference(opened.stored, opened.known, opened.data, values)

    def _store_change(self, opened: _Opened) -> None:
        change = self._change(opened)
        self.modified = self.modified or bool(change)
        lifetime = max(1, int(self._app.permanent_session_lifetime.total_seconds() * 1000))
        session_id, opened.id = opened.id, None
        result = Saved.STORED
        if session_id is None:
            if change.set:
                session_id = self._next_id or ids.new_id()
                self._store.create(session_id, change.set, lifetime)
        elif self._wiped and not change.set:
            self._store.delete(session_id)
            result = Saved.EMPTIED
        elif self._next_id is not None:
            old, session_id = session_id, self._next_id
            result = self._store.move(old, session_id, opened.stored, change, lifetime)
        elif change or (self.modified and not self._app.config["SESSION_REFRESH_EACH_REQUEST"]):
            result = self._store.change(session_id, change, lifetime)
        if result is Saved.ENDED:
            # No answer may claim that the change is saved. A second try meets an empty session.
            raise RedisUnavailable("SESSION SAVE", "session-ended")
        opened.id = session_id if result is Saved.STORED else None
        opened.change, opened.known = change, dict(opened.data)
        self._next_id, self._wiped = None, False


class _OfApp:
    """Writes values as an app's JSON provider does, where there is no current app any more."""

    def __init__(self, app: Flask) -> None:
        self._json = app.json

    def dumps(self, value: Any) -> str:
        tagged = session_json_serializer.tag(value)
        return self._json.dumps(tagged, separators=(",", ":"))

    def loads(self, text: str) -> Any:
        return session_json_serializer.loads(text)


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


#: Flask's own ``session``, known to type checkers as what a :class:`GuardedSessionInterface` makes
#: of it: ``session.bind_user(5)`` needs no cast.
session: Final[Session] = cast(Session, flask.session)
