"""The faults of sessions once more, under gevent."""

from __future__ import annotations

import pytest

from tests.support import run_python


@pytest.mark.parametrize(
    ("module", "chosen"),
    [
        ("test_session_faults", "change_is_refused or never_anonymous or streamed"),
        ("test_session_owners", "everybody"),
    ],
)
def test_sessions_fail_closed_among_greenlets(module: str, chosen: str) -> None:
    out = run_python(
        f"""
        from gevent import monkey
        monkey.patch_all()
        import sys
        import pytest
        from tests.faults import {module} as module
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist"]
        # The package brings a plugin, for which pytest takes all that lies beside it.
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-k", "{chosen}"]
        sys.exit(pytest.main([module.__file__, *options]))
        """,
        timeout=100,
    )
    assert " passed" in out
    assert "failed" not in out
