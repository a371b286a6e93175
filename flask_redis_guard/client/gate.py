"""One permit around every operation: the door between callers and Redis."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from flask_redis_guard.client.operation import Operation, current
from flask_redis_guard.client.outcomes import BUSY, GIVEN_UP, Verdict, judge, judge_replies
from flask_redis_guard.core.breaker import CircuitBreaker, Outcome, Permit, Refusal
from flask_redis_guard.errors import CircuitOpen, RedisTimeout, RedisUnavailable
from flask_redis_guard.events import Bus, CallBegan, CallFinished, CallRefused, RedisFailed

logger = logging.getLogger("flask_redis_guard")

T = TypeVar("T")

#: How an operation ends whose time was cut short, and the reasons that leave open what Redis did.
_WAITED = ("timeout", "pool-exhausted")
_TIMEOUTS = ("timeout", "worker-busy", "given-up")


class Lookout(Protocol):
    """Who knows what other workers of the host know."""

    def look(self) -> None:
        """Read what is new, and have the breaker follow it."""

    def waits(self, operation: Operation) -> None:
        """Take note that an operation has waited for half of its time."""

    @property
    def is_away(self) -> bool:
        """Whether Redis is away as far as others know, though the breaker may not have followed."""

    def answered(self) -> None:
        """Take note that Redis has answered one that waited, or a later one."""


class Gate:
    """Lead every operation of one client through its breaker.

    The outermost operation holds the permit; whatever redis-py does inside it (a script that is
    loaded again, the commands of a cluster pipeline) belongs to it. What leaves the gate is the
    result, redis-py's own exception where that is an answer, or a ``RedisUnavailable``.

    :param breaker: decides who may pass.
    :param timeout: seconds for one operation, all its waiting together.
    :param in_memory: whether an in-memory store serves what Redis cannot (development only).
    :param memory_only: whether that store serves everything (``memory://``).
    :param bus: carries what happens to operations.
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        timeout: float,
        *,
        in_memory: bool = False,
        memory_only: bool = False,
        bus: Bus | None = None,
    ) -> None:
        self.breaker = breaker
        # One that is not several: while everybody passes nobody has to ask it.
        self._plain = breaker if type(breaker) is CircuitBreaker else None
        self.timeout = timeout
        self.in_memory = in_memory
        self.memory_only = memory_only
        #: Whether the last operation was served by the in-memory store.
        self.serving_memory = memory_only
        #: The in-memory store's connection pool.
        self.memory: Any = None
        #: Whether an exception from outside has ended an operation: a signal, a killed greenlet.
        self.interrupted = False
        self.bus = bus or Bus()
        #: Whether a test has put an outage on the wire, which is no other worker's business.
        self.in_outage_of_test = False
        #: Asked by the first operation that begins after so much monotonic time; it sets another.
        self.host: Lookout | None = None
        self.look_at = float("inf")
        #: When the last operation began that Redis has answered, on the monotonic clock.
        self.succeeded = 0.0
        #: Whether other workers are to be told of the next answer.
        self.curious = False

    def run(
        self, name: str, call: Callable[[], T], *, probe: bool = False, answered: bool = True
    ) -> T:
        """Make one call as one operation.

        :param name: the command's name, for errors and metrics.
        :param call: does the work; with the in-memory store at hand it may be called twice.
        :param probe: whether the background monitor calls.
        :param answered: whether coming back means that Redis answered; else it says nothing.
        :raises CircuitOpen: at once, where the breaker refuses.
        :raises RedisUnavailable: where Redis could not serve.
        """
        if current(self) is not None:
            return call()
        if self.memory_only:
            return self._run_in_memory(name, call)
        try:
            return self._run(name, call, probe, answered)
        except RedisUnavailable:
            if not self.in_memory or probe:
                raise
        return self._run_in_memory(name, call)

    def _run(self, name: str, call: Callable[[], T], probe: bool, answered: bool) -> T:
        operation = self.begin(name, probe=probe)
        try:
            with operation:
                result = call()
        except BaseException as exc:
            error = self.fail(operation, exc)
            if error is exc:
                raise
            raise error from exc
        if answered:
            self.succeed(operation, result)
        else:
            self._end(operation, Outcome.NEUTRAL, None)
        return result

    def begin(self, name: str, *, probe: bool = False) -> Operation:
        """Start an operation that :meth:`succeed` or :meth:`fail` ends.

        :raises CircuitOpen: where the breaker refuses.
        """
        if self.bus.begins:
            self.bus.emit(CallBegan(name))
        plain = self._plain
        permit = None if plain is None else plain.shared
        if permit is None:
            permit = self._acquire(name, probe, time.monotonic())
            return Operation(self, name, self.timeout, permit)
        operation = Operation(self, name, self.timeout, permit)
        if operation.started >= self.look_at:
            operation.permit = self._acquire(name, probe, operation.started)
        return operation

    def _acquire(self, name: str, probe: bool, now: float) -> Permit:
        """Ask the breaker, after a look at what other workers know if it is time for one."""
        if now >= self.look_at and self.host is not None:
            self.host.look()
        answer = self.breaker.try_acquire(probe=probe)
        if isinstance(answer, Refusal):
            raise self.refuse(name, answer)
        return answer

    def refuse(self, name: str, refusal: Refusal) -> CircuitOpen:
        """Return the error of a call that a breaker refused."""
        if self.bus.refusals:
            self.bus.emit(CallRefused(name))
        return CircuitOpen(name, "circuit-open", refusal.retry_after)

    def succeed(self, operation: Operation, result: object = None) -> None:
        """End an operation that came back; a pipeline's list may still tell of a failure.

        :raises RedisUnavailable: if it went to a primary that is being replaced.
        """
        if operation.trust is not None and operation.trust.revoked:
            error = RedisUnavailable(operation.name, "failover")
            self._end(operation, Outcome.NEUTRAL, error)
            raise error
        verdict = judge_replies(result) if type(result) is list else None
        if verdict is None or verdict.reason is None:
            if operation.permit is not None and not operation.settled:
                operation.settled = True
                plain = self._plain
                if plain is None or operation.permit is plain.shared:
                    self.succeeded = operation.started
                    if self.curious and self.host is not None:
                        self.host.answered()
                if plain is None or plain.pending or operation.permit is not plain.shared:
                    self.breaker.settle(operation.permit, Outcome.SUCCESS)
            if self.bus.calls:
                self._report(operation, Outcome.SUCCESS, None)
        else:
            error = RedisUnavailable(operation.name, verdict.reason)
            self._end(operation, verdict.outcome, error)
        if self.serving_memory:
            self._serve_memory(False)

    def fail(self, operation: Operation, exc: BaseException) -> BaseException:
        """End an operation that raised.

        :returns: what the caller is to see: ``exc`` itself, or a ``RedisUnavailable`` for it.
        """
        if not isinstance(exc, Exception):
            self.interrupted = True
        verdict = self._judge(exc)
        if operation.given_up and verdict.reason in _WAITED:
            verdict = GIVEN_UP
            if self.host is not None:
                self.host.look()  # nobody else may have followed what it had noticed
        elif verdict.reason == "timeout" and operation.was_away:
            verdict = BUSY
        if isinstance(exc, RedisUnavailable) or verdict.reason is None:
            self._end(operation, verdict.outcome, exc)
            return exc
        kind = RedisTimeout if verdict.reason in _TIMEOUTS else RedisUnavailable
        error = kind(operation.name, verdict.reason)
        error.__cause__ = exc
        self._settle(operation, verdict.outcome, error, error.wait)
        if verdict.outcome is Outcome.NEUTRAL:
            error.wait(self.breaker.retry_after)
        self._report(operation, verdict.outcome, error)
        return error

    def has_opened(self, operation: Operation, *, for_redis: bool) -> bool:
        """Tell whether an operation that waits need not go on: another worker's word has opened its
        circuit.

        Where this worker's own failures did, those that wait still may be answered: Redis may have
        been away for a moment only.

        Nobody is told of a transition here, within an operation: that follows when it has ended.

        :param operation: has waited for half of its time.
        :param for_redis: whether it has waited for Redis.
        """
        breaker, permit, host = self._plain, operation.permit, self.host
        if breaker is None or permit is None:
            return False
        if breaker.has_opened_since(permit):
            return breaker.borrowed
        if host is None or permit is not breaker.shared:
            return False
        if for_redis:
            host.waits(operation)
        return host.is_away

    def abandon(self, operation: Operation) -> None:
        """End an operation in which nothing was asked."""
        self._settle(operation, Outcome.NEUTRAL)

    def _judge(self, exc: BaseException) -> Verdict:
        if isinstance(exc, RedisUnavailable):  # made further down, or by another app's guard
            cause = exc.__cause__
            return judge(cause) if cause is not None else Verdict(Outcome.NEUTRAL, exc.reason)
        return judge(exc)

    def _end(self, operation: Operation, outcome: Outcome, exc: BaseException | None) -> None:
        self._settle(operation, outcome, exc)
        self._report(operation, outcome, exc)

    def _settle(
        self,
        operation: Operation,
        outcome: Outcome,
        exc: BaseException | None = None,
        tell_wait: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        if operation.permit is None or operation.settled:
            return
        operation.settled = True
        if operation.trust is not None and outcome is Outcome.FAILURE:
            operation.trust.failed = True
        if outcome is not Outcome.FAILURE or not isinstance(exc, RedisUnavailable):
            self.breaker.settle(operation.permit, outcome)
            return
        error = exc

        def cause(failures: int, wait: float) -> RedisFailed:
            tell_wait(wait)
            return RedisFailed(error, failures)

        self.breaker.settle(operation.permit, outcome, cause)

    def _report(self, operation: Operation, outcome: Outcome, exc: BaseException | None) -> None:
        if self.bus.calls and operation.permit is not None:
            seconds = time.monotonic() - operation.started
            self.bus.emit(CallFinished(operation.name, outcome, seconds, exc))

    def _run_in_memory(self, name: str, call: Callable[[], T]) -> T:
        with Operation(self, name, self.timeout, None):
            result = call()
        if not self.serving_memory:
            self._serve_memory(True)
        return result

    def _serve_memory(self, serving: bool) -> None:
        self.serving_memory = serving
        if serving:
            logger.warning("Redis cannot be reached: using the in-memory store (development only)")
        else:
            logger.info("Redis is back: no longer using the in-memory store")
