"""The faults of ``tests/faults/test_session_faults.py`` once more, under gevent."""

from __future__ import annotations

from tests.support import run_python


def test_sessions_fail_closed_among_greenlets() -> None:
    out = run_python(
        """
        from gevent import monkey
        monkey.patch_all()
        import sys
        import pytest
        from tests.faults import test_session_faults as module
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist"]
        options += ["-k", "change_is_refused or never_anonymous or streamed"]
        sys.exit(pytest.main([module.__file__, *options]))
        """,
        timeout=100,
    )
    assert " passed" in out
    assert "failed" not in out
