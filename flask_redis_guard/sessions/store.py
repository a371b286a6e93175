"""Where sessions are kept. Each operation either happened or raised."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

from flask_redis_guard.client.script import (
    ClientSource,
    Script,
    client_getter,
    is_cluster,
    read_lua,
)
from flask_redis_guard.errors import RedisUnavailable, SessionTooLarge
from flask_redis_guard.events import Bus, SessionFailed, SessionUnreadable
from flask_redis_guard.sessions import ids
from flask_redis_guard.sessions.codec import (
    Change,
    Fields,
    Saved,
    UnreadableError,
    decode,
    encode,
    unmarked,
)

logger = logging.getLogger("flask_redis_guard")

#: Seconds; far below what the server's clock can count to.
_LONGEST: Final = 1000 * 365 * 86_400

_LOAD: Final = Script("SESSION LOAD", read_lua(__package__, "users.lua", "load.lua"))
_SAVE: Final = Script("SESSION SAVE", read_lua(__package__, "users.lua", "save.lua"))
_DELETE: Final = Script("SESSION DELETE", read_lua(__package__, "users.lua", "delete.lua"))
_REVOKE: Final = Script("SESSION REVOKE", read_lua(__package__, "users.lua", "revoke.lua"))
_SAVED: Final = {saved.value: saved for saved in Saved}


class StoredSession(NamedTuple):
    """A session as it was read."""

    id: str
    fields: Fields
    data: dict[str, Any]


class SessionStore:
    """Sessions by their id, for apps that carry a token themselves; Flask's use it as well.

    :param client: a redis-py client, or a callable that gives one.
    :param prefix: what every key begins with.
    :param max_bytes: of one session, all keys and values as they are stored.
    :param max_per_user: sessions of one user; one more ends the one that would expire first.
    :param bus: told of what cannot be read, and of what Redis could not serve.
    """

    def __init__(
        self,
        client: ClientSource,
        *,
        prefix: str = "guard:",
        max_bytes: int = 65_536,
        max_per_user: int = 1000,
        bus: Bus | None = None,
    ) -> None:
        self._client = client_getter(client)
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._most_bytes, self._most_sessions = b"%d" % max_bytes, b"%d" % max_per_user
        self._bus = bus or Bus()

    @staticmethod
    def new_id(user_id: ids.UserId | None = None) -> str:
        """Return a new session id of 256 random bits.

        :param user_id: the user whose session it will be: :meth:`revoke_user` ends it.
        """
        return ids.new_id(user_id)

    def set(
        self, session_id: str, data: Mapping[str, Any], expire: float | timedelta = 3600
    ) -> None:
        """Store a session, in the place of what was there.

        :param session_id: from :meth:`new_id`, or any text that nobody can guess.
        :param data: text keys, and values of the types that Flask's session takes.
        :param expire: lifetime in seconds.
        :raises RedisUnavailable: unless Redis said that it is stored.
        :raises SessionTooLarge: for more than the size limit.
        """
        seconds = expire.total_seconds() if isinstance(expire, timedelta) else expire
        if not 0 < seconds < _LONGEST:
            raise ValueError("expire is a number of seconds above 0, and of less than 1000 years")
        self.create(session_id, encode(data), math.ceil(seconds * 1000))

    def get(self, session_id: str) -> dict[str, Any] | None:
        """Return a session's data; ``None`` means that there is none, for certain.

        Its lifetime stays as it is.

        :raises RedisUnavailable: if Redis cannot tell.
        """
        if session_id == "":  # a request without a token
            return None
        found = self.find([session_id], None)
        return None if found is None else found.data

    def delete(self, session_id: str) -> bool:
        """End a session, its next request included.

        :returns: whether there was one.
        :raises RedisUnavailable: if it is not certain that it ended. A logout must then not be
            reported as done.
        """
        return session_id != "" and bool(self._end(session_id))

    def revoke_user(self, user_id: ids.UserId) -> int:
        """End all sessions that are bound to a user, at once.

        Those are sessions with an id from :meth:`new_id` for that user, and those that
        ``session.bind_user`` was called on. A login that is stored after this is a new one.

        :returns: how many there were.
        :raises RedisUnavailable: if it is not certain that they ended.
        """
        reply = self._run(_REVOKE, [ids.index_of(self._prefix, user_id)], [])
        if not isinstance(reply, int):
            raise RedisUnavailable(_REVOKE.operation, "rejected")
        return reply

    # What Flask's session needs beyond this.

    def find(self, session_ids: Sequence[str], lifetime_ms: int | None) -> StoredSession | None:
        """Return the first of some sessions that there is, in one round trip.

        On a cluster that is one for each session that is not there.

        :param session_ids: ids in the order in which they count.
        :param lifetime_ms: milliseconds it is to live from now on; ``None`` leaves it.
        :returns: ``None`` if there is none of them, or if the first there is cannot be read.
        :raises RedisUnavailable: if Redis cannot tell.
        """
        renewed = b"" if lifetime_ms is None else b"%d" % lifetime_ms
        if len(session_ids) > 1 and is_cluster(self._client()):
            groups: Sequence[Sequence[str]] = [[session_id] for session_id in session_ids]
        else:
            groups = [session_ids]
        for group in groups:
            keys: list[bytes] = []
            letters = b""
            for session_id in group:
                told, named = self._keys(session_id)
                letters, keys = letters + told, keys + named
            reply = self._run(_LOAD, keys, [renewed, letters])
            if reply == []:
                continue
            try:
                nth, flat = reply
                session_id = group[nth - 1]
            except (IndexError, TypeError, ValueError):
                raise RedisUnavailable(_LOAD.operation, "rejected") from None
            try:
                fields = unmarked(flat)
                return StoredSession(session_id, fields, decode(fields))
            except UnreadableError as error:
                self._report(error)
                return None
        return None

    def create(self, session_id: str, fields: Fields, lifetime_ms: int) -> None:
        """Store a session, in the place of what was there."""
        letters, keys = self._keys(session_id)
        self._save(letters, keys, b"new", Change(fields), lifetime_ms)

    def change(self, session_id: str, change: Change, lifetime_ms: int) -> Saved:
        """Change a session that exists, and renew its lifetime."""
        letters, keys = self._keys(session_id)
        return self._save(letters, keys, b"change", change, lifetime_ms)

    def move(self, old: str, new: str, known: Fields, change: Change, lifetime_ms: int) -> Saved:
        """Change a session that exists, and give it another id: the old one is dead at once.

        :param known: the fields as they were read.
        """
        if is_cluster(self._client()) and not ids.share_slot(old, new):
            return self._move_between_slots(old, new, known, change, lifetime_ms)
        letters, keys = self._keys(new)
        old_letters, old_keys = self._keys(old, b"ox")
        return self._save(letters + old_letters, keys + old_keys, b"change", change, lifetime_ms)

    def _move_between_slots(
        self, old: str, new: str, known: Fields, change: Change, lifetime_ms: int
    ) -> Saved:
        """No script reaches two slots: the new session first, so that no failure loses it."""
        kept = {} if change.wipe else {k: v for k, v in known.items() if k not in change.remove}
        self.create(new, {**kept, **change.set}, lifetime_ms)
        ended = self._fields(self._end(old))
        if ended is None:
            self.delete(new)
            return Saved.ENDED
        late = Change({})
        if not change.wipe:
            # What others wrote since it was read was acknowledged to them: it comes along.
            ours = {*change.set, *change.remove}
            written = {k: v for k, v in ended.items() if known.get(k) != v and k not in ours}
            late = Change(written, [k for k in known if k not in ended and k not in ours])
        if late or not (kept or change.set):
            return self.change(new, late, lifetime_ms)
        return Saved.STORED

    def _end(self, session_id: str) -> list[Any]:
        reply = self._run(_DELETE, self._keys(session_id)[1], [])
        if not isinstance(reply, list):
            raise RedisUnavailable(_DELETE.operation, "rejected")
        return reply

    def _save(
        self, letters: bytes, keys: list[bytes], mode: bytes, change: Change, lifetime_ms: int
    ) -> Saved:
        self._check_size(change.set)
        args = [letters, mode, b"%d" % lifetime_ms, self._most_bytes, self._most_sessions]
        args += [b"1" if change.wipe else b"", b"%d" % len(change.set)]
        for pair in change.set.items():
            args += pair
        args += change.remove
        reply = self._run(_SAVE, keys, args)
        if reply == -1:
            raise SessionTooLarge(self._max_bytes)
        if reply not in _SAVED:
            raise RedisUnavailable(_SAVE.operation, "rejected")
        return _SAVED[reply]

    def _run(self, script: Script, keys: list[bytes], args: list[bytes]) -> Any:
        try:
            return script.run(self._client(), keys, args)
        except RedisUnavailable:
            self._bus.emit(SessionFailed(script.operation.rpartition(" ")[2].lower()))
            raise

    def _check_size(self, fields: Fields) -> None:
        """Spare the network what the script would refuse.

        :raises SessionTooLarge: if the fields alone are too large, with the largest of them.
        """
        if sum(map(len, fields)) + sum(map(len, fields.values())) > self._max_bytes:
            sizes = {key: len(key) + len(value) for key, value in fields.items()}
            largest = max(sizes, key=sizes.__getitem__)
            raise SessionTooLarge(self._max_bytes, largest.decode(), sizes[largest])

    def _keys(self, session_id: str, letters: bytes = b"ki") -> tuple[bytes, list[bytes]]:
        """Return the keys of a session, and for each of them its letter.

        :param letters: of the session, and of the index of its user.
        """
        key, index = ids.keys_of(self._prefix, session_id)
        return (letters[:1], [key]) if index is None else (letters, [key, index])

    def _fields(self, reply: list[Any]) -> Fields | None:
        if not reply:
            return None
        try:
            return unmarked(reply)
        except UnreadableError as error:
            self._report(error)
            return None

    def _report(self, error: UnreadableError) -> None:
        logger.error(
            "A session in Redis cannot be read and counts as empty",
            extra={"reason": error.reason},
        )
        self._bus.emit(SessionUnreadable(error.reason))
