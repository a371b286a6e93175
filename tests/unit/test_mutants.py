"""The mutants of ``make mutants`` fit the source, and the page for contributors lists them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mutate import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_source_that_is_there(mutant: Mutant, tmp_path: Path) -> None:
    (tmp_path / mutant.file).parent.mkdir(parents=True, exist_ok=True)
    source = ROOT / "flask_redis_guard" / mutant.file
    shutil.copy(source, tmp_path / mutant.file)
    mutant.apply(tmp_path)
    changed = (tmp_path / mutant.file).read_text()
    assert changed != source.read_text()
    compile(changed, mutant.file, "exec")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_tests_exist_and_stand_on_the_page(mutant: Mutant) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()
        assert f"| {mutant.name} | `{mutant.file}` | `{name}` |" in page


def test_a_mutant_whose_text_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one = 1\n")
    with pytest.raises(LookupError, match="has 0 of"):
        Mutant("m", "a.py", (("two", "three"),), ()).apply(tmp_path)
