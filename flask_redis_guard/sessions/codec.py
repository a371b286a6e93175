"""Session data as the fields of a Redis hash: one field for each key, as tagged JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from flask import json as flask_json
from flask.sessions import session_json_serializer

#: The field that marks a session and says how it is written. All others begin with ``"``.
MARKER: Final = b"v"
FORMAT: Final = b"1"

#: A hash as it is stored, without the marker.
Fields = dict[bytes, bytes]

#: What the tags of the serializer raise for what they did not write.
_UNREADABLE: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
)

#: Flask's own: the same types, never pickle. A tag that an app registers with it counts here too.
serializer = session_json_serializer


class UnreadableError(ValueError):
    """What is stored is no session of ours.

    :param reason: ``format`` or ``payload``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Change:
    """What is to be done to the fields of one session, and to no other field of it."""

    set: Fields = field(default_factory=dict)
    remove: Iterable[bytes] = ()
    #: Whether all other fields go first, those that were never seen included.
    wipe: bool = False

    def __bool__(self) -> bool:
        return bool(self.set or self.remove or self.wipe)


class Saved(Enum):
    """What the server made of a change."""

    STORED = 1
    #: Nothing was left of the session, and so it is gone.
    EMPTIED = 2
    #: There was no such session any more, and there is none now.
    ENDED = 0


def encode(data: Mapping[str, Any], dumps: Callable[..., str] = flask_json.dumps) -> Fields:
    """Return data as fields.

    :param dumps: of the app's JSON provider; the current app's if not given.
    :raises TypeError: for a value that Flask's own session could not hold either, with its key.
    """
    fields: Fields = {}
    for key, value in data.items():
        try:
            fields[_encode_key(key)] = _encode_value(value, dumps)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"What the session has under {key!r} cannot be stored: {error}. A session takes "
                "what JSON can say, and tuple, bytes, datetime, UUID and Markup; keep an object's "
                "id in it, or what the object is made of"
            ) from error
    return fields


def decode(fields: Fields) -> dict[str, Any]:
    """Return fields as data.

    :raises UnreadableError: if one of them cannot be read.
    """
    try:
        if not all(key.startswith(b'"') for key in fields):
            raise ValueError("a key that is no text")
        return {json.loads(key): serializer.loads(value.decode()) for key, value in fields.items()}
    except _UNREADABLE as error:
        raise UnreadableError("payload") from error


def same(stored: bytes, encoded: bytes) -> bool:
    """Tell whether two encodings mean the same value.

    They can differ where whole numbers are keys, which are sorted as texts the second time, and
    where the app's JSON provider was changed.
    """
    return stored == encoded or _encode_value(serializer.loads(stored.decode())) == encoded


def unmarked(reply: list[Any]) -> Fields:
    """Return the fields of a hash as the server listed them.

    :raises UnreadableError: without the marker, or with one of another format.
    """
    flat = [item.encode() if isinstance(item, str) else item for item in reply]
    fields: Fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if fields.pop(MARKER, None) != FORMAT:
        raise UnreadableError("format")
    return fields


def _encode_key(key: Any) -> bytes:
    if not isinstance(key, str):
        (key,) = json.loads(json.dumps({key: None}))  # as JSON has it: 1 becomes "1"
    return json.dumps(key).encode()


def _encode_value(value: Any, dumps: Callable[..., str] = flask_json.dumps) -> bytes:
    return dumps(serializer.tag(value), separators=(",", ":")).encode()
