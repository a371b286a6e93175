"""The page of the fault matrix gives a reason for what cannot hold, or says that there is none."""

from __future__ import annotations

from tests.matrix.faults import FAULTS
from tests.matrix.page import text
from tests.matrix.run import MODELS, Cell, Result

NOTHING_LEFT = {"threads": [], "greenlets": 0, "sockets": 0, "places": 0}


def result(fault: str, model: str, **findings: list[str]) -> Result:
    names = ("client call", "health")
    cells = {name: Cell({"200": 9}, 0.1, None, 0.0, findings.get(name[:6], [])) for name in names}
    left = {**NOTHING_LEFT, "memory": 0.5, "connections": 1}
    return Result(fault, model, 3.0, cells, {}, 0, left, findings.get("all", []), took=20.0)


def test_what_cannot_hold_is_told_with_its_reason_and_what_should_is_not() -> None:
    page = text(
        [
            result("restart with loss of data", "gthread", client=["acknowledged write lost: 16"]),
            result("restart with loss of data", "sync", client=["acknowledged write lost: 15"]),
            result("restart with loss of data", "gevent", health=["status 500: 3"]),
            result("connections refused", "sync", all=["an alert was sent twice"]),
        ]
    )
    assert "4 runs of 80 s together" in page
    assert (
        "**5 of 8 cells hold.** 2 cannot, for a reason that is told below; 1 should, and did not."
        in page
    )
    _, lost, other, alerts = (line for line in page.splitlines() if line.count(" | ") == 3)
    assert "| gthread: *client call* 16; sync: *client call* 15 | Redis acknowledged" in lost
    assert "| status 500 | gevent: *health* 3 | **unexplained** |" in other
    assert "| an alert was sent twice | sync: yes | **unexplained** |" in alerts


def test_a_page_of_some_runs_and_one_where_all_holds() -> None:
    assert "**2 of 2 cells hold.** \n" in text([result("connections refused", "sync")])
    assert "does not hold" not in text([result("connections refused", "sync")])
    assert "## gevent" not in text([result("connections refused", "sync")])


def test_names_and_reasons() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert not set(MODELS) & {fault.name for fault in FAULTS}
    assert all(why.endswith(".") for fault in FAULTS for why in fault.cannot.values())
