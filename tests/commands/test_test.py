"""`stepwell test` runs pytest on the tests of the clone, from any folder."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import WAITING
from tests.quick import LEFT_OUT, LONG, OF_THESE

REPOSITORY = Path(__file__).parents[2]
STEPWELL = [sys.executable, "-P", "-m", "stepwell", "test"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small clone with one test that passes and one that fails."""
    (tmp_path / "clone" / "tests").mkdir(parents=True)
    (tmp_path / "clone" / "pyproject.toml").write_text('[tool.pytest.ini_options]\ntestpaths = ["tests"]\n')
    (tmp_path / "clone" / "tests" / "test_one.py").write_text("def test_good(): pass\ndef test_bad(): assert not 1\n")
    return tmp_path / "clone"


def run(clone: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {"STEPWELL_ROOT": str(clone), "PATH": "/nowhere"}
    if clone != REPOSITORY:  # its tests need no plugin but this one, and loading all takes longer than they do
        env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
    return subprocess.run([*STEPWELL, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_all_tests_run_from_any_folder_in_parallel_after_a_line_with_the_expected_time_and_selected_ones_do_not(
    clone: Path,
) -> None:
    everything, selected = run(clone, cwd=clone.parent), run(clone, "-k", "good", cwd=clone)

    assert everything.returncode == 1
    assert "workers" in everything.stdout
    assert "1 failed, 1 passed" in everything.stdout
    assert "about six minutes" in everything.stderr
    assert "workers" not in selected.stdout
    assert "hour" not in selected.stderr


def test_the_callers_number_of_processes_is_used(clone: Path) -> None:
    assert "2/2 workers" in run(clone, "-n2", cwd=clone).stdout


def test_the_help_is_that_of_pytest_and_ends_with_what_the_command_itself_does(clone: Path) -> None:
    done = run(clone, "--help", cwd=clone)

    assert done.returncode == 0
    assert "--collect-only" in done.stdout
    assert "--quick" in "".join(done.stdout.splitlines()[-2:])


def test_a_path_is_relative_to_the_callers_folder(clone: Path) -> None:
    done = run(clone, "-q", "test_one.py::test_good", cwd=clone / "tests")

    assert (done.returncode, "1 passed" in done.stdout) == (0, True)


def collected(*words: str) -> list[str]:
    """Return the tests that a run of this repository has."""
    done = run(REPOSITORY, *words, "--collect-only", "-q", cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.fixture(scope="module")
def quick() -> list[str]:
    """The tests of `--quick`."""
    return collected("--quick")


def test_a_quick_run_is_a_part_of_the_tests(quick: list[str]) -> None:
    folders = {name.split("/")[1] for name in quick}

    assert folders > {"addons", "api", "commands", "engine", "protocols", "model_export", "store"}
    assert folders.isdisjoint({"dashboard", "examples", "faults"})


def test_a_run_of_all_tests_has_one_in_four_cases_of_a_test_with_many_and_its_own_file_has_each(
    quick: list[str],
) -> None:
    file = "tests/model_export/streaming/test_zoo.py"
    cases = [name for name in collected(file) if "test_a_graph_of_the_zoo" in name]

    assert len({*quick} & {*cases}) == math.ceil(len(cases) / 4)


def test_a_slow_test_runs_with_all_and_in_no_other_run_of_all_files() -> None:
    others = [f"--ignore={path}" for path in (REPOSITORY / "tests").iterdir() if path.name != "faults"]
    slow = "tests/faults/test_full_disk.py"

    assert slow not in {name.partition("::")[0] for name in collected(*others)}
    assert slow in {name.partition("::")[0] for name in collected(*others, "--all")}


def test_all_that_failed_runs_again(tmp_path: Path) -> None:
    """Of cases that have failed, none is left out."""
    cases = collected("tests/model_export/streaming/test_zoo.py")[:5]
    (tmp_path / "v" / "cache").mkdir(parents=True)
    (tmp_path / "v" / "cache" / "lastfailed").write_text(json.dumps(dict.fromkeys(cases, True)))

    assert collected("--last-failed", "-o", f"cache_dir={tmp_path}") == cases


def test_each_path_that_decides_what_runs_and_when_is_there() -> None:
    for name in (*LEFT_OUT, *OF_THESE, *LONG, *WAITING):
        file, _, test = name.partition("::")

        assert (REPOSITORY / "tests" / file).exists()
        assert not test or f"def {test}(" in (REPOSITORY / "tests" / file).read_text()


def test_a_slow_test_is_not_quick_and_runs_where_it_is_named_without_the_option() -> None:
    where = "tests/faults/test_full_disk.py"

    assert "1 test collected" in run(REPOSITORY, "--collect-only", "-q", where, cwd=REPOSITORY).stdout
    assert (
        "no tests collected (1 deselected)"
        in run(REPOSITORY, "--quick", "--collect-only", "-q", where, cwd=REPOSITORY).stdout
    )


def test_wrong_usage_is_exit_code_2(clone: Path) -> None:
    assert run(clone, "--no-such-option", cwd=clone).returncode == 2


def test_a_folder_without_tests_is_exit_code_3(tmp_path: Path) -> None:
    done = run(tmp_path, cwd=tmp_path)

    assert done.returncode == 3
    assert "Clone the repository" in done.stderr
