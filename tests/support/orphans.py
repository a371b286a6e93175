"""Processes that do not outlive the test that started them, however it ends."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def death_signal() -> Callable[[], None] | None:
    """Return a ``preexec_fn`` by which the kernel kills the process when its parent dies.

    The kernel counts the *thread* that started the process as its parent: elsewhere than in the
    main thread, and on other systems, there is none.
    """
    if threading.current_thread() is threading.main_thread() and _libc is not None:
        return _ask_for_it
    return None


def _ask_for_it() -> None:
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
