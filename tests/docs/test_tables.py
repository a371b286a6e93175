"""What the documentation lists is what there is."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

from flask_redis_guard.client.outcomes import BUSY, GIVEN_UP, TABLE
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


def test_every_setting_is_documented_with_default_unit_and_range() -> None:
    known: dict[str, tuple[Any, str, str]] = {}
    for option in dataclasses.fields(Settings):
        key = "REDIS_URL" if option.name == "redis_url" else f"REDIS_GUARD_{option.name.upper()}"
        if option.metadata:  # else it is no setting, but what several sources make of one
            known[key] = (option.default, option.metadata["unit"], option.metadata["check"].range)
    known["ENVIRONMENT"] = ("production", "", "any text")
    documented = {}
    for line in (DOCS / "configuration.md").read_text().splitlines():
        if line.startswith("| `"):
            key, default, unit, accepted, _ = (cell.strip() for cell in line.strip("|").split("|"))
            assert key.strip("`") not in documented, "a row stands twice"
            documented[key.strip("`")] = (value(default.strip("`")), unit, accepted)
    assert documented == known


def test_every_reason_is_documented_with_whether_it_counts() -> None:
    words = ("yes", "no", "partly")
    documented = {name: text for name, text in rows("operations.md").items() if text in words}
    outcomes: dict[str, set[bool]] = {}
    for verdict in (*(row.verdict for row in TABLE), BUSY, GIVEN_UP):
        if verdict.reason is not None:
            counts = verdict.outcome is Outcome.FAILURE
            outcomes.setdefault(verdict.reason, set()).add(counts)
    for reason, counted in outcomes.items():
        word = "partly" if len(counted) == 2 else "yes" if counted == {True} else "no"
        assert documented.get(reason) == word, reason
    of_our_own = {"circuit-open", "rejected", "limit-failed", "session-ended"}
    of_our_own.add("probe-not-permitted")
    assert set(documented) <= outcomes.keys() | of_our_own
