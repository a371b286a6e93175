"""Names of the counters: of constant length, and nothing in them that a caller wrote."""

from __future__ import annotations

import base64
import hashlib
from binascii import b2a_base64
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from flask_redis_guard.core.rates import Rate, parse_rates
from flask_redis_guard.errors import ConfigurationError
from flask_redis_guard.limiting.algorithms import algorithm_of

#: Who is counted. Values of different types never share a counter, nor do ``("a", "bc")`` and
#: ``("ab", "c")``: every part is written with its type and its length.
Subject: TypeAlias = "str | bytes | int | tuple[Subject, ...]"

#: What :func:`.parse_rates` reads.
Rates: TypeAlias = "str | Rate | Iterable[str | Rate]"

_LIMIT_BYTES: Final = 9
_SUBJECT_BYTES: Final = 15
_SHORT: Final = 64
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


class ScopedRate(NamedTuple):
    """A rate in a scope: all that is the same for every subject, made once.

    :param prefix: the first part of its keys.
    :param head: what scripts are told of the rate; see :func:`rate_head`.
    """

    rate: Rate
    prefix: bytes
    head: bytes


def read_rates(rates: Any, algorithm: str | None = None) -> tuple[Rate, ...]:
    """Read rates that a user wrote.

    :param rates: see :func:`.parse_rates`.
    :param algorithm: the algorithm of those that name none.
    :raises ConfigurationError: instead of the core's ``ValueError``.
    """
    try:
        return parse_rates(rates, algorithm=algorithm)
    except ValueError as exc:
        raise ConfigurationError("rates", rates, str(exc).rpartition("; accepted: ")[2]) from None


class KeyMaker:
    """Makes the keys of one app.

    :param prefix: what every key begins with.
    :param secret: keys the hash of subjects, so that the few billion IPv4 addresses cannot be tried
        against a copy of the data; with ``None`` the hash is plain.
    """

    def __init__(self, prefix: str, secret: bytes | None) -> None:
        self._prefix = prefix.encode()
        # BLAKE2 takes a key of at most 64 bytes; hashing the secret first admits one of any length.
        key = hashlib.blake2b(secret, person=b"guard:limiter").digest() if secret else b""
        # Copied for each subject, so that the key is not taken in again every time.
        self._keyed = hashlib.blake2b(digest_size=_SUBJECT_BYTES, key=key)
        # Who comes once comes again; long texts could fill the memory.
        self._tag_of_text = lru_cache(2048)(self._tag)
        #: The first part of a key, for a rate, a scope and a kind of counter.
        self.limit = lru_cache(1024)(self._limit)
        #: The limits that some rates are in a scope.
        self.limits = lru_cache(1024)(self._limits)

    def of(self, rate: Rate, subject: Subject, scope: str, *, kind: bytes = b"") -> bytes:
        """The key of one rate for one subject.

        The subject stands in a hash tag, so that all its limits share a slot of a cluster.

        :raises TypeError: if the subject is of no type that can be told apart from others.
        """
        return self.limit(rate, scope, kind) + self.tag(subject)

    def tag(self, subject: Subject) -> bytes:
        """The hash tag of a subject."""
        if type(subject) is str and len(subject) <= _SHORT:
            return self._tag_of_text(subject)
        return self._tag(subject)

    def _tag(self, subject: Subject) -> bytes:
        digest = self._keyed.copy()
        digest.update(encode(subject))
        # As base64.urlsafe_b64encode, at a third of the time.
        return b"{%b}" % b2a_base64(digest.digest(), newline=False).translate(_URL_SAFE)

    def pattern(self, rate: Rate, scope: str, *, kind: bytes = b"") -> bytes:
        """A ``MATCH`` pattern for the keys of one rate, of all subjects."""
        prefix = self.limit(rate, scope, kind)
        special = b"\\*?[]^-"
        return b"".join(b"\\%c" % c if c in special else b"%c" % c for c in prefix) + b"{*}"

    def _limits(self, rates: tuple[Rate, ...], scope: str) -> tuple[ScopedRate, ...]:
        return tuple(ScopedRate(rate, self.limit(rate, scope), rate_head(rate)) for rate in rates)

    def _limit(self, rate: Rate, scope: str, kind: bytes = b"") -> bytes:
        numbers = (rate.limit, rate.per_seconds, rate.capacity)
        identity = encode((scope, rate.effective_algorithm, *numbers, kind))
        digest = hashlib.blake2b(identity, digest_size=_LIMIT_BYTES).digest()
        return self._prefix + base64.urlsafe_b64encode(digest)


def rate_head(rate: Rate) -> bytes:
    """Algorithm (a byte), limit (4), period in microseconds (7) and capacity (4) for scripts."""
    period = rate.per_seconds * 1_000_000
    numbers = ((rate.limit, 4), (period, 7), (rate.capacity, 4))
    return algorithm_of(rate).code + b"".join(
        number.to_bytes(width, "big") for number, width in numbers
    )


def encode(subject: Subject) -> bytes:
    """A subject as bytes, without two different ones ever becoming the same.

    :raises TypeError: for any type but text, bytes, whole numbers and tuples of these.
    """
    if isinstance(subject, str):
        kind, body = b"s", subject.encode("utf-8", "surrogatepass")
    elif isinstance(subject, bytes):
        kind, body = b"b", subject
    elif isinstance(subject, int) and not isinstance(subject, bool):
        kind, body = b"i", b"%x" % subject
    elif isinstance(subject, tuple):
        kind, body = b"t", b"".join(map(encode, subject))
    else:
        found = type(subject).__name__
        raise TypeError(
            f"a subject is text, bytes, a whole number or a tuple of these, not {found}"
        )
    return b"%b%d:%b" % (kind, len(body), body)
