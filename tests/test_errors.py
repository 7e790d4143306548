"""Every error code is documented, and has a row in the table of statuses."""

from __future__ import annotations

import re
from pathlib import Path

from service.errors import CODES
from service.requests.problems import PROBLEMS

DOCS = Path(__file__).parents[1] / "docs" / "errors.md"


def test_every_code_has_a_heading_in_the_docs() -> None:
    assert sorted(re.findall(r"^### (\w+)$", DOCS.read_text(), re.M)) == sorted(CODES)


def test_every_code_has_a_status_and_a_title() -> None:
    assert PROBLEMS.keys() == CODES.keys()


def test_the_docs_have_the_status_of_each_code() -> None:
    said = dict(re.findall(r"^### (\w+)\n(\d{3})", DOCS.read_text(), re.M))

    assert {code: int(status) for code, status in said.items()} == {
        code: status for code, (status, _) in PROBLEMS.items()
    }
