"""One permit around every operation: the door between callers and Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from flask_redis_guard.client.operation import Operation, current
from flask_redis_guard.client.outcomes import Verdict, judge, judge_replies
from flask_redis_guard.core.breaker import CircuitBreaker, Outcome, Refusal
from flask_redis_guard.errors import CircuitOpen, RedisTimeout, RedisUnavailable
from flask_redis_guard.observe.outage import OutageWatch

logger = logging.getLogger("flask_redis_guard")

T = TypeVar("T")


class Gate:
    """Lead every operation of one client through its breaker.

    The outermost operation holds the permit; whatever redis-py does inside it (a script that is
    loaded again, the commands of a cluster pipeline) belongs to it. What leaves the gate is the
    result, redis-py's own exception where that is an answer, or a ``RedisUnavailable``.

    :param breaker: decides who may pass.
    :param timeout: seconds for one operation, all its waiting together.
    :param in_memory: whether an in-memory store serves what Redis cannot (development only).
    :param memory_only: whether that store serves everything (``memory://``).
    :param watch: follows failures and the first success after one.
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        timeout: float,
        *,
        in_memory: bool = False,
        memory_only: bool = False,
        watch: OutageWatch | None = None,
    ) -> None:
        self.breaker = breaker
        self.timeout = timeout
        self.in_memory = in_memory
        self.memory_only = memory_only
        #: Whether the last operation was served by the in-memory store.
        self.serving_memory = memory_only
        self._watch = watch
        #: Called before each operation; the background monitor starts so in every process.
        self.on_begin: Callable[[], object] | None = None
        #: Called with each finished operation, its outcome and the error raised, if any.
        self.on_finished: Callable[[Operation, Outcome, BaseException | None], object] | None = None
        #: Called with the name of each operation that the breaker refused.
        self.on_refused: Callable[[str], object] | None = None
        #: Called inside each operation before its work; a test makes an outage of what it raises.
        self.fault: Callable[[Operation], object] | None = None

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
                if self.fault is not None:
                    self.fault(operation)
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
        if self.on_begin is not None:
            self.on_begin()
        permit = self.breaker.try_acquire(probe=probe)
        if isinstance(permit, Refusal):
            if self._watch is not None:
                self._watch.tick()
            if self.on_refused is not None:
                self.on_refused(name)
            raise CircuitOpen(name, "circuit-open", permit.retry_after)
        return Operation(self, name, self.timeout, permit)

    def succeed(self, operation: Operation, result: object = None) -> None:
        """End an operation that came back; a pipeline's list may still tell of a failure."""
        verdict = judge_replies(result) if type(result) is list else None
        if verdict is None or verdict.reason is None:
            self._end(operation, Outcome.SUCCESS, None)
        else:
            error = RedisUnavailable(operation.name, verdict.reason)
            self._end(operation, verdict.outcome, error)
        if self.serving_memory:
            self._serve_memory(False)

    def fail(self, operation: Operation, exc: BaseException) -> BaseException:
        """End an operation that raised.

        :returns: what the caller is to see: ``exc`` itself, or a ``RedisUnavailable`` for it.
        """
        verdict = self._judge(exc)
        if isinstance(exc, RedisUnavailable) or verdict.reason is None:
            self._end(operation, verdict.outcome, exc)
            return exc
        kind = RedisTimeout if verdict.reason == "timeout" else RedisUnavailable
        self._settle(operation, verdict.outcome)
        error = kind(operation.name, verdict.reason, self.breaker.retry_after)
        error.__cause__ = exc
        self._report(operation, verdict.outcome, error)
        return error

    def abandon(self, operation: Operation) -> None:
        """End an operation in which nothing was asked."""
        self._settle(operation, Outcome.NEUTRAL)

    def _judge(self, exc: BaseException) -> Verdict:
        if isinstance(exc, RedisUnavailable):  # made further down, or by another app's guard
            cause = exc.__cause__
            return judge(cause) if cause is not None else Verdict(Outcome.NEUTRAL, exc.reason)
        return judge(exc)

    def _end(self, operation: Operation, outcome: Outcome, exc: BaseException | None) -> None:
        self._settle(operation, outcome)
        self._report(operation, outcome, exc)

    def _settle(self, operation: Operation, outcome: Outcome) -> None:
        if operation.permit is not None and not operation.settled:
            operation.settled = True
            self.breaker.settle(operation.permit, outcome)

    def _report(self, operation: Operation, outcome: Outcome, exc: BaseException | None) -> None:
        if operation.permit is None:
            return
        if self._watch is not None:
            if outcome is Outcome.FAILURE and isinstance(exc, RedisUnavailable):
                self._watch.failed(exc, self.breaker)
            elif outcome is Outcome.SUCCESS and self._watch.failing:
                self._watch.succeeded()
        if self.on_finished is not None:
            self.on_finished(operation, outcome, exc)

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
