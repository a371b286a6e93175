"""Flask's ``session``: read on first access, written value by value at the end of the request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.errors import GuardError, RedisUnavailable
from flask_redis_guard.sessions import ids
from flask_redis_guard.sessions.codec import Change, Fields, Saved, encode, same
from flask_redis_guard.sessions.store import SessionStore
from flask_redis_guard.web.sessions.mapping import LazyMapping

logger = logging.getLogger("flask_redis_guard")

#: Threads of one request that look into its session first, all of them, agree on what they see.
_opening = ProcessLock()


class Session(LazyMapping):
    """The session of one request.

    Whatever looks into it or changes it raises ``RedisUnavailable`` where Redis cannot be asked:
    there is never an empty session in the place of one that could not be read.

    :param store: where it is kept.
    :param cookie: what the request brought, if anything.
    :param verify: gives the id that a cookie proves, or ``None``; called when the session is first
        looked at.
    :param lifetime_ms: milliseconds it lives from its last use on.
    :param renew_on_read: whether a request that changes nothing is a use.
    :param is_websocket: whether the request is a WebSocket's, whose session is read-only.
    """

    def __init__(
        self,
        store: SessionStore,
        cookie: str | None,
        verify: Callable[[str], str | None],
        *,
        lifetime_ms: int,
        renew_on_read: bool,
        is_websocket: Callable[[], bool],
    ) -> None:
        self._store = store
        self.cookie = cookie
        self._verify = verify
        self._lifetime_ms = lifetime_ms
        self._renew_on_read = renew_on_read
        self._is_websocket = is_websocket
        self._data: dict[str, Any] | None = None
        self._stored: Fields = {}
        self._id: str | None = None
        self._next_id: str | None = None
        self._wiped = False
        self._saved = self._failed = False
        self._error: RedisUnavailable | None = None

    @property
    def loaded(self) -> bool:
        """Whether anybody looked into it, so that Redis was asked if there was anything to ask."""
        return self._data is not None

    @property
    def new(self) -> bool:  # type: ignore[override]
        """Whether nothing is stored of it yet."""
        self._open()
        return self._id is None

    @property
    def sid(self) -> str:
        """The id under which it will be stored at the end of the request, or is already."""
        self._open()
        if self._next_id is None:
            if self._id is not None:
                return self._id
            self._next_id = ids.new_id()
        return self._next_id

    @property
    def stored_id(self) -> str | None:
        """The id under which it is stored; ``None`` while nothing is."""
        return self._id

    def regenerate(self) -> None:
        """Give the session a new id when it is saved; the old one is dead from that moment on.

        Call it whenever what a session may do grows, at login above all: an id that somebody
        planted or saw before is then worth nothing.
        """
        self._require_writable()
        self._next_id = ids.new_id(after=self.sid)
        self.modified = True

    def bind_user(self, user_id: ids.UserId) -> None:
        """Make the session one of a user's, which ``guard.sessions.revoke_user`` ends.

        The id changes as by :meth:`regenerate`, also if the session was that user's before: a
        logout may have left other values in it, and with them an id that somebody else knows.

        :param user_id: the user; ``5`` and ``"5"`` are the same.
        :raises ValueError: if it names nobody.
        """
        self._require_writable()
        self._open()
        if self._next_id is None or not ids.is_bound(self._next_id, user_id):
            self._next_id = ids.new_id(user_id)
            self.modified = True

    def clear(self) -> None:
        """Remove everything, also what another request adds at this moment.

        The session ends with it: what is put in afterwards is stored under a new id.
        """
        self._require_writable()
        self._open().clear()
        self._wiped = self.modified = True
        if self._id is not None and self._next_id is None:
            self.regenerate()

    def save(self) -> bool:
        """Store what changed; the session cannot be written afterwards.

        :returns: whether the cookie may tell of the session as it is now.
        :raises RedisUnavailable: unless Redis said that it is stored.
        :raises SessionTooLarge: for more than the size limit.
        """
        if self._data is None or self._failed or self._is_websocket():
            self._saved = True
            return False
        if not self._saved:  # an answer to an error that came after it is saved passes here again
            self._saved = self._failed = True
            try:
                self._store_change(encode(self._data))
            except RedisUnavailable as error:
                self._error = error
                raise
            self._failed = False
        return True

    def _open(self) -> dict[str, Any]:
        if self._data is not None:
            return self._data
        self._raise_again()
        self.accessed = True
        session_id = self._verify(self.cookie) if self.cookie else None
        fields = None if session_id is None else self._fetch(session_id)
        data = None if fields is None else self._store.read(fields)
        with _opening:
            if self._data is None:  # else another thread of this request was faster
                if data is not None and fields is not None:
                    self._id, self._stored = session_id, fields
                self._data = data or {}
            return self._data

    def _fetch(self, session_id: str) -> Fields | None:
        try:
            return self._store.load(session_id, self._lifetime_ms if self._renew_on_read else None)
        except RedisUnavailable as error:
            self._error = error
            raise

    def _raise_again(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args) from self._error

    def _require_writable(self) -> None:
        self._raise_again()
        if self._saved:
            raise GuardError(
                "The response is complete, and this change of the session would be lost; in a "
                "streamed body, change the session before the streaming begins"
            )
        if self._is_websocket():
            raise GuardError(
                "The session is read-only in a WebSocket handler: the response that could carry "
                "its cookie was sent with the handshake"
            )

    def warn_of_loss(self, dumps: Callable[..., str]) -> None:
        """Log a change inside a value that nothing could forbid, where it cannot be saved.

        :param dumps: of the app's JSON provider, for where there is no current app any more.
        """
        if self._data is None or self._failed:
            return
        try:
            lost = bool(self._change_to(encode(self._data, dumps)))
        except TypeError:
            lost = True
        if lost:
            logger.error(
                "A change inside a session is lost: it came after the response was complete, or "
                "in a WebSocket handler, where the session is read-only"
            )

    def _change_to(self, fields: Fields) -> Change:
        stored = self._stored
        if self._wiped:
            return Change(fields, wipe=True)
        return Change(
            {k: v for k, v in fields.items() if k not in stored or not same(stored[k], v)},
            [k for k in stored if k not in fields],
        )

    def _store_change(self, fields: Fields) -> None:
        change = self._change_to(fields)
        self.modified = self.modified or bool(change)
        session_id, self._id = self._id, None
        known, self._stored = self._stored, fields
        result = Saved.STORED
        if session_id is None:
            if not fields:
                return
            session_id = self._next_id or ids.new_id()
            self._store.create(session_id, fields, self._lifetime_ms)
        elif self._wiped and not fields:
            self._store.delete(session_id)
            return
        elif self._next_id is not None:
            old, session_id = session_id, self._next_id
            result = self._store.move(old, session_id, known, change, self._lifetime_ms)
        elif change or (self.modified and not self._renew_on_read):
            result = self._store.change(session_id, change, self._lifetime_ms)
        if result is Saved.ENDED:
            # No answer may claim that the change is saved. A second try meets an empty session.
            raise RedisUnavailable("SESSION SAVE", "session-ended")
        self._id = session_id if result is Saved.STORED else None
        self._next_id, self._wiped = None, False
