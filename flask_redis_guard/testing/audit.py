"""The audit: what an app does in an outage, found out before the outage does."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from flask import Flask
from flask.testing import FlaskClient

from flask_redis_guard.errors import GuardError
from flask_redis_guard.runtime import EXTENSION, Runtime
from flask_redis_guard.testing.calls import Attempt, as_served, run_all
from flask_redis_guard.testing.examples import Example, Examples, Skipped, is_login, load, plan
from flask_redis_guard.testing.faults import HEALTHY, KINDS, SLOW_SECONDS, Kind, fault_of
from flask_redis_guard.testing.findings import REFUSALS, AuditFinding, AuditReport, Cause
from flask_redis_guard.testing.outages import forget, without_stand_in
from flask_redis_guard.testing.scratch import NoServerError, ScratchServer
from flask_redis_guard.testing.wire import Dial, ServerUpstream, Wire
from flask_redis_guard.web.alerts import Alerts

#: In which order faults are made: those that end connections come late.
_ORDER: Final = ("slow", "read-only", "out-of-memory", "hang", "half-way", "empty", "refused")
#: Seconds that finding the limit of one route may take.
_LIMIT_SECONDS: Final = 3.0
#: Under these nothing can have been stored, or nobody can know that it was.
_NOTHING_STORED: Final = frozenset({"refused", "hang", "read-only", "out-of-memory", "half-way"})

#: Told what is done now, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], object]


def audit(
    app: Flask,
    requests: Examples | None = None,
    *,
    faults: Iterable[Kind] = KINDS,
    patience: float = 5.0,
    slow_seconds: float = SLOW_SECONDS,
    limit_calls: int = 60,
    own_redis: bool = False,
    base_url: str | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Attempt every route of an app under each fault of Redis, and judge the answers.

    All connections of redis-py in this process are led through a relay, whosoever uses them. They
    go to an empty server of the audit's own, so that nothing happens to your data; your Redis
    need not run. Routes with ``GET`` and without arguments are called as they are. What the app
    does beside Redis it does for real: use a database that may be written to.

    :param app: any Flask app, guarded or not.
    :param requests: examples of other requests: a JSON file, ``"module:function"``, a function or
        a list of :class:`Example` or mappings with its fields.
    :param faults: which to make, in which order.
    :param patience: seconds after which a request counts as hanging.
    :param slow_seconds: by which each answer is late in ``slow``.
    :param limit_calls: how often a route that asks Redis is called to find its limit.
    :param own_redis: lead connections to the app's own Redis, which is written to then: for
        Sentinel and Cluster, and where there is no server program.
    :param base_url: scheme and host that the app sees, such as ``https://shop.example``.
    :param progress: called with what is done now, how much of it is done and how much there is.
    :raises GuardError: for examples that cannot be read, and without a server program.
    :raises ValueError: for an unknown fault.
    """
    kinds = tuple(dict.fromkeys(faults))
    for kind in kinds:
        fault_of(kind)
    examples = load(requests)
    with contextlib.ExitStack() as stack:
        store = _store(stack, own_redis, kinds)
        stack.enter_context(_quiet())
        stack.enter_context(as_served(app))
        guarded = app.extensions.get(EXTENSION)
        if not isinstance(guarded, Runtime):
            guarded = None
        if guarded is not None:
            stack.enter_context(_muted(guarded))
            stack.enter_context(without_stand_in(guarded))
        audit_of_app = _Audit(
            app,
            guarded,
            store,
            patience=patience,
            slow_seconds=slow_seconds,
            limit_calls=limit_calls,
            own_redis=own_redis,
            base_url=base_url,
            progress=progress or (lambda doing, done, total: None),
        )
        stack.callback(lambda: audit_of_app.wire.remove(audit_of_app.given_up))
        audit_of_app.wire.place()
        return audit_of_app.run(examples, kinds)


@dataclass
class _Subject:
    """A request that is judged, and what is known of it with a healthy Redis."""

    example: Example
    healthy_status: int = 0
    healthy_leads_to: str = ""
    uses_redis: bool = False
    is_login: bool = False
    #: How many calls of one client were admitted, if the next one was refused.
    limit: int | None = None
    #: The client that is over the limit, and its address.
    over: tuple[FlaskClient, str] | None = None
    #: Whether the next call is certain to be refused where Redis answers.
    is_over: bool = False


