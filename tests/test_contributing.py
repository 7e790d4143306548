"""CONTRIBUTING.md names existing files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
TABLE = [line for line in (REPOSITORY / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| ")]
NAMED = sorted({name for line in TABLE for name in re.findall(r"`([\w.-]+(?:/[\w.-]*)*)`", line)})


@pytest.mark.parametrize("name", NAMED)
def test_a_file_in_the_table_exists(name: str) -> None:
    assert (REPOSITORY / name).exists()


def test_the_table_names_files() -> None:
    assert len(NAMED) > 20
