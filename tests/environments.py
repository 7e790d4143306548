"""The second of two runs in different environments leaves out files that have passed in the first, but a quarter."""

from __future__ import annotations

import platform
import zlib
from pathlib import Path

import pytest

SAMPLE = 4
"""One of so many files that could be left out runs all the same."""


def add_options(parser: pytest.Parser) -> None:
    """Add the options of the first and of the second run."""
    parser.addoption("--write-passed", metavar="FILE", help="write the tests that pass to a file")
    parser.addoption("--without-passed", metavar="FILE", help="leave out files whose tests are all in it, but a sample")
    parser.addoption("--sample", metavar="TEXT", default="", help="chooses which quarter of them runs")


class PassedTests:
    """Writes the version of Python and the node ids of the tests that passed, one in a line, when the run ends."""

    def __init__(self, file: Path) -> None:
        self._file = file.absolute()
        self._passed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the id of a test that passed."""
        if report.when == "call" and report.passed:
            self._passed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self._file.write_text("".join(f"{line}\n" for line in (platform.python_version(), *self._passed)))


def write_passed(config: pytest.Config) -> None:
    """Have the file written that `--write-passed` names, by the process that has the reports of all workers."""
    file = config.getoption("write_passed")
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(PassedTests(Path(file)))


def leave_out_passed(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of each file that has no other test than those in the file of `--without-passed`.

    A file with one test that was skipped, or that the other environment does not have, depends on what is installed:
    all its tests run. So do those of a quarter of the other files, which `--sample` chooses, and all files where the
    other environment has another version of Python.
    """
    file = config.getoption("without_passed")
    if file is None:
        return
    version, *passed = Path(file).read_text().splitlines()
    if version != platform.python_version():
        return
    known = set(passed)
    to_run = {item.path for item in items if item.nodeid not in known or _is_in_sample(config, item)}
    config.hook.pytest_deselected(items=[item for item in items if item.path not in to_run])
    items[:] = [item for item in items if item.path in to_run]


def _is_in_sample(config: pytest.Config, item: pytest.Item) -> bool:
    name = item.nodeid.partition("::")[0]
    return zlib.crc32(f"{config.getoption('sample')}/{name}".encode()) % SAMPLE == 0
