"""The tests of the protocol are effective: each deliberately broken line fails one of them."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import keyword
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaign.mutants import LOADED, MUTANTS, ROOT, Mutant, MutantError, broken_copy, check_originals, survives
from tests.programs.start import WarmProcess, can_fork_here


def test_every_line_to_break_is_in_its_file() -> None:
    """Checked first and quickly, so that moving such a line is noticed at once."""
    check_originals(MUTANTS)


def test_a_broken_line_has_only_names_of_its_file() -> None:
    """With another name it would be an error in each request, which any test catches."""
    unknown = {}
    for mutant in MUTANTS:
        known = {*re.findall(r"\w+", (ROOT / mutant.file).read_text()), *dir(builtins), *keyword.kwlist, "_"}
        code = re.sub(r"'[^']*'|\"[^\"]*\"", "", mutant.replacement)
        if names := set(re.findall(r"[A-Za-z_]\w*", code)) - known:
            unknown[mutant.name] = names

    assert unknown == {}


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmProcess | None]:
    """A process that has imported what the tests of mutants need of other packages; None where there can be none."""
    if not can_fork_here():
        yield None
        return
    with contextlib.closing(WarmProcess("pytest", LOADED)) as one:
        yield one


@pytest.mark.slow
@pytest.mark.many
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant: Mutant, warm: WarmProcess | None, tmp_path: Path) -> None:
    """Whether a race between two requests shows is a matter of time: a mutant survives if its tests pass twice."""
    printed = survives(mutant, tmp_path / "copy", warm=warm)
    if printed:
        printed = survives(mutant, tmp_path / "again", warm=warm)

    assert printed == ""


def test_a_mutant_whose_line_is_missing_is_an_error(tmp_path: Path) -> None:
    gone = dataclasses.replace(MUTANTS[0], original="a line that is not there")

    with pytest.raises(MutantError, match="expected once"):
        broken_copy(gone, tmp_path)


def test_the_tests_of_a_mutant_pass_where_its_line_is_whole(warm: WarmProcess | None, tmp_path: Path) -> None:
    """Else they would fail on each mutant, whatever it breaks."""
    some = next(each for each in MUTANTS if "test_decide" in each.tests[0])
    whole = dataclasses.replace(some, replacement=some.original)

    assert " passed" in survives(whole, tmp_path / "copy", warm=warm)


def test_the_original_of_a_broken_file_stays_as_it_is(tmp_path: Path) -> None:
    original = (ROOT / MUTANTS[0].file).read_text()
    broken = broken_copy(MUTANTS[0], tmp_path) / MUTANTS[0].file

    assert broken.read_text() != original
    assert (ROOT / MUTANTS[0].file).read_text() == original


def test_no_byte_code_of_the_broken_file_is_copied(tmp_path: Path) -> None:
    """It would run instead of the broken line if both files had the same size and were written in the same second."""
    mutant = next(each for each in MUTANTS if each.file.endswith(".py"))
    broken = broken_copy(mutant, tmp_path) / mutant.file

    assert list((broken.parent / "__pycache__").glob(f"{broken.stem}.*")) == []
    assert mutant.replacement in broken.read_text()
