"""Where commands and replies end on the wire (RESP 2 and 3); what they say stays as it is."""

from __future__ import annotations

from typing import Final, NamedTuple

#: More than any command has; what claims more is no Redis client.
_MOST_WORDS: Final = 1_000_000


class Command(NamedTuple):
    """One command of a client."""

    words: list[bytes]
    #: As it was sent.
    raw: bytes

    @property
    def name(self) -> str:
        """The command's name in capitals."""
        return self.words[0].decode("latin-1").upper() if self.words else ""


def take_command(data: bytes, at: int = 0) -> tuple[Command, int] | None:
    """Return the command that begins at a place and where it ends; ``None`` if a part is missing.

    :param data: what has been received.
    :param at: the place.
    :raises ValueError: for what is no command.
    """
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return None
    if data[at : at + 1] != b"*":  # as typed by hand
        return Command(data[at:line_end].split(), data[at : line_end + 2]), line_end + 2
    count, end = int(data[at + 1 : line_end]), line_end + 2
    if count > _MOST_WORDS:
        raise ValueError("too many words")
    words = []
    for _ in range(count):
        line_end = data.find(b"\r\n", end)
        if line_end < 0:
            return None
        start = line_end + 2
        end = start + int(data[end + 1 : line_end]) + 2
        if end > len(data):
            return None
        words.append(data[start : end - 2])
    return Command(words, data[at:end]), end


def pack(*words: bytes) -> bytes:
    """Return a command as it is sent."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def reply_end(data: bytes, at: int = 0) -> int | None:
    """Return where the reply ends that begins at a place; ``None`` if a part is missing.

    :param data: what has been received.
    :param at: the place.
    :raises ValueError: for what is no reply.
    """
    outstanding = 1
    while outstanding:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return None
        kind, outstanding = data[at : at + 1], outstanding - 1
        if kind in (b"$", b"!", b"="):
            size = int(data[at + 1 : line_end])
            at = line_end + 2 + (size + 2 if size >= 0 else 0)
            if at > len(data):
                return None
            continue
        if kind in (b"*", b"~", b">"):
            outstanding += max(0, int(data[at + 1 : line_end]))
        elif kind == b"%":
            outstanding += 2 * int(data[at + 1 : line_end])
        elif kind == b"|":  # attributes stand before the value that they belong to
            outstanding += 2 * int(data[at + 1 : line_end]) + 1
        elif kind not in (b"+", b"-", b":", b"_", b"#", b",", b"("):
            raise ValueError("no reply of Redis")
        at = line_end + 2
    return at


def encode_reply(value: object) -> bytes:
    """Return a value as a server answers it with (RESP 2).

    :param value: as an in-memory store gives it.
    """
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, Exception):
        return b"-%s\r\n" % str(value).replace("\r", " ").replace("\n", " ").encode()
    if isinstance(value, bool | int):
        return b":%d\r\n" % value
    if isinstance(value, dict):
        value = [item for pair in value.items() for item in pair]
    if isinstance(value, list | tuple | set | frozenset):
        return b"*%d\r\n" % len(value) + b"".join(map(encode_reply, value))
    data = value if isinstance(value, bytes) else str(value).encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)
