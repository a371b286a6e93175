"""Some cells of the fault matrix; ``make faults`` runs all of it.

Other tests run at the same time, so that a wait may be longer here than on the page.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.matrix.faults import named_fault
from tests.matrix.features import FEATURES
from tests.matrix.run import Measure, run

BUSY = Measure(before=1.0, after=1.5, slack=2.0, recovery=5.0)


@pytest.mark.parametrize(
    ("fault", "model"),
    [
        ("killed, back with its data", "gthread"),
        ("stopped (SIGSTOP)", "gevent"),
        ("reset in the middle of replies", "gevent"),
    ],
)
def test_every_feature_holds(fault: str, model: str) -> None:
    result = run(replace(named_fault(fault), seconds=2.0), model, BUSY)
    assert result.all_findings == []
    assert result.openings > 0
    assert set(result.cells) == {feature.name for feature in FEATURES}
    assert any("429" in cell.statuses for cell in result.cells.values())
    for feature in FEATURES:
        statuses = set(result.cells[feature.name].statuses)
        assert statuses & {"200", "204", "101"}, feature.name
        assert "503" in statuses, feature.name
