"""What single commands mean for a connection: how long they wait, and what they leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask_redis_guard.client.operation import INFINITE

#: Commands that wait at the server, and where their arguments name the seconds:
#: an index, or the word before the milliseconds.
BLOCKING: dict[str, int | str] = {
    "BLPOP": -1,
    "BRPOP": -1,
    "BRPOPLPUSH": -1,
    "BLMOVE": -1,
    "BZPOPMIN": -1,
    "BZPOPMAX": -1,
    "BLMPOP": 1,
    "BZMPOP": 1,
    "XREAD": "BLOCK",
    "XREADGROUP": "BLOCK",
    "WAIT": "ms",
    "WAITAOF": "ms",
}

#: Commands after which replies on their connection mean something else than its next user expects:
#: another database, another user, messages among the replies, or no replies at all.
LASTING = frozenset(
    {
        "AUTH",
        "CLIENT REPLY",
        "CLIENT TRACKING",
        "HELLO",
        "MONITOR",
        "MULTI",
        "PSUBSCRIBE",
        "RESET",
        "SELECT",
        "SSUBSCRIBE",
        "SUBSCRIBE",
    }
)


#: Commands that depend on their second word, or that redis-py treats as no other.
_BY_WORD = ("CLIENT", "HIMPORT", "SENTINEL")


def is_lasting(args: Sequence[Any]) -> bool:
    """Tell whether a command changes its connection for good.

    :param args: the command's words.
    """
    name = _word(args[0]) if args else ""
    if name == "CLIENT" and len(args) > 1:  # redis-py has both in one word
        name = f"CLIENT {_word(args[1])}"
    return name in LASTING


def blocking_seconds(args: Sequence[Any]) -> float:
    """Return how long a command may wait at the server by its own arguments, in seconds.

    :param args: the command's words.
    :returns: 0 for a command that does not block, infinity for one that waits for ever.
    """
    place = BLOCKING.get(_word(args[0])) if args else None
    if place is None:
        return 0.0
    try:
        if place == "BLOCK":
            words = [_word(word) for word in args]
            if "BLOCK" not in words:
                return 0.0
            seconds = float(args[words.index("BLOCK") + 1]) / 1000
        elif place == "ms":
            seconds = float(args[-1]) / 1000
        else:
            seconds = float(args[int(place)])
    except (ValueError, TypeError, IndexError):
        return 0.0  # the server will say what is wrong with it
    return seconds if seconds > 0 else INFINITE if seconds == 0 else 0.0


#: Names of commands that were found to do neither; as they are usually written, so that one look
#: tells.
PLAIN: set[Any] = set()

#: How many there can be, whatever names a program makes up.
_MOST_PLAIN = 1000


def is_plain(args: Sequence[Any]) -> bool:
    """Tell whether a command waits for nothing and leaves nothing behind, and remember it.

    :param args: the command's words.
    """
    name = args[0] if args else None
    if not isinstance(name, str) or not name.isupper() or name.startswith(_BY_WORD):
        return False
    plain = name not in BLOCKING and name not in LASTING
    if plain and len(PLAIN) < _MOST_PLAIN:
        PLAIN.add(name)
    return plain


def _word(word: Any) -> str:
    """Return one of a command's words in capitals; redis-py has some as bytes."""
    if isinstance(word, bytes):
        word = word.decode("latin-1")
    return word.upper() if isinstance(word, str) else ""
