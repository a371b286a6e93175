"""Session data as the fields of a Redis hash: one field for each key, as tagged JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final, NamedTuple, Protocol

#: The field that marks a session and says how it is written. All others begin with ``"``.
MARKER: Final = b"v"
FORMAT: Final = b"1"

#: A hash as it is stored, without the marker.
Fields = dict[bytes, bytes]

#: What the tags of a serializer raise for what they did not write.
_UNREADABLE: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
)
#: Texts that mean the same in every JSON, and values that nobody can change from inside.
_CONSTANTS: Final = {True: b"true", False: b"false", None: b"null"}
_MEANINGS: Final = {text: value for value, text in _CONSTANTS.items()}
_FIXED: Final = frozenset({str, int, bool, type(None), float})
_ABSENT: Final = object()
_DECODER: Final = json.JSONDecoder()


class Serializer(Protocol):
    """Writes and reads a value as a text."""

    def dumps(self, value: Any) -> str:
        """Return the text of a value.

        :raises TypeError: for a value that it cannot write.
        """

    def loads(self, text: str) -> Any:
        """Return the value of a text; raises whatever it likes for what it did not write."""


class _NoSerializer:
    def dumps(self, value: Any) -> str:
        raise TypeError(f"{type(value).__name__} has no JSON here")

    def loads(self, text: str) -> Any:
        raise ValueError("nothing reads this here")


#: Of all values but texts, whole numbers, ``True``, ``False`` and ``None``, whose JSON is the same
#: everywhere. The web half puts Flask's own here, since Flask is not known on this floor.
serializer: Serializer = _NoSerializer()


class UnreadableError(ValueError):
    """What is stored is no session of ours.

    :param reason: ``format`` or ``payload``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Change(NamedTuple):
    """What is to be done to the fields of one session, and to no other field of it."""

    set: Fields
    remove: Sequence[bytes] = ()
    #: Whether all other fields go first, those that were never seen included.
    wipe: bool = False

    def __bool__(self) -> bool:
        return bool(self.set or self.remove or self.wipe)

    def applied_to(self, fields: Fields) -> Fields:
        """Return what becomes of fields."""
        if self.wipe:
            return self.set
        kept = {**fields, **self.set}
        for key in self.remove:
            kept.pop(key, None)
        return kept


class Saved(Enum):
    """What the server made of a change."""

    STORED = 1
    #: Nothing was left of the session, and so it is gone.
    EMPTIED = 2
    #: There was no such session any more, and there is none now.
    ENDED = 0


def encode(data: Mapping[str, Any]) -> Fields:
    """Return data as fields.

    :raises TypeError: for a value that Flask's own session could not hold either, with its key.
    """
    return difference({}, {}, data).set


def difference(
    stored: Fields,
    known: Mapping[str, Any],
    data: Mapping[str, Any],
    values: Serializer | None = None,
) -> Change:
    """Return what makes data of what is stored.

    :param stored: the fields as they were read.
    :param known: the values as they were read: of a value that cannot change from inside and is
        still the same object, nothing is encoded.
    :param data: the values as they are now.
    :param values: in the place of :data:`serializer`.
    :raises TypeError: for a value that Flask's own session could not hold either, with its key.
    """
    values = values or serializer
    changed: Fields = {}
    left = dict.fromkeys(stored)
    for name, value in data.items():
        try:
            key = quote(name).encode() if type(name) is str else _encode_key(name)
            left.pop(key, None)
            changed.pop(key, None)
            if known.get(name, _ABSENT) is value and type(value) in _FIXED and key in stored:
                continue
            text = _encode_value(value, values)
            if key not in stored or not _same(stored[key], text, value, values):
                changed[key] = text
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"What the session has under {name!r} cannot be stored: {error}. A session takes "
                "what JSON can say, and tuple, bytes, datetime, UUID and Markup; keep an object's "
                "id in it, or what the object is made of"
            ) from error
    return Change(changed, list(left))


def decode(fields: Fields) -> dict[str, Any]:
    """Return fields as data.

    :raises UnreadableError: if one of them cannot be read.
    """
    data: dict[str, Any] = {}
    try:
        for key, stored in fields.items():
            data[_read_text(key)] = _decode_value(stored)
    except _UNREADABLE as error:
        raise UnreadableError("payload") from error
    return data


def unmarked(reply: Iterable[Any]) -> Fields:
    """Return the fields of a hash as the server listed them.

    :raises UnreadableError: without the marker, or with one of another format.
    """
    flat = list(reply)
    try:
        fields: Fields = dict(zip(flat[::2], flat[1::2], strict=True))
    except (TypeError, ValueError):  # no server lists a hash so
        raise UnreadableError("format") from None
    if fields.pop(MARKER, None) != FORMAT:
        raise UnreadableError("format")
    return fields


def _encode_key(name: Any) -> bytes:
    if isinstance(name, str):
        return quote(name).encode()
    (text,) = json.loads(json.dumps({name: None}))  # as JSON has it: 1 becomes "1"
    return quote(text).encode()


def _encode_value(value: Any, values: Serializer) -> bytes:
    kind = type(value)
    if kind is str:
        return quote(value).encode()
    if kind is int:
        return b"%d" % value
    if kind is bool or value is None:
        return _CONSTANTS[value]
    return values.dumps(value).encode()


def _decode_value(stored: bytes, values: Serializer | None = None) -> Any:
    if stored[:1] == b'"':
        return _read_text(stored)
    if stored.isdigit():
        return int(stored)
    if stored in _MEANINGS:
        return _MEANINGS[stored]
    return (values or serializer).loads(stored.decode())


def _read_text(quoted: bytes) -> str:
    """Return the text that a JSON string means.

    :raises ValueError: if it is none.
    """
    given = quoted.decode()
    text, end = _DECODER.raw_decode(given)
    if not isinstance(text, str) or end != len(given):
        raise ValueError("no JSON string")
    return text


def _same(stored: bytes, encoded: bytes, value: Any, values: Serializer) -> bool:
    """Tell whether two encodings mean the same value.

    They can differ where whole numbers are keys, which are sorted as texts the second time, and
    where the app's JSON provider was changed.
    """
    if stored == encoded or type(value) is int:
        return stored == encoded
    return _encode_value(_decode_value(stored, values), values) == encoded
