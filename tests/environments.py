"""Tests in two environments: the second run leaves out the files whose tests have all passed in the first."""

from __future__ import annotations

from pathlib import Path

import pytest


def add_options(parser: pytest.Parser) -> None:
    """Add the options of the first and of the second run."""
    parser.addoption("--write-passed", metavar="FILE", help="write the tests that pass to a file")
    parser.addoption("--without-passed", metavar="FILE", help="leave out files whose tests are all in it")


class PassedTests:
    """Writes the node ids of the tests that passed, one in a line, when the run ends."""

    def __init__(self, file: Path) -> None:
        self._file = file.absolute()
        self._passed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the id of a test that passed."""
        if report.when == "call" and report.passed:
            self._passed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self._file.write_text("".join(f"{name}\n" for name in self._passed))


def write_passed(config: pytest.Config) -> None:
    """Have the file written that `--write-passed` names, by the process that has the reports of all workers."""
    file = config.getoption("write_passed")
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(PassedTests(Path(file)))


def leave_out_passed(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of each file that has no other test than those in the file of `--without-passed`.

    A file with one test that was skipped, or that the other environment does not have, depends on what is installed:
    all its tests run.
    """
    file = config.getoption("without_passed")
    if file is None:
        return
    passed = set(Path(file).read_text().splitlines())
    to_run = {item.path for item in items if item.nodeid not in passed}
    config.hook.pytest_deselected(items=[item for item in items if item.path not in to_run])
    items[:] = [item for item in items if item.path in to_run]
