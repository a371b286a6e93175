"""Replies read from what has been received so far, and at every cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions

from flask_redis_guard.client.replies import Incomplete, read_reply

#: What a server may answer, and how it is sent.
Reply = tuple[Any, bytes]


def array(parts: list[Reply]) -> Reply:
    head = b"*%d\r\n" % len(parts)
    return [value for value, _ in parts], head + b"".join(wire for _, wire in parts)


lines = st.binary(max_size=20).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b""))
simple: st.SearchStrategy[Reply] = st.one_of(
    st.sampled_from([(None, b"$-1\r\n"), (None, b"*-1\r\n")]),
    st.binary(max_size=40).map(lambda text: (text, b"$%d\r\n%b\r\n" % (len(text), text))),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: (number, b":%d\r\n" % number)),
    lines.map(lambda line: (line, b"+%b\r\n" % line)),
)
flat = st.one_of(simple, st.lists(simple, max_size=4).map(array))
replies = st.one_of(flat, st.lists(flat, max_size=3).map(array))


@given(sent=st.lists(replies, min_size=1, max_size=4))
def test_they_are_read_one_after_the_other(sent: list[Reply]) -> None:
    data, at = b"".join(wire for _, wire in sent), 0
    for value, wire in sent:
        assert read_reply(data, at) == (value, at + len(wire))
        at += len(wire)
    with pytest.raises(Incomplete):
        read_reply(data, at)


@given(sent=replies)
def test_what_is_cut_is_incomplete_wherever_it_is_cut(sent: Reply) -> None:
    for at in range(len(sent[1])):
        with pytest.raises(Incomplete):
            read_reply(sent[1][:at], 0)


@pytest.mark.parametrize(
    ("wire", "kind"),
    [
        (b"-NOSCRIPT No matching script.\r\n", exceptions.NoScriptError),
        (b"-READONLY You can't write\r\n", exceptions.ReadOnlyError),
        (b"-OOM command not allowed\r\n", exceptions.OutOfMemoryError),
        (b"-WRONGTYPE Operation\r\n", exceptions.ResponseError),
        (b"-\xff\r\n", exceptions.ResponseError),
    ],
)
def test_errors_are_those_of_redis_py(wire: bytes, kind: type[Exception]) -> None:
    error, end = read_reply(wire, 0)
    assert type(error) is kind
    assert end == len(wire)
    inside, _ = read_reply(b"*2\r\n:1\r\n" + wire, 0)
    assert inside[0] == 1
    assert type(inside[1]) is kind


@pytest.mark.parametrize(
    "wire",
    [
        *(b"?\r\n", b"\r\n", b"$x\r\n", b":\r\n", b":1x\r\n", b"*x\r\n", b"$1\r\nabc\r\n"),
        *(b"%1\r\n", b"_\r\n", b"*1\r\n" * 20, b"HTTP/1.1 400 Bad Request\r\n"),
    ],
)
def test_what_is_no_reply_is_told(wire: bytes) -> None:
    with pytest.raises(exceptions.InvalidResponse):
        read_reply(wire, 0)


def test_numbers_are_read_strictly() -> None:
    for wire in (b":1_0\r\n", b": 1\r\n", b"$1_0\r\n1234567890\r\n"):
        with pytest.raises(exceptions.InvalidResponse):
            read_reply(wire, 0)
