"""The tests of the protocol are worth something: each of its lines that is broken on purpose fails one of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from campaign.mutants import MUTANTS, MutantError, broken_copy, demand_there, survivors


def test_every_line_to_break_stands_where_it_did() -> None:
    """At once, before the tests are run on any of them: who moves a line sees it here."""
    demand_there(MUTANTS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_broken_line_is_caught(tmp_path: Path) -> None:
    assert survivors(tmp_path) == {}


def test_a_mutant_whose_line_is_gone_says_so(tmp_path: Path) -> None:
    gone = dataclasses.replace(MUTANTS[0], found="a line that is not there")

    with pytest.raises(MutantError, match="expected once"):
        broken_copy(gone, tmp_path)
