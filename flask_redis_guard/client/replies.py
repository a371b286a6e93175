"""Replies of a server as bytes, read from what has been received so far."""

from __future__ import annotations

from typing import Any, Final

from redis._parsers import _RESP2Parser
from redis.exceptions import InvalidResponse

#: Arrays within arrays; scripts answer two at most.
_DEPTH: Final = 8

# redis-py's own table of errors; in some versions it takes an object to be asked.
_parse_error: Final = _RESP2Parser(1).parse_error


class Incomplete(Exception):
    """More has to be received."""


def read_reply(data: bytes, at: int, depth: int = 0) -> tuple[Any, int]:
    """Read one reply (RESP2).

    :param data: what has been received.
    :param at: where the reply begins.
    :returns: the reply, texts as bytes and an error as an exception; and where the next one begins.
    :raises Incomplete: if the reply goes on in what is still to be received.
    :raises redis.exceptions.InvalidResponse: if it is no reply.
    """
    end = data.find(b"\r\n", at)
    if end < 0:
        raise Incomplete
    kind, line, after = data[at], data[at + 1 : end], end + 2
    try:
        if kind == 36:  # "$": so many bytes
            return _read_text(data, after, _whole(line))
        if kind == 58:  # ":"
            return _whole(line), after
        if kind == 42 and depth < _DEPTH:  # "*": so many replies
            return _read_array(data, after, _whole(line), depth + 1)
    except ValueError:
        raise InvalidResponse("Protocol Error: no number where one should be") from None
    if kind == 43:  # "+"
        return line, after
    if kind == 45:  # "-"
        return _parse_error(line.decode(errors="replace")), after
    raise InvalidResponse(f"Protocol Error: {kind:#x}")


def _whole(line: bytes) -> int:
    if not (line.isdigit() or (line[:1] == b"-" and line[1:].isdigit())):
        raise ValueError  # int() also takes spaces and underscores
    return int(line)


def _read_text(data: bytes, at: int, length: int) -> tuple[bytes | None, int]:
    if length < 0:
        return None, at
    end = at + length
    tail = data[end : end + 2]
    if tail == b"\r\n":
        return data[at:end], end + 2
    if len(tail) < 2:
        raise Incomplete
    raise InvalidResponse("Protocol Error: a text does not end where it should")


def _read_array(data: bytes, at: int, length: int, depth: int) -> tuple[Any, int]:
    if length < 0:
        return None, at
    replies: list[Any] = []
    while len(replies) < length:
        reply, at = read_reply(data, at, depth)
        replies.append(reply)
    return replies, at
