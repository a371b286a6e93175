"""What the documentation lists is what there is."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

from flask_redis_guard.client.outcomes import TABLE
from flask_redis_guard.config import Settings
from flask_redis_guard.core.breaker import Outcome

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| `?(?P<second>[^`|]*?)`? \|", re.MULTILINE)


def rows(page: str) -> dict[str, str]:
    found = ROW.findall((DOCS / page).read_text())
    assert len(dict(found)) == len(found), "a row stands twice"
    return dict(found)


def value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def test_every_setting_is_documented_with_its_default() -> None:
    known = {
        f"REDIS_GUARD_{option.name.upper()}": option.default
        for option in dataclasses.fields(Settings)
    }
    known["REDIS_URL"] = known.pop("REDIS_GUARD_REDIS_URL")
    known["ENVIRONMENT"] = known.pop("REDIS_GUARD_ENVIRONMENT")
    assert {key: value(text) for key, text in rows("configuration.md").items()} == known


def test_every_reason_is_documented_with_whether_it_counts() -> None:
    documented = {name: text for name, text in rows("errors.md").items() if text in ("yes", "no")}
    for row in TABLE:
        if row.verdict.reason is not None:
            counts = "yes" if row.verdict.outcome is Outcome.FAILURE else "no"
            assert documented.get(row.verdict.reason) == counts, row.verdict.reason
    judged = {row.verdict.reason for row in TABLE}
    of_our_own = {"circuit-open", "rejected", "limit-failed", "session-ended"}
    assert set(documented) <= judged | of_our_own
