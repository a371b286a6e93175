"""Algorithms as they are listed: each has a byte of its own, and its script keeps to it."""

from __future__ import annotations

import re

from flask_redis_guard.limiting.algorithms import ALGORITHMS


def test_no_two_algorithms_share_a_code() -> None:
    codes = [algorithm.code for algorithm in ALGORITHMS]
    assert len(codes) == len(set(codes))


def test_a_script_registers_what_its_module_says() -> None:
    for algorithm in ALGORITHMS:
        for section, table in (("judge", "algorithms"), ("refund", "refunds")):
            registered = re.findall(rf"^{table}\[(\d+)\] =", algorithm.lua(section), re.MULTILINE)
            assert registered == [str(algorithm.code[0])], (algorithm.script, section)
