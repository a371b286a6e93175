"""The faults, and how a connection shows each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

from redis.commands.cluster import READ_COMMANDS

#: The ways in which Redis may fail.
Kind = Literal["refused", "hang", "slow", "read-only", "out-of-memory", "empty", "half-way"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

#: What each of them means.
MEANINGS: Final[dict[Kind, str]] = {
    "refused": "nobody listens at Redis's address",
    "hang": "Redis accepts connections and commands, and never answers",
    "slow": "each answer to a command comes late; connections are made as ever",
    "read-only": "Redis takes no writes, as a replica after a failover",
    "out-of-memory": "Redis takes no writes that need memory",
    "empty": "Redis has been restarted and has lost everything",
    "half-way": "the connection breaks in the middle of each answer; what was asked is done",
}

#: Seconds by which answers are late in ``slow``, unless told otherwise.
SLOW_SECONDS: Final = 1.0

#: What prepares a connection, and is answered even where nothing else is.
HANDSHAKE: Final = frozenset(
    {"HELLO", "AUTH", "CLIENT", "SELECT", "READONLY", "CLUSTER", "COMMAND", "SENTINEL"}
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: What a server that takes no writes answers as ever, beside the commands that read. Scripts are
#: not among them: what they are going to write is not known.
_HARMLESS: Final = (
    HANDSHAKE
    | frozenset(READ_COMMANDS)
    | _names("ACL CONFIG DEBUG ECHO INFO LASTSAVE LATENCY LOLWUT MEMORY MODULE OBJECT PING QUIT")
    | _names("DISCARD EXEC MULTI UNWATCH WATCH READWRITE RESET ROLE SCRIPT SLOWLOG TIME WAIT")
    | _names("MONITOR PSUBSCRIBE PUBLISH PUBSUB PUNSUBSCRIBE SPUBLISH SSUBSCRIBE SUBSCRIBE")
    | _names("SUBSTR SUNSUBSCRIBE TOUCH UNSUBSCRIBE")
)

#: What frees memory or needs none.
_FREEING: Final = (
    _names("DEL EXPIRE EXPIREAT FLUSHALL FLUSHDB GETDEL HDEL HPERSIST MOVE PERSIST PEXPIRE")
    | _names("PEXPIREAT RENAME RENAMENX SREM UNLINK XACK XDEL XTRIM ZREM ZREMRANGEBYLEX")
    | _names("ZREMRANGEBYRANK ZREMRANGEBYSCORE HEXPIRE HPEXPIRE LREM LTRIM LPOP RPOP SPOP")
    | _names("BLPOP BRPOP BZPOPMAX BZPOPMIN ZPOPMAX ZPOPMIN")
)


def _refuse_writes(name: str) -> bytes | None:
    if name in _HARMLESS:
        return None
    return b"-READONLY You can't write against a read only replica.\r\n"


def _refuse_memory(name: str) -> bytes | None:
    if name in _HARMLESS or name in _FREEING:
        return None
    return b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"


def _refuse_nothing(name: str) -> bytes | None:
    return None


@dataclass(frozen=True)
class Fault:
    """How connections behave.

    :param listens: whether one can connect.
    :param answers: whether there is an answer.
    :param delay: seconds by which an answer is late.
    :param breaks: whether the connection is reset in the middle of an answer.
    :param refusal: gives the server's error for a command's name, if it is refused.
    """

    listens: bool = True
    answers: bool = True
    delay: float = 0.0
    breaks: bool = False
    refusal: Callable[[str], bytes | None] = _refuse_nothing


#: Nothing is wrong.
HEALTHY: Final = Fault()


def fault_of(kind: Kind, seconds: float = SLOW_SECONDS) -> Fault:
    """Return how connections show a fault; ``empty`` is what the server has, not how it behaves.

    :param kind: which.
    :param seconds: by which answers are late in ``slow``.
    :raises ValueError: if there is no such fault.
    """
    faults: dict[Kind, Fault] = {
        "refused": Fault(listens=False),
        "hang": Fault(answers=False),
        "slow": Fault(delay=seconds),
        "read-only": Fault(refusal=_refuse_writes),
        "out-of-memory": Fault(refusal=_refuse_memory),
        "empty": HEALTHY,
        "half-way": Fault(breaks=True),
    }
    if kind not in faults:
        raise ValueError(f"{kind!r} is no fault; there are {', '.join(KINDS)}")
    return faults[kind]