#: Numbers of clients. An app may remember those of an audit before.
_clients = itertools.count()


def _address(number: int) -> str:
    """Return an address of those that are set apart for tests (RFC 2544)."""
    number %= 2 * 250 * 250
    return f"198.{18 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"


class _Audit:
    def __init__(
        self,
        app: Flask,
        guarded: Runtime | None,
        store: ScratchServer | None,
        *,
        patience: float,
        slow_seconds: float,
        limit_calls: int,
        own_redis: bool,
        base_url: str | None,
        progress: Progress,
    ) -> None:
        self._app = app
        self._guarded = guarded
        self._store = store
        self._patience = patience
        self._slow_seconds = slow_seconds
        self._limit_calls = limit_calls
        self._own_redis = own_redis
        self._base_url = base_url
        self._progress = progress
        self._emptied = False
        self._asked = 0
        self._by_name: dict[str, Example] = {}
        self._notes: list[str] = []
        #: Requests that nobody waits for any more.
        self.given_up: list[Attempt] = []
        self.wire = Wire(self._lead)
        self.wire.on_command = self._note_command

    def run(self, examples: list[Example], kinds: tuple[Kind, ...]) -> AuditReport:
        began = time.monotonic()
        self._by_name = {one.title: one for one in examples}
        wanted, skipped = plan(self._app, examples)
        subjects: list[_Subject] = []
        for number, example in enumerate(wanted):
            self._progress(f"healthy: {example.title}", number, len(wanted))
            found = self._look(example, is_given=example.title in self._by_name)
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                subjects.append(found)
        findings: dict[tuple[int, Kind], AuditFinding] = {}
        made = [kind for kind in kinds if kind != "empty" or self._store is not None]
        for kind in sorted(made, key=_ORDER.index):
            for number, finding in self._under(kind, subjects):
                findings[number, kind] = finding
        if len(made) < len(kinds):
            self._notes.append("empty was left out: there is no server program for an empty store")
        ordered = tuple(findings[n, kind] for n in range(len(subjects)) for kind in made)
        return AuditReport(
            self._app.name,
            tuple(made),
            ordered,
            tuple(skipped),
            time.monotonic() - began,
            self._patience,
            tuple(self._notes),
        )

    # -- with a healthy Redis ------------------------------------------------------------------

    def _look(self, example: Example, *, is_given: bool) -> _Subject | Skipped:
        """Find out how a request is answered with a healthy Redis."""
        before = self._asked
        client, address = self._client(example)
        call = self._ask(example, client, address)
        if call.hangs:
            return Skipped(example.title, "it hangs with a healthy Redis")
        status = call.status or 500
        if status >= 500:
            reason = f"it answers {status} with a healthy Redis"
            return Skipped(example.title, f"{reason}: {call.cause}" if call.cause else reason)
        if status == 429:
            return Skipped(example.title, "it answers 429 at its first call")
        if status >= 400 and not is_given:
            return Skipped(example.title, f"needs an example: it answers {status}")
        if status >= 400:
            self._notes.append(f"{example.title} answers {status} with a healthy Redis, too")
        subject = _Subject(example, status, call.leads_to, is_login=is_login(self._app, example))
        subject.uses_redis = self._asked > before
        if subject.uses_redis:
            self._use_up(subject)
        return subject

    def _use_up(self, subject: _Subject) -> None:
        """Attempt as one client until it is refused, if it ever is."""
        client, address = self._client(subject.example)
        ends = time.monotonic() + _LIMIT_SECONDS
        wanted = self._limit_calls if subject.limit is None else subject.limit + 1
        for number in range(wanted + 1):
            call = self._ask(subject.example, client, address)
            if call.status == 429:
                subject.limit = number if subject.limit is None else subject.limit
                subject.over, subject.is_over = (client, address), number > 0
                return
            if call.hangs or time.monotonic() > ends:
                break
        subject.is_over = False

    def _be_over(self, subject: _Subject) -> None:
        """Have a client be over the limit for certain, if there is one."""
        if subject.limit is None:
            return
        subject.is_over = False
        if subject.over is not None:
            subject.is_over = self._ask(subject.example, *subject.over).status == 429
        if not subject.is_over:
            self._use_up(subject)

    # -- under a fault -------------------------------------------------------------------------

    def _under(self, kind: Kind, subjects: list[_Subject]) -> Iterator[tuple[int, AuditFinding]]:
        self._progress(kind, 0, len(subjects))
        self._start_anew()
        for subject in subjects:
            self._be_over(subject)
        calls = {
            n: self._call(one.example, *self._client(one.example)) for n, one in enumerate(subjects)
        }
        spare = [self._client(one.example) for one in subjects]
        over = {n: self._calls_beyond(one) for n, one in enumerate(subjects) if one.is_over}
        self._start_anew()
        with self._fault(kind):
            # Those without Redis first: they may not wait for what the others hold on to, such as
            # connections to the database.
            alone = [call for n, call in calls.items() if not subjects[n].uses_redis]
            others = [call for n, call in calls.items() if subjects[n].uses_redis]
            beyond = itertools.chain(*over.values())
            done = 0
            for call in itertools.chain(run_all(alone), run_all([*others, *beyond])):
                done += call in calls.values()
                self._progress(kind, done, len(subjects))
            self._repeat_alone(calls, subjects, spare)
        self._settle([*calls.values(), *itertools.chain(*over.values())])
        for n, subject in enumerate(subjects):
            finding = self._judge(kind, subject, calls[n])
            if n in over and kind != "empty":
                finding = self._judge_beyond(finding, subject, *over[n])
            yield n, replace(finding, accepted=finding.verdict in subject.example.accept)

    def _repeat_alone(
        self,
        calls: dict[int, Attempt],
        subjects: list[_Subject],
        spare: list[tuple[FlaskClient, str]],
    ) -> None:
        """Repeat requests that failed: was it another request that ran beside it?"""
        ends = time.monotonic() + self._patience
        for n, call in list(calls.items()):
            if call.status == 500 and not call.hangs and time.monotonic() < ends:
                calls[n] = self._ask(subjects[n].example, *spare[n])

    def _calls_beyond(self, subject: _Subject) -> tuple[Attempt, Attempt]:
        """Return a call of the client that is over the limit, and too many calls of another one."""
        assert subject.over is not None and subject.limit is not None  # noqa: S101, PT018
        return (
            self._call(subject.example, *subject.over),
            self._call(subject.example, *self._client(subject.example), times=subject.limit + 1),
        )

    @contextlib.contextmanager
    def _fault(self, kind: Kind) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if kind == "empty" and self._store is not None:
                self._store.empty()
                self._emptied = self._own_redis
                self.wire.cut()
            elif not self._own_redis and kind in ("read-only", "out-of-memory"):
                stack.enter_context(self._store_of_audit().refusing(kind))
            else:
                self.wire.put(fault_of(kind, self._slow_seconds))
            try:
                yield
            finally:
                self._emptied = False
                self.wire.put(HEALTHY, cut=kind == "empty")

    def _settle(self, calls: list[Attempt]) -> None:
        """Wait a while for what was given up; then all is as before the fault."""
        ends = time.monotonic() + 1
        for call in calls:
            if call.hangs:
                call.join(max(0.0, ends - time.monotonic()))
        self.given_up += [call for call in calls if call.is_alive()]
        self._start_anew()

    def _start_anew(self) -> None:
        if self._guarded is not None:
            forget(self._guarded)

    # -- verdicts ------------------------------------------------------------------------------

    def _judge(self, kind: Kind, subject: _Subject, call: Attempt) -> AuditFinding:
        status, verdict, note, cause = call.status, "served", "", None
        if call.hangs:
            status, verdict, cause = None, "hang", call.cause
        elif status in REFUSALS:
            verdict = "refused"
        elif status is not None and status >= 500:
            verdict, cause = "500", call.cause or Cause("", "", "view")
        elif subject.is_login and subject.uses_redis and _works(subject, call, kind):
            verdict, cause = "bypass", Cause("", "", "login")
            note = "the login was answered as if it had worked"
        elif status != subject.healthy_status:
            note = f"{status} instead of {subject.healthy_status}"
        return AuditFinding(
            subject.example.title,
            kind,
            verdict,  # type: ignore[arg-type]
            status,
            round(call.seconds, 3),
            subject.healthy_status,
            subject.uses_redis,
            note,
            cause,
        )

    def _judge_beyond(
        self, finding: AuditFinding, subject: _Subject, over: Attempt, many: Attempt
    ) -> AuditFinding:
        """Return what it means that calls beyond the limit were served, if they were."""
        assert subject.over is not None  # noqa: S101
        if over.served and finding.fault == "slow" and subject.limit == 1:
            # A slow Redis counts: it may have been admitted in a new period, which is used up now.
            return finding
        if over.served:
            call, what = over, f"a client that had used up its limit of {subject.limit} was served"
        elif many.served == many.times:
            call, what = (
                many,
                f"a client was served {many.served} times; its limit is {subject.limit}",
            )
        else:
            return finding
        # It was refused before. If it is refused now it would have been in between, and all of
        # those calls lie within one period of the limit.
        if self._ask(subject.example, *subject.over).status != 429:
            return finding
        library = "flask_limiter" if "limiter" in self._app.extensions else ""
        if self._guarded is not None and not library:
            library = "flask_redis_guard"
        return replace(
            finding,
            verdict="bypass",
            status=call.status,
            seconds=round(call.seconds, 3),
            note=what,
            cause=Cause("", "", library),
        )

    # -- calling -------------------------------------------------------------------------------

    def _client(self, example: Example) -> tuple[FlaskClient, str]:
        """Return a client that nobody knows, and its address; logged in if the example wants it."""
        client, address = self._app.test_client(), _address(next(_clients))
        before: list[Example] = []
        while example.after:
            example = self._by_name[example.after]
            before.insert(0, example)
        for one in before:
            self._ask(one, client, address)
        return client, address

    def _call(
        self, example: Example, client: FlaskClient, address: str, *, times: int = 1
    ) -> Attempt:
        return Attempt(
            self._app,
            example,
            client,
            address,
            base_url=self._base_url,
            patience=self._patience,
            times=times,
        )

    def _ask(self, example: Example, client: FlaskClient, address: str) -> Attempt:
        (call,) = run_all([self._call(example, client, address)])
        if call.hangs:
            self.given_up.append(call)
        return call

    # -- connections ---------------------------------------------------------------------------

    def _lead(self, connection: Any, connect: Callable[[], Any]) -> Dial | None:
        def dial() -> ServerUpstream:
            if self._own_redis and not self._emptied:
                return ServerUpstream(connect(), knows_logins=True)
            return self._store_of_audit().dial()

        return dial

    def _store_of_audit(self) -> ScratchServer:
        if self._store is None:
            raise GuardError("There is no empty store")
        return self._store

    def _note_command(self, words: list[bytes]) -> None:
        probe = None if self._guarded is None else self._guarded.settings.key_prefix.encode()
        if probe is None or not any(word.startswith(probe + b"probe") for word in words[1:2]):
            self._asked += 1


def _works(subject: _Subject, call: Attempt, kind: Kind) -> bool:
    """Whether a login was answered as with a healthy Redis though nothing can have been stored."""
    return (
        kind in _NOTHING_STORED
        and call.status == subject.healthy_status
        and call.leads_to == subject.healthy_leads_to  # and not back to the form
        and subject.healthy_status < 400
    )


def _store(
    stack: contextlib.ExitStack, own_redis: bool, kinds: tuple[Kind, ...]
) -> ScratchServer | None:
    """Return an empty server, if one is needed.

    :raises NoServerError: if there is no program for what cannot go on without.
    """
    if own_redis and "empty" not in kinds:
        return None
    try:
        server = ScratchServer()
    except NoServerError:
        if own_redis:
            return None
        raise
    stack.callback(server.close)
    return server


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have nobody log what is an error by intention."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _muted(guarded: Runtime) -> Iterator[None]:
    """Have the guard send no alert about an outage that is none."""
    try:
        alerts = guarded.part(Alerts)
    except KeyError:
        yield
        return
    with alerts.muted():
        yield
