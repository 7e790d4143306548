"""hatch_build.py moves imports below `stepwell`, and refuses what it would leave behind."""

from __future__ import annotations

import pytest

pytest.importorskip("hatchling", reason="hatchling is not installed; the extra dev has it")

from hatch_build import moved


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from stepwell.ids import x", "from stepwell.service.ids import x"),
        ("from stepwell_export import (\n    x,\n)", "from stepwell.model_export import (\n    x,\n)"),
        ("é = 1; from stepwell import x", "é = 1; from stepwell.service import x"),
        ("import stepwell", "from stepwell import stepwell"),
        ('run("stepwell.models.probe")', 'run("stepwell.service.models.probe")'),
        ("from services import x", "from services import x"),
        ("from . import stepwell", "from . import stepwell"),
        ('route("service")', 'route("service")'),
        ('"""`stepwell.ids` is a module."""', '"""`stepwell.ids` is a module."""'),
    ],
)
def test_a_module_is_moved(source: str, expected: str) -> None:
    assert moved(source.encode(), "x.py").decode() == expected


@pytest.mark.parametrize(
    "source", ["import stepwell.ids", "import os, service", 'f"service.{name}"', 'run("-m", ["-m", "service", "serve"])']
)
def test_what_cannot_be_moved_fails_the_build(source: str) -> None:
    with pytest.raises(ValueError, match=r"x\.py, line 1: this cannot be moved"):
        moved(source.encode(), "x.py")
