"""Keys of counters: constant length, nothing of the caller's in them, no two subjects alike."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_redis_guard.core.rates import Rate
from flask_redis_guard.limiting.keys import KeyMaker, Subject, encode

RATE = Rate(5, 60)
KEYS = KeyMaker("guard:", b"secret")

parts = st.text(st.characters()) | st.binary() | st.integers()  # surrogates included
subjects = st.recursive(parts, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)


@given(subject=subjects, scope=st.text(st.characters()))
def test_every_key_has_one_shape(subject: object, scope: str) -> None:
    key = KEYS.of(RATE, subject, scope)  # type: ignore[arg-type]
    assert re.fullmatch(rb"guard:[\w-]{12}\{[\w-]{20}\}", key)


@given(first=subjects, second=subjects)
def test_different_subjects_never_share_a_key(first: object, second: object) -> None:
    same = first == second  # no part is a bool or a float, so equal means alike
    assert (encode(first) == encode(second)) == same  # type: ignore[arg-type]
    assert (KEYS.tag(first) == KEYS.tag(second)) == same  # type: ignore[arg-type]


def test_crafted_subjects_stay_apart() -> None:
    crafted: list[Subject] = [
        *("", "a", b"a", b"", 1, "1", (), ("a",), ("a", "bc"), ("ab", "c"), ("abc",), "s1:a"),
        *("}", "{a}", "a}{b", "\ud800", "\x00", "a" * 10**6, 10**5000, -1, (("a",), "b")),
    ]
    assert len({KEYS.of(RATE, subject, "") for subject in crafted}) == len(crafted)


def test_whatever_changes_the_limit_changes_the_key() -> None:
    rates = [
        RATE,
        Rate(6, 60),
        Rate(5, 61),
        Rate(5, 60, algorithm="fixed-window"),
        Rate(5, 60, algorithm="token-bucket"),
        Rate(5, 60, burst=6),
    ]
    keys = {KEYS.of(rate, "a", scope) for rate in rates for scope in ("", "s", "s}")}
    assert len(keys) == 18
    named = Rate(5, 60, name="n", algorithm="sliding-window")
    assert KEYS.of(named, "a", "") == KEYS.of(RATE, "a", "")


def test_the_secret_keys_the_subject() -> None:
    makers = [KeyMaker("p", s) for s in (None, b"", b"a", b"b", b"long" * 100)]
    tags = [maker.tag("192.0.2.1") for maker in makers]
    assert tags[0] == tags[1]
    assert len(set(tags)) == 4
    assert KeyMaker("q", b"a").tag("192.0.2.1") == tags[2]


@pytest.mark.parametrize("subject", [None, True, 1.5, ["a"], {"a"}, ("a", None), object()])
def test_a_subject_of_another_type_is_refused(subject: object) -> None:
    with pytest.raises(TypeError, match="a subject is text, bytes"):
        KEYS.of(RATE, subject, "")  # type: ignore[arg-type]
