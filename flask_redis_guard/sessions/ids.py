"""Session ids, and the keys made of them: a key tells nobody the id.

An id of our own is one letter, a tag and a secret of 256 bits. The tag says in which slot of a
cluster the session lives: all sessions of a user share one, and so do an id and its successor.
What concerns several of them is therefore one script, on a cluster too. The letter says whether
the tag is a user's, whose index then holds the session.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from typing import Final, NamedTuple
from uuid import UUID

_TAG_BYTES: Final = 15  # 20 characters
_SECRET_BYTES: Final = 32
_KEY_BYTES: Final = 24
_OURS: Final = re.compile(r"[au][A-Za-z0-9_-]{20}[A-Za-z0-9_-]{43}")

#: What names a user. ``5`` and ``"5"`` are the same user, since they are so to everybody else.
UserId = str | int | UUID


class Keys(NamedTuple):
    """The keys of one session."""

    session: bytes
    #: The index of the user whose session it is; ``None`` for a session bound to nobody.
    user_index: bytes | None


def new_id(user_id: UserId | None = None, *, after: str | None = None) -> str:
    """Return a new id of 256 bits.

    :param user_id: the user whose sessions are to be revoked together with this one.
    :param after: an id whose slot and user the new one inherits.
    :raises ValueError: if ``user_id`` names nobody.
    """
    if user_id is not None:
        head = "u" + _user_tag(user_id)
    elif after is not None and is_ours(after):
        head = after[: -_length(_SECRET_BYTES)]
    else:
        head = "a" + secrets.token_urlsafe(_TAG_BYTES)
    return head + secrets.token_urlsafe(_SECRET_BYTES)


def is_ours(session_id: str) -> bool:
    """Tell whether an id has the form of those that :func:`new_id` makes."""
    return _OURS.fullmatch(session_id) is not None


def is_bound(session_id: str, user_id: UserId) -> bool:
    """Tell whether an id belongs to a user."""
    return session_id.startswith("u" + _user_tag(user_id))


def share_slot(one: str, other: str) -> bool:
    """Tell whether the keys of two ids are in the same slot of a cluster, whatever its size."""
    return _tag(one) == _tag(other)


def keys_of(prefix: str, session_id: str) -> Keys:
    """Return the keys of a session.

    :param prefix: what every key begins with.
    :param session_id: an id, our own or any other text.
    :raises ValueError: if it is no text, or an empty one.
    """
    named: object = session_id
    if not isinstance(named, str) or not named:
        raise ValueError("a session id is a text that is not empty")
    tag = _tag(session_id)
    key = f"{prefix}session:{{{tag}}}{_hash(session_id, _KEY_BYTES)}"
    bound = is_ours(session_id) and session_id[0] == "u"
    return Keys(key.encode(), _index(prefix, tag) if bound else None)


def index_of(prefix: str, user_id: UserId) -> bytes:
    """Return the key of the index of a user's sessions.

    :raises ValueError: if ``user_id`` names nobody.
    """
    return _index(prefix, _hash(_user_tag(user_id), _TAG_BYTES))


def _index(prefix: str, tag: str) -> bytes:
    return f"{prefix}sessions:{{{tag}}}".encode()


def _tag(session_id: str) -> str:
    """Return the hash tag; hashed, because it may come from a client in a token-based app."""
    tag = session_id[1 : 1 + _length(_TAG_BYTES)] if is_ours(session_id) else session_id
    return _hash(tag, _TAG_BYTES)


def _user_tag(user_id: UserId) -> str:
    named: object = user_id
    if isinstance(named, bool) or not isinstance(named, (str, int, UUID)) or named == "":
        raise ValueError("a user id is a text that is not empty, a whole number or a UUID")
    # Not keyed with SECRET_KEY: after a rotation a revocation would miss the sessions bound before.
    return _hash(f"user:{user_id}", _TAG_BYTES)


def _hash(text: str, size: int) -> str:
    digest = hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=size, person=b"guard:session"
    )
    return base64.urlsafe_b64encode(digest.digest()).decode()


def _length(size: int) -> int:
    """Return how many characters that many bytes take in base64 without padding."""
    return (size * 8 + 5) // 6
