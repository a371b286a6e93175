"""Whom the sentinels call the primary, as long as that can be trusted.

redis-py's own ``SentinelConnectionPool`` is not used: each discovery asks the first sentinel for as
long as a socket's timeout lasts, so one that hangs eats the deadline of every operation, and its
connections keep a reply that is owed when a greenlet is killed while reading.

A primary that is being replaced goes on taking writes, for seconds in a planned failover and for
as long as a partition lasts, and loses them all. So one thread for each sentinel listens to what
that sentinel announces and asks it once a second, and no operation is sent, or called done, while
the primary is in doubt.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis import exceptions as redis_errors
from redis.utils import str_if_bytes

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import Operation, Trust, current
from flask_redis_guard.client.transport.pool import GuardedPool
from flask_redis_guard.core.breaker import Permit
from flask_redis_guard.core.process import ProcessLock, gevent_is_to_patch
from flask_redis_guard.events import PrimaryChanged

logger = logging.getLogger("flask_redis_guard")

Address = tuple[str, int]

#: Announced by the sentinel that leads a failover a tenth of a second before it promotes a replica.
_BEGINS = ("+failover-state-select-", "+failover-state-send-")
#: After each event the sentinel is asked: these come with the beginning and the end of a failover.
_PATTERNS = ("+failover-*", "-failover-*", "+switch-*", "+promoted-*")


#: Seconds between two looks of the first operations of a process at what was told.
_MOMENT = 0.005
#: Timeouts that the first question to each sentinel may take: it is asked in the background, and
#: one that is far away is to be found with it.
_FIRST = 4
#: Seconds that others have to answer after the first sentinel of a process has: a partition may
#: have left that one with the primary of before.
_OTHERS = 0.1


@dataclass(eq=False)
class View:
    """Whom the sentinels call the primary; a new object for each new one."""

    address: Address
    #: The epoch of the sentinels' configuration: of two answers the higher one is the newer.
    epoch: int


@dataclass(frozen=True)
class Answer:
    """What one sentinel said the last time that it was asked."""

    address: Address | None
    epoch: int = 0
    replacing: bool = False
    #: Whether it may be alive where we do not see it: nothing answered, not even its host.
    silent: bool = False


UNASKED = Answer(None, silent=True)


class Sentinel:
    """One of the sentinels.

    :param pool: of connections to it.
    :param service: what it calls the primary.
    """

    def __init__(self, pool: GuardedPool, service: str) -> None:
        self._pool = pool
        self._service = service
        self._subscription: Any = None
        self.answer = UNASKED
        #: When a failover that it leads began, on the monotonic clock.
        self.replacing_since: float | None = None

    def ask(self) -> Any:
        """Ask for the primary, inside an operation.

        :returns: the connection on which :meth:`hear` reads the answer.
        :raises redis.RedisError: if it cannot be asked.
        """
        connection = self._pool.get_connection("SENTINEL")
        try:
            # In two words: redis-py's callbacks for the joined names differ between versions.
            connection.send_packed_command(
                connection.pack_commands(
                    [
                        ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service),
                        ("SENTINEL", "MASTER", self._service),
                    ]
                )
            )
        except BaseException:
            self._pool.release(connection)
            raise
        return connection

    def hear(self, connection: Any) -> Answer:
        """Read its answer.

        :raises redis.RedisError: if it does not answer.
        """
        try:
            found, told = self._reply(connection), self._reply(connection)
        finally:
            self._pool.release(connection)
        if isinstance(found, redis_errors.ResponseError):
            raise found
        if not found:
            return Answer(None)
        details = _pairs(told)
        return Answer(
            (str_if_bytes(found[0]), int(found[1])),
            int(details.get("config-epoch", 0)),
            "failover_in_progress" in details.get("flags", ""),
        )

    @staticmethod
    def _reply(connection: Any) -> Any:
        try:
            return connection.read_response()
        except redis_errors.ResponseError as exc:
            return exc  # no such primary, or the user may not ask for its details

    def subscribe(self) -> None:
        """Have it announce what it does, inside an operation."""
        if self._subscription is None:
            self._subscription = self._pool.get_connection("PSUBSCRIBE")
            self._subscription.send_command("PSUBSCRIBE", *_PATTERNS)

    def heard(self) -> list[str]:
        """Return the names of the events announced since the last time; never waits."""
        events: list[str] = []
        while self._subscription.can_read(timeout=0):
            message = self._subscription.read_response()
            if str_if_bytes(message[0]) == "pmessage":
                _, _, event, text = map(str_if_bytes, message)
                if self._service in text.split():
                    events.append(event)
        return events

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with the next announcement."""
        return int(self._subscription._sock.fileno())

    def forget(self) -> None:
        """Leave a subscription to the process that this one was forked from."""
        self._subscription = None

    def hang_up(self) -> None:
        """Give the connection of the subscription back."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.disconnect()
            self._pool.release(subscription)


def _pairs(reply: Any) -> dict[str, str]:
    """Return what ``SENTINEL MASTER`` told; nothing where the user may not ask."""
    if isinstance(reply, Exception):
        return {}
    words = [str_if_bytes(word) for word in reply]
    return dict(zip(words[::2], words[1::2], strict=False))


class Sentinels:
    """Know the primary, and whether it can be trusted.

    :param gate: the client's gate.
    :param service: what the sentinels call the primary.
    :param pools: a pool of connections to each sentinel.
    :param trust_seconds: how long the last confirmation holds.
    :param interval: seconds between two questions to each sentinel.
    :param background: whether threads may listen and ask.
    """

    def __init__(
        self,
        gate: Gate,
        service: str,
        pools: Sequence[GuardedPool],
        *,
        trust_seconds: float,
        interval: float,
        background: bool,
    ) -> None:
        self.gate = gate
        self._all = tuple(Sentinel(pool, service) for pool in pools)
        self._order = self._all
        self._trust_seconds = trust_seconds
        self.interval = interval
        self._background = background
        self._lock = ProcessLock()
        self._view: View | None = None
        self._trust = Trust()
        self._confirmed_at = 0.0
        self._asked_at = 0.0
        self._first_named_at: float | None = None
        self._pid: int | None = None
        self._listeners = 0
        #: Called when the primary is another one than before.
        self.on_change: Callable[[], object] = lambda: None

    # -- for operations --------------------------------------------------------------------------

    @property
    def view(self) -> View | None:
        """The primary, as far as this process knows."""
        return self._view

    def admit(self, operation: Operation) -> None:
        """Let an operation go to the primary, and remember whom it relied on.

        :raises redis.ConnectionError: while the sentinels replace the primary, and where they
            could not confirm it for too long.
        """
        if operation.trust is not None:
            return
        if self._pid != os.getpid():
            self._start()
        if self._view is not None:
            self._confirm(operation)
        trust = self._trust
        now = time.monotonic()
        if self._view is not None and now - self._confirmed_at > self._trust_seconds:
            raise redis_errors.ConnectionError("Primary unconfirmed: no sentinel answers for it")
        if self._is_replaced:
            raise redis_errors.ConnectionError("Failover: the sentinels replace the primary")
        operation.trust = trust

    def primary(self) -> View:
        """Return the primary to connect to, inside an operation.

        :raises redis.ConnectionError: if no sentinel names one.
        :raises redis.TimeoutError: if it is not known yet, since sentinels are being asked for the
            first time in this process.
        """
        operation = current(self.gate)
        if operation is None:
            raise RuntimeError("sentinels are asked inside operations only")
        if self._view is None and self._listeners:
            # All sentinels are asked at once already; who looks at it every now and then needs
            # no lock.
            if not operation.wait(self._is_told):
                raise redis_errors.TimeoutError("Not sent: no sentinel has answered yet")
            self._believe_first()
        view = self._view
        fresh = time.monotonic() - self._confirmed_at < 2 * self.interval
        if view is not None and fresh and not self._trust.failed:
            return view
        return self._ask_one(operation)

    def _is_told(self, seconds: float) -> bool:
        """Wait a moment, and tell whether the primary is known or nobody else will answer soon."""
        named = self._first_named_at
        if self._view is not None or (named and time.monotonic() - named >= _OTHERS):
            return True
        if all(each.answer is not UNASKED for each in self._all):
            return True
        time.sleep(min(seconds, _MOMENT))
        return False

    def _believe_first(self) -> None:
        """Go by what some say before the others have answered, if there is nothing else."""
        named = self._named()
        if self._view is None and named:
            self._adopt(named[max(named)], max(named))

    def _named(self) -> dict[int, Address]:
        """Return whom the sentinels call the primary, by the epoch of each."""
        answers = [each.answer for each in self._all]
        return {each.epoch: each.address for each in answers if each.address is not None}

    def _confirm(self, operation: Operation) -> None:
        """Ask inside an operation, where something failed or nobody else asks."""
        age = time.monotonic() - max(self._confirmed_at, self._asked_at)
        if not self._listeners and age > self.interval:
            self._trust.failed = False
            self._ask_all(operation)
        elif self._trust.failed:
            # One round trip; the others are asked within a second by those who listen to them.
            self._trust.failed = False
            with contextlib.suppress(redis_errors.RedisError, OSError):  # noted as silent
                self._ask_one(operation)

    def _ask_one(self, operation: Operation) -> View:
        """Ask until one sentinel names a primary; who answered last is asked first."""
        failure: Exception | None = None
        trust = self._trust
        with operation.sharing(len(self._order)):
            for sentinel in self._order:
                operation.next_share()
                try:
                    answer = self._ask(sentinel)
                except (redis_errors.RedisError, OSError) as exc:
                    failure = exc
                    continue
                if answer.address is not None:
                    others = [other for other in self._all if other is not sentinel]
                    self._order = (sentinel, *others)
                    trust.failed = False
                    view = self._view
                    if view is None or view.epoch <= answer.epoch:
                        view = self._adopt(answer.address, answer.epoch)
                    return view
        if failure is not None:
            raise failure
        raise redis_errors.ConnectionError("No master found")

    def _ask_all(self, operation: Operation) -> None:
        """Ask every sentinel at once; that one does not answer is noted, and is no error here."""
        self._asked_at = began = time.monotonic()
        asked: list[tuple[Sentinel, Any]] = []
        with operation.sharing(2 * len(self._all)):
            for sentinel in self._all:
                operation.next_share()
                try:
                    asked.append((sentinel, sentinel.ask()))
                except (redis_errors.RedisError, OSError) as exc:
                    self._note(sentinel, exc, began)
            for sentinel, connection in asked:
                operation.next_share()
                try:
                    answer: Answer | Exception = sentinel.hear(connection)
                except (redis_errors.RedisError, OSError) as exc:
                    answer = exc
                self._note(sentinel, answer, began)

    # -- what the sentinels say ------------------------------------------------------------------

    def _ask(self, sentinel: Sentinel) -> Answer:
        began = time.monotonic()
        try:
            answer = sentinel.hear(sentinel.ask())
        except (redis_errors.RedisError, OSError) as exc:
            self._note(sentinel, exc, began)
            raise
        self._note(sentinel, answer, began)
        return answer

    def _note(self, sentinel: Sentinel, answer: Answer | Exception, asked_at: float) -> None:
        if isinstance(answer, Exception):
            logger.debug("A sentinel did not answer: %s", type(answer).__name__)
            answer = Answer(None, silent=not _is_dead(answer))
        sentinel.answer = answer
        if answer.address is not None and self._first_named_at is None:
            self._first_named_at = time.monotonic()
        self._judge(sentinel, asked_at)

    def _judge(self, sentinel: Sentinel, asked_at: float) -> None:
        """Look at the last answers of all: who is the primary, and is that confirmed?"""
        now = time.monotonic()
        with self._lock:
            since = sentinel.replacing_since or now
            over = sentinel.answer.address is not None and not sentinel.answer.replacing
            if (over and since < asked_at) or now - since > self._trust_seconds:
                sentinel.replacing_since = None
            named = self._named()
            silent = sum(each.answer.silent for each in self._all)
        if not named or 2 * silent > len(self._all):
            return  # those whom we do not see could have elected another one
        epoch = max(named)
        address, view = named[epoch], self._view
        if view is None or epoch >= view.epoch or not silent:
            view = self._adopt(address, epoch)
        if view.address == address and not self._is_replaced:
            self._confirmed_at = now

    @property
    def _is_replaced(self) -> bool:
        return any(each.replacing_since is not None for each in self._all)

    def _adopt(self, address: Address, epoch: int) -> View:
        with self._lock:
            before = self._view
            if before is not None and before.address == address:
                before.epoch = epoch
                return before
            self._view = view = View(address, epoch)
            self._confirmed_at = time.monotonic()
            for sentinel in self._all:
                sentinel.replacing_since = None
        if before is not None:
            logger.warning(
                "The sentinels name another primary: %s:%d instead of %s:%d",
                *address,
                *before.address,
            )
            self._revoke()
            self.on_change()
            self.gate.bus.emit(PrimaryChanged(before.address, address))
        return view

    def _revoke(self) -> None:
        """What is under way relied on the primary of before: its success proves nothing now."""
        trust, self._trust = self._trust, Trust()
        trust.revoked = True

    # -- in the background -----------------------------------------------------------------------

    def _start(self) -> None:
        """Begin to listen to each sentinel in this process."""
        if gevent_is_to_patch():
            return  # threads of before would run beside its hub; until then operations ask
        with self._lock:
            if self._pid == os.getpid():
                return
            for sentinel in self._all:
                sentinel.forget()
            # Those who come meanwhile wait for what these are told, too.
            self._listeners = len(self._all) if self._background else 0
            self._pid = os.getpid()
        if not self._background:
            return
        for number in range(len(self._all)):
            thread = threading.Thread(
                target=_listen,
                args=(weakref.ref(self), number, os.getpid()),
                name="redis-guard-sentinel",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError as exc:  # no more threads: operations ask, and hear nothing
                logger.warning("Nobody can listen to the sentinels: %s", exc)
                self._listeners = number
                for unheard in self._all[number:]:
                    if unheard.answer is UNASKED:
                        unheard.answer = Answer(None, silent=True)
                return

    def turn(self, number: int) -> int | None:
        """Take in what a sentinel has announced, and ask it.

        :param number: which of them.
        :returns: the descriptor to wait for; ``None`` where the sentinel does not answer.
        """
        sentinel = self._all[number]
        try:
            if sentinel.answer is UNASKED:  # whom the first operations wait for
                self._in_background(lambda: self._ask(sentinel), _FIRST)
            self._have_announced(sentinel)
            began = [event for event in sentinel.heard() if event.startswith(_BEGINS)]
            if began:
                with self._lock:
                    sentinel.replacing_since = time.monotonic()
                self._revoke()
            self._in_background(lambda: self._ask(sentinel))
            return sentinel.fileno()
        except (redis_errors.RedisError, OSError):
            sentinel.hang_up()
            return None

    def _have_announced(self, sentinel: Sentinel) -> None:
        try:
            self._in_background(sentinel.subscribe)
        except (redis_errors.RedisError, OSError) as exc:
            # Of one that ended while it was asked this is the first to say that it is dead.
            self._note(sentinel, exc, time.monotonic())
            raise

    def _in_background(self, call: Callable[[], object], timeouts: int = 1) -> None:
        # Not through the gate: an open breaker is when the sentinels must be asked.
        operation = Operation(self.gate, "SENTINEL", timeouts * self.gate.timeout, Permit(-1))
        try:
            with operation:
                call()
        finally:
            operation.settled = True


def _listen(reference: weakref.ref[Sentinels], number: int, pid: int) -> None:
    """Listen to one sentinel until the client is gone; while waiting, nothing keeps it."""
    while os.getpid() == pid:
        sentinels = reference()
        if sentinels is None:
            return
        descriptor, seconds = None, sentinels.interval
        try:
            descriptor = sentinels.turn(number)
        except Exception:
            logger.exception("Listening to a sentinel failed unexpectedly")
        del sentinels
        if descriptor is None:
            time.sleep(seconds)
            continue
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        poller.poll(seconds * 1000)


def _is_dead(error: BaseException) -> bool:
    """Whether the host said that no sentinel runs there: it cannot elect anybody elsewhere."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno == errno.ECONNREFUSED:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
