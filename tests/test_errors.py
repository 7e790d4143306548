"""Every error code is documented."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

from stepwell.error_codes import CODES
from stepwell.errors import ServiceError
from stepwell_client import ClientError
from stepwell_export.runtime.errors import RefusedModelError, StepwellError, WeakProofError

DOCS = Path(__file__).parents[1] / "docs" / "errors.md"


def test_every_code_has_a_heading_in_the_docs() -> None:
    assert sorted(re.findall(r"^### (\w+)$", DOCS.read_text(), re.M)) == sorted(CODES)


def test_the_docs_have_the_status_of_each_code() -> None:
    said = dict(re.findall(r"^### (\w+)\n(\d{3})", DOCS.read_text(), re.M))

    assert {code: int(status) for code, status in said.items()} == {code: row.status for code, row in CODES.items()}


@pytest.mark.parametrize(
    "error",
    [
        RefusedModelError("Found 1.", fix="Give 2."),
        WeakProofError("Found 1.", fix="Give 2.", exported=None),
        ServiceError("seq_gap", "Found 1.", fix="Give 2.", expected=3),
        ClientError("seq_gap", "Found 1.", fix="Give 2.", retry="resend_from", expected=3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_passes_from_one_process_to_another_as_it_is(error: StepwellError) -> None:
    received = copy.copy(error)  # by `__reduce__`, as pickle does

    assert type(received) is type(error)
    assert (str(received), vars(received)) == (str(error), vars(error))
