"""``make mutants``: break the product on purpose, and show which test notices.

Each mutant is one small change that would break a promise. It is made in a copy of the tree, never
in place, by replacing a text that must be there. A mutant that no test notices is a hole in the
tests: ``python -m tests.mutate`` ends with 1 then. Names on the command line select some.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Of the tree, what the tests of a mutant need.
NEEDED = (
    "flask_redis_guard",
    "flask_redis_guard_pytest",
    "tests",
    "benchmarks",
    "example_app",
    "docs",
    "setup.cfg",
    "pyproject.toml",
)

#: Seconds; a mutant that makes its test hang is noticed too.
LONGEST = 120


@dataclass(frozen=True)
class Mutant:
    """One change that breaks a promise.

    :param name: what becomes of the product.
    :param file: below the package.
    :param changes: texts, and what stands in their place; each is there exactly once.
    :param tests: that fail then; each of them is run, and each has to.
    """

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]

    def apply(self, package: Path) -> None:
        """Change the source below a directory.

        :raises LookupError: if a text is not there exactly once.
        """
        path = package / self.file
        source = path.read_text()
        for old, new in self.changes:
            if source.count(old) != 1:
                raise LookupError(f"{self.name}: {self.file} has {source.count(old)} of {old!r}")
            source = source.replace(old, new)
        path.write_text(source)


MUTANTS = (
    Mutant(
        "ignore the permit",
        "client/gate.py",
        (
            (
                "            raise self.refuse(name, answer)\n",
                '            answer = type("Any", (), {"generation": -1})()\n',
            ),
        ),
        ("tests/faults/test_session_faults.py::test_with_the_breaker_open_it_is_refused_at_once",),
    ),
    Mutant(
        "count neutral as success",
        "core/breaker.py",
        (
            (
                "        if outcome is Outcome.SUCCESS:\n            self._successes += 1\n",
                "        if outcome is not Outcome.FAILURE:\n            self._successes += 1\n",
            ),
        ),
        ("tests/unit/test_breaker.py::test_neutral_probe_counts_neither_way",),
    ),
    Mutant(
        "forget the generation",
        "core/breaker.py",
        (("        if permit.generation != self._generation:\n", "        if False:\n"),),
        (
            "tests/unit/test_breaker.py::test_failures_of_an_earlier_closed_time_do_not_open_the_next",
        ),
    ),
    Mutant(
        "skip the deny on a raising key function",
        "web/limits/enforce.py",
        (
            (
                "            if not limit.shadow:\n                raise\n",
                "            if not limit.shadow:\n                continue\n",
            ),
        ),
        ("tests/integration/limits/test_accidents.py::test_what_cannot_be_worked_out_is_refused",),
    ),
    Mutant(
        "return an empty session on a failed load",
        "web/sessions/session.py",
        (
            (
                "            except RedisUnavailable as error:\n"
                "                self._error = error\n"
                "                raise\n        if found is None:",
                "            except RedisUnavailable:\n"
                "                found = None\n        if found is None:",
            ),
        ),
        ("tests/faults/test_session_faults.py::test_who_reads_is_refused_and_is_never_anonymous",),
    ),
    Mutant(
        "answer 'saved' although the write failed",
        "web/sessions/session.py",
        (
            (
                "            except RedisUnavailable as error:\n"
                "                self._error = error\n"
                "                raise\n            self._failed = False",
                "            except RedisUnavailable:\n"
                "                return False\n            self._failed = False",
            ),
        ),
        ("tests/faults/test_session_faults.py::test_a_change_is_refused",),
    ),
    Mutant(
        "answer 'saved' to a session that ended meanwhile",
        "web/sessions/session.py",
        (("        if result is Saved.ENDED:\n", "        if False:\n"),),
        (
            "tests/integration/sessions/test_interface.py::test_a_logout_stays_one_against_a_request_that_changes",
        ),
    ),
    Mutant(
        "drop the owed reply",
        "client/transport/connections.py",
        (("return self._owed == 0 and not", "return not"),),
        ("tests/faults/test_stale_replies.py::test_a_reply_that_nobody_waited_for_meets_nobody",),
    ),
    Mutant(
        "keep the connection of a batch that everybody left",
        "client/channel.py",
        (
            (
                "len(self._sent_to) != self._at[0]:\n            connection.disconnect()",
                "len(self._sent_to) != self._at[0]:\n            connection._owed = 0",
            ),
        ),
        ("tests/faults/test_channel_turns.py::test_a_batch_that_everybody_left_leaves_no_reply",),
    ),
    Mutant(
        "share a batch's error",
        "client/channel.py",
        (("                if call is driver:\n", "                if driver:\n"),),
        (
            "tests/faults/test_channel_turns.py::test_a_connection_that_breaks_under_a_batch_is_one_failure",
        ),
    ),
    Mutant(
        "refuse all of a batch when its driver's time is used up",
        "client/channel.py",
        (
            (
                "        return (timeout and late) or "
                "(self._outgoing is None and (timeout or late))\n",
                "        return False and timeout and late\n",
            ),
        ),
        (
            "tests/faults/test_channel_turns.py::test_who_has_no_time_left_to_connect_leaves_it_to_the_next",
        ),
    ),
    Mutant(
        "wait for the whole timeout again at each byte",
        "client/operation.py",
        (("        self.waited += counted\n", "        self.waited = counted\n"),),
        ("tests/faults/test_deadline.py::test_every_path_ends_at_the_deadline",),
    ),
    Mutant(
        "blame Redis for the time in which this process did not run",
        "client/operation.py",
        (
            (
                "        return self.away > max(2 * self.waited, self.allowance)\n",
                "        return False\n",
            ),
        ),
        (
            "tests/unit/client/test_gate.py::test_a_timeout_counts_if_this_process_was_there_to_be_answered",
        ),
    ),
    Mutant(
        "let go of a limit because a client used the pool up",
        "client/outcomes.py",
        (
            (
                '    return on_outage != "deny" and error.reason in OUTAGES\n',
                '    return on_outage != "deny"\n',
            ),
        ),
        (
            "tests/integration/limits/test_scopes.py::test_whatever_says_nothing_about_redis_refuses",
        ),
    ),
    Mutant(
        "take what a revoked primary acknowledged",
        "client/gate.py",
        (
            (
                "        if operation.trust is not None and operation.trust.revoked:\n",
                "        if False:\n",
            ),
        ),
        ("tests/unit/client/test_gate.py::test_what_a_replaced_primary_answered_is_refused",),
    ),
    Mutant(
        "take any reply of a script for an answer",
        "client/script.py",
        (
            (
                '        raise RedisUnavailable(self.operation, "rejected")\n\n    def run(',
                "        return [1] * numbers\n\n    def run(",
            ),
        ),
        ("tests/unit/client/test_script.py::test_a_reply_of_another_shape_is_no_answer",),
    ),
    Mutant(
        "refuse from memory after the time is over",
        "limiting/denials.py",
        (
            (
                "        retry_at = sent + states[key].retry_after - _ROUNDING\n",
                "        retry_at = self._monotonic() + states[key].retry_after - _ROUNDING\n",
            ),
        ),
        ("tests/unit/test_denials.py::test_time_runs_from_when_the_request_was_sent",),
    ),
    Mutant(
        "let a message pass that nobody could count",
        "web/websockets/limited.py",
        (
            (
                "            except (RateLimitExceeded, RedisUnavailable) as error:\n"
                "                self.refuse(error)\n        self._raise_if_closed()\n"
                "        return message",
                "            except RateLimitExceeded as error:\n"
                "                self.refuse(error)\n            except RedisUnavailable:\n"
                "                pass\n        self._raise_if_closed()\n"
                "        return message",
            ),
        ),
        (
            "tests/faults/test_websockets.py::test_outage_closes_what_is_open_and_refuses_what_is_new",
        ),
    ),
    Mutant(
        "keep the place of a connection that ended",
        "web/websockets/limited.py",
        (("                    self._runtime.places.free(place)\n", "                    pass\n"),),
        ("tests/integration/test_websocket_limited.py::test_handler_that_raises_frees_its_place",),
    ),
    Mutant(
        "take an unknown environment for development",
        "config.py",
        (
            (
                "        return self.environment in DEVELOPMENT\n",
                '        return self.environment != "production"\n',
            ),
        ),
        ("tests/unit/test_config.py::test_memory_store_is_refused_outside_development",),
    ),
    Mutant(
        "count for a node what others of a batch have counted",
        "client/topology/nodes.py",
        (("        if outcome is not Outcome.NEUTRAL:\n", "        if outcome:\n"),),
        (
            "tests/integration/client/test_cluster_channel.py::test_what_another_caller_of_a_batch_has_counted_says_nothing_of_a_node",
        ),
    ),
    Mutant(
        "look for a command's key where redis-py does",
        "client/topology/cluster.py",
        (("            self.initialize(redis_conn)\n", "            pass\n"),),
        (
            "tests/integration/client/test_cluster_channel.py::test_commands_of_two_words_find_their_key_the_first_time",
        ),
    ),
    Mutant(
        "keep the place of a caller that went alone",
        "client/channel.py",
        (
            (
                "        finally:\n            self._in_flight.pop(operation, None)\n",
                "        finally:\n",
            ),
        ),
        ("tests/faults/test_channel_turns.py::test_who_goes_alone_makes_room_for_the_next",),
    ),
    Mutant(
        "believe whatever stands on the board",
        "host/board.py",
        (
            (
                "        return payload if raw[:_DIGEST] == self._digest(payload) else None\n",
                "        return payload\n",
            ),
        ),
        ("tests/host/test_places.py::test_parts_that_were_not_written_by_us_count_as_empty",),
    ),
    Mutant(
        "open because of a worker that is cut off alone",
        "core/hostview.py",
        (
            (
                "worker.opened_at > over_at and worker.failing_since >= answered\n",
                "worker.opened_at > over_at\n",
            ),
        ),
        (
            "tests/unit/test_hostview.py::test_one_that_is_answered_since_does_not_believe_that_redis_is_away",
        ),
    ),
    Mutant(
        "believe a recovery after one answer",
        "observe/probe.py",
        (("range(0 if once else IN_A_ROW - 1)", "range(0)"),),
        (
            "tests/faults/test_recovery.py::test_server_that_answers_now_and_then_is_not_taken_for_a_recovered_one",
        ),
    ),
)


def caught_by(mutant: Mutant, directory: Path) -> dict[str, float | None]:
    """Return, of each of a mutant's tests, the seconds after which it failed; ``None``: it did not.

    :param directory: where the copy of the tree is made.
    """
    copy_to(directory)
    mutant.apply(directory / "flask_redis_guard")
    return {test: _failure([test], directory)[0] for test in mutant.tests}


def copy_to(directory: Path) -> None:
    """Copy what the tests need of the tree."""
    for name in NEEDED:
        source, target = ROOT / name, directory / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "_build")
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)


def _failure(tests: Sequence[str], directory: Path) -> tuple[float | None, str]:
    """Return the seconds after which one of some tests failed, if it did, and what it said."""
    began = time.monotonic()
    # Coming back with 1: a test has failed. Anything else but 0 tells nothing of the mutant.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            [*command, "-p", "no:randomly", f"--timeout={LONGEST}"],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        took = time.monotonic() - began
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{tests} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return took if done.returncode else None, done.stdout


def main(*wanted: str) -> int:
    """Run the named mutants, or all of them; return how many nobody noticed."""
    missed = 0
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.name in wanted]
    if len(chosen) < len(wanted):
        raise SystemExit(f"there is no such mutant; there are: {[m.name for m in MUTANTS]}")
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        copy_to(Path(directory))
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        seconds, said = _failure(tests, Path(directory))
        if seconds is not None:
            raise SystemExit(f"{said[-4000:]}\nthis fails without any mutant")
    for mutant in chosen:
        with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
            found = caught_by(mutant, Path(directory))
        for test, seconds in found.items():
            word = f"caught in {seconds:.1f} s by" if seconds is not None else "NOT CAUGHT by"
            print(f"{mutant.name}: {word} {test}", flush=True)
        missed += None in found.values()
    print(f"{len(chosen) - missed} of {len(chosen)} mutants were caught")
    return missed


if __name__ == "__main__":
    sys.exit(min(1, main(*sys.argv[1:])))
