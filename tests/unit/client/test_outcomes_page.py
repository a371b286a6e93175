"""``docs/outcomes.md`` says what the table says; ``python -m tests.unit.client.test_outcomes_page``
writes it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import exceptions as errors

from flask_redis_guard.client.outcomes import TABLE, judge, judge_replies
from flask_redis_guard.core.breaker import Outcome

PAGE = Path(__file__).parents[3] / "docs" / "outcomes.md"


def rows() -> str:
    """The table as Markdown."""
    lines = ["| exception | message begins with | outcome | `reason` | why |", "|---" * 5 + "|"]
    for row in TABLE:
        home = "" if row.kind.__module__ == "builtins" else "redis."
        reason = f"`{row.verdict.reason}`" if row.verdict.reason else "none: raised as it is"
        prefix = f"`{row.prefix}`" if row.prefix else "anything"
        cells = (f"`{home}{row.kind.__name__}`", prefix, row.verdict.outcome.value, reason, row.why)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_the_documentation_has_the_table() -> None:
    _, bar, table = PAGE.read_text().partition("| exception")
    assert bar + table == rows(), "python -m tests.unit.client.test_outcomes_page"


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (errors.ConnectionError("Too many connections"), Outcome.NEUTRAL, "pool-exhausted"),
        (errors.ConnectionError("Error 111 connecting"), Outcome.FAILURE, "connection"),
        (errors.ConnectionError("CLUSTERDOWN x"), Outcome.FAILURE, "cluster-down"),
        (errors.ReadOnlyError("a replica"), Outcome.FAILURE, "read-only"),
        (errors.ResponseError("MISCONF Redis is"), Outcome.FAILURE, "misconf"),
        (errors.ResponseError("WRONGTYPE Operation"), Outcome.SUCCESS, None),
        (errors.NoPermissionError("no permissions"), Outcome.SUCCESS, None),
        (errors.RedisClusterException("Missing key"), Outcome.NEUTRAL, None),
        (errors.SlotNotCoveredError("Slot 3"), Outcome.FAILURE, "cluster-down"),
        (TypeError("an argument"), Outcome.NEUTRAL, None),
        (KeyboardInterrupt(), Outcome.NEUTRAL, None),
        (
            errors.ResponseError("Command # 1 (SET k) of pipeline caused error: OOM x"),
            Outcome.FAILURE,
            "out-of-memory",
        ),
    ],
)
def test_errors_are_told_apart(error: BaseException, outcome: Outcome, reason: str | None) -> None:
    assert judge(error) == (outcome, reason)


@pytest.mark.parametrize("kind", [errors.WatchError, errors.RedisClusterException])
def test_a_lost_connection_is_seen_through_what_masks_it(kind: type[Exception]) -> None:
    error = kind("masked")
    error.__cause__ = errors.TimeoutError("slow")
    assert judge(error) == (Outcome.FAILURE, "timeout")


def test_one_failure_among_the_replies_of_a_pipeline_is_one() -> None:
    assert judge_replies([b"value", errors.ReadOnlyError("no")]).reason == "read-only"
    assert judge_replies([b"value", errors.ResponseError("WRONGTYPE")]).reason is None


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition("| exception")[0] + rows())
