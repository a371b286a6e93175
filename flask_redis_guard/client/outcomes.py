"""What an exception or a reply says about Redis, and what its caller is told.

One table, first match wins. *Success* means that the server answered, even if the answer is an
error: the caller gets redis-py's own exception. *Failure* means that Redis cannot serve: it counts
against the breaker and the caller gets ``RedisUnavailable``. *Neutral* says nothing about Redis and
touches no counter; with a reason the caller is refused with 503 nevertheless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from redis import exceptions as errors

from flask_redis_guard.core.breaker import Outcome
from flask_redis_guard.errors import RedisUnavailable


class Verdict(NamedTuple):
    """How one exception is judged."""

    outcome: Outcome
    #: The ``reason`` of the ``RedisUnavailable`` raised instead; ``None`` leaves the exception.
    reason: str | None


class Rule(NamedTuple):
    """One row of the table: an exception of this kind whose message starts so."""

    kind: type[BaseException]
    prefix: str
    verdict: Verdict
    why: str


def _failure(reason: str) -> Verdict:
    return Verdict(Outcome.FAILURE, reason)


_ANSWER = Verdict(Outcome.SUCCESS, None)
_MISUSE = Verdict(Outcome.NEUTRAL, None)
_NOT_SENT = Verdict(Outcome.NEUTRAL, "not-sent")
#: Of a timeout in an operation during most of which this process did not run.
BUSY = Verdict(Outcome.NEUTRAL, "worker-busy")
#: Of an operation whose circuit opened while it waited.
GIVEN_UP = Verdict(Outcome.NEUTRAL, "given-up")
_CROWDED = Verdict(Outcome.NEUTRAL, "max-clients")
_SATURATED = Verdict(Outcome.NEUTRAL, "pool-exhausted")

_FAILOVER = Verdict(Outcome.NEUTRAL, "failover")

_LOST = Verdict(Outcome.NEUTRAL, "connection")

_UNREACHABLE = "Redis Cluster cannot be connected"

#: Where redis-py knows an error's code it cuts it off the message and picks a class; elsewhere the
#: message still begins with the code. Versions differ in what they know, hence class and prefix.
TABLE: tuple[Rule, ...] = (
    Rule(errors.ConnectionError, "Batch lost", _LOST, "another caller of the batch counted it"),
    Rule(errors.ConnectionError, "No connection available", _SATURATED, "our own pool is used up"),
    Rule(errors.ConnectionError, "Too many connections", _SATURATED, "our own pool is used up"),
    Rule(errors.ConnectionError, "While others serve", _CROWDED, "other connections are served"),
    Rule(errors.RedisError, "max number of clients", _failure("max-clients"), "nobody gets in"),
    Rule(errors.AuthenticationError, "", _failure("authentication"), "nobody gets in"),
    Rule(errors.AuthorizationError, "", _failure("authentication"), "nobody gets in"),
    Rule(errors.RedisError, "NOAUTH", _failure("authentication"), "nobody gets in"),
    Rule(errors.RedisError, "WRONGPASS", _failure("authentication"), "nobody gets in"),
    Rule(errors.BusyLoadingError, "", _failure("loading"), "the data set is being read"),
    Rule(errors.ReadOnlyError, "", _failure("read-only"), "a replica was written to"),
    Rule(errors.RedisError, "READONLY", _failure("read-only"), "a replica was written to"),
    Rule(errors.RedisError, "UNBLOCKED", _failure("read-only"), "the primary became a replica"),
    Rule(errors.RedisError, "OOM", _failure("out-of-memory"), "maxmemory is reached"),
    Rule(
        errors.RedisError, "command not allowed when used memory", _failure("out-of-memory"), "OOM"
    ),
    Rule(errors.RedisError, "MISCONF", _failure("misconf"), "a snapshot could not be saved"),
    Rule(errors.RedisError, "NOREPLICAS", _failure("no-replicas"), "too few replicas to write"),
    Rule(errors.RedisError, "BUSY ", _failure("busy"), "a script runs for too long"),
    Rule(errors.MasterDownError, "", _failure("primary-down"), "a replica lost its primary"),
    Rule(errors.RedisError, "MASTERDOWN", _failure("primary-down"), "a replica lost its primary"),
    Rule(errors.ConnectionError, "Handshake refused", _failure("handshake"), "SELECT, HELLO ..."),
    Rule(
        errors.ConnectionError, "No master found", _failure("no-primary"), "sentinels name nobody"
    ),
    Rule(errors.ConnectionError, "Failover", _FAILOVER, "the sentinels replace the primary"),
    Rule(errors.ConnectionError, "Primary", _failure("unconfirmed"), "no sentinel vouches for it"),
    Rule(errors.ConnectionError, "CLUSTERDOWN", _failure("cluster-down"), "slots are not served"),
    Rule(errors.ClusterDownError, "", _failure("cluster-down"), "slots are not served"),
    Rule(errors.RedisError, "CLUSTERDOWN", _failure("cluster-down"), "slots are not served"),
    Rule(errors.ResponseError, "", _ANSWER, "WRONGTYPE, NOSCRIPT, NOPERM, MOVED, CROSSSLOT ..."),
    Rule(errors.WatchError, "", _ANSWER, "somebody else was first"),
    Rule(errors.LockError, "", _ANSWER, "somebody else holds the lock"),
    Rule(errors.TimeoutError, "Not sent", _NOT_SENT, "a new connection took too long to use"),
    Rule(errors.TimeoutError, "", _failure("timeout"), "the deadline passed"),
    Rule(errors.InvalidResponse, "", _failure("protocol"), "what speaks there is no Redis"),
    Rule(errors.ConnectionError, "", _failure("connection"), "refused, reset or closed"),
    Rule(errors.SlotNotCoveredError, "", _failure("cluster-down"), "slots are not served"),
    Rule(errors.RedisClusterException, _UNREACHABLE, _failure("cluster-down"), "no node answers"),
    Rule(errors.RedisClusterException, "All slots", _failure("cluster-down"), "slots are missing"),
    Rule(errors.RedisClusterException, "startup_nodes", _failure("cluster-down"), "nodes disagree"),
    Rule(errors.ClusterError, "", _failure("cluster-down"), "redirected for ever"),
    Rule(TimeoutError, "", _failure("timeout"), "a socket's own"),
    Rule(OSError, "", _failure("connection"), "a socket's own"),
    Rule(BaseException, "", _MISUSE, "bad arguments, a killed greenlet, an interrupt"),
)

_PIPELINE = "of pipeline caused error: "
_IN_SCRIPT = re.compile(r"Error running script .*?: -?(?=[A-Z]{3,} )")


def judge(error: BaseException) -> Verdict:
    """Tell what an exception says about Redis.

    :param error: what came out of redis-py.
    """
    if isinstance(error, (errors.WatchError, errors.RedisClusterException)):
        # redis-py turns a connection that was lost while watching into a WatchError, and one lost
        # while it asks for the map of a cluster into a RedisClusterException.
        cause = error.__cause__ or error.__context__
        if isinstance(cause, (errors.ConnectionError, errors.TimeoutError, OSError)):
            return judge(cause)
    message = str(error.args[0]) if error.args else ""
    message = message.rpartition(_PIPELINE)[2]  # "Command # 1 (SET k) of pipeline caused error: "
    message = _IN_SCRIPT.sub("", message)  # how Redis 6 reports an error inside a script
    return next(
        row.verdict
        for row in TABLE
        if isinstance(error, row.kind) and message.startswith(row.prefix)
    )


def judge_replies(replies: Iterable[object]) -> Verdict:
    """Tell what the list that a pipeline returned says: one reply that is a failure makes it one.

    :param replies: the list, in which ``raise_on_error=False`` leaves exceptions as items.
    """
    verdicts = (judge(reply) for reply in replies if isinstance(reply, BaseException))
    return next((v for v in verdicts if v.outcome is Outcome.FAILURE), _ANSWER)


#: The reasons that say that Redis cannot serve; the others say something of this process.
OUTAGES = frozenset(
    {row.verdict.reason for row in TABLE if row.verdict.outcome is Outcome.FAILURE}
    | {"circuit-open", "given-up"}
)


def goes_on(error: RedisUnavailable, on_outage: str) -> bool:
    """Tell whether a limit lets a request go on without Redis: only if Redis is away.

    A used-up pool, which a client can bring about, is no outage.

    :param error: why Redis gave no answer.
    :param on_outage: what the limit says: ``deny``, or what stands in.
    """
    return on_outage != "deny" and error.reason in OUTAGES
