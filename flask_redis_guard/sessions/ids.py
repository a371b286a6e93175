"""Session ids, and the keys made of them: a key tells nobody the id.

An id of our own is one letter, a tag and a secret of 256 bits. The tag says in which slot of a
cluster the session lives: all sessions of a user share one, and so do an id and its successor.
What concerns several of them is therefore one script, on a cluster too. The letter says whether
the tag is a user's, whose index then holds the session.
"""

from __future__ import annotations

import re
import secrets
from binascii import b2a_base64
from functools import lru_cache
from hashlib import blake2b
from typing import Final
from uuid import UUID

_TAG_BYTES: Final = 15  # 20 characters
_HEAD: Final = 21  # characters before the secret
_SECRET_BYTES: Final = 32
_KEY_BYTES: Final = 24
#: For ``bytes.translate``: base64 as RFC 4648, section 5, has it.
URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
#: The form of the ids that :func:`new_id` makes.
OURS: Final = re.compile(r"[au][A-Za-z0-9_-]{20}[A-Za-z0-9_-]{43}")

#: What names a user. ``5`` and ``"5"`` are the same user, since they are so to everybody else.
UserId = str | int | UUID


#: The key of a session, and the index of the user whose it is; ``None`` for one of nobody.
Keys = tuple[bytes, bytes | None]


def new_id(user_id: UserId | None = None, *, after: str | None = None) -> str:
    """Return a new id of 256 bits.

    :param user_id: the user whose sessions are to be revoked together with this one.
    :param after: an id whose slot and user the new one inherits.
    :raises ValueError: if ``user_id`` names nobody.
    """
    if user_id is not None:
        head = "u" + user_tag(user_id)
    elif after is not None and is_ours(after):
        head = after[:_HEAD]
    else:
        head = "a" + secrets.token_urlsafe(_TAG_BYTES)
    return head + secrets.token_urlsafe(_SECRET_BYTES)


def is_ours(session_id: str) -> bool:
    """Tell whether an id has the form of those that :func:`new_id` makes."""
    return OURS.fullmatch(session_id) is not None


def is_bound(session_id: str, user_id: UserId) -> bool:
    """Tell whether an id belongs to a user."""
    return user_of(session_id) == user_tag(user_id)


def share_slot(one: str, other: str) -> bool:
    """Tell whether the keys of two ids are in the same slot of a cluster, whatever its size."""
    return _slot(one) == _slot(other)


@lru_cache(maxsize=1024)  # a session is read and written, and its user goes on to the next page
def keys_of(prefix: str, session_id: str) -> Keys:
    """Return the keys of a session.

    :param prefix: what every key begins with.
    :param session_id: an id, our own or any other text.
    :raises ValueError: if it is no text, or an empty one.
    """
    named: object = session_id
    if not isinstance(named, str) or not named:
        raise ValueError("a session id is a text that is not empty")
    ours = OURS.fullmatch(session_id) is not None
    tag = _hash(session_id[1:_HEAD] if ours else session_id, _TAG_BYTES)
    key = f"{prefix}session:{{{tag}}}{_hash(session_id, _KEY_BYTES)}".encode()
    if ours and session_id[0] == "u":
        return key, f"{prefix}sessions:{{{tag}}}".encode()
    return key, None


def index_of(prefix: str, user_id: UserId) -> bytes:
    """Return the key of the index of a user's sessions.

    :raises ValueError: if ``user_id`` names nobody.
    """
    return f"{prefix}sessions:{{{_hash(user_tag(user_id), _TAG_BYTES)}}}".encode()


def user_tag(user_id: UserId) -> str:
    """Return what stands for a user in the ids of their sessions: a hash of the user's id.

    What a member of an enumeration is called does not count: it is the text or the number that it
    stands for.

    :raises ValueError: if ``user_id`` names nobody.
    """
    named: object = user_id
    if isinstance(named, str) and named != "":
        text = str.__str__(named)
    elif isinstance(named, int) and not isinstance(named, bool):
        text = int.__repr__(named)
    elif isinstance(named, UUID):
        text = UUID.__str__(named)
    else:
        raise ValueError("a user id is a text that is not empty, a whole number or a UUID")
    # Not keyed with SECRET_KEY: after a rotation a revocation would miss the sessions bound before.
    return _hash(f"user:{text}", _TAG_BYTES)


def user_of(session_id: str) -> str | None:
    """Return the :func:`user_tag` of the user whose session has this id, if it is a user's."""
    return session_id[1:_HEAD] if is_ours(session_id) and session_id[0] == "u" else None


def _slot(session_id: str) -> str:
    return session_id[1:_HEAD] if is_ours(session_id) else session_id


def _hash(text: str, size: int) -> str:
    digest = blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=size, person=b"guard:session"
    )
    return b2a_base64(digest.digest(), newline=False).translate(URL_SAFE).decode()
