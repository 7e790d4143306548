"""The launcher `./stepwell` on minimal machines; without network access.

Shell scripts replace the programs that the launcher calls: a `uv` that logs its calls, a `python3` that is too old.
The program that it starts is a script too, which prints its folder and arguments.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a POSIX shell script")

REPOSITORY = Path(__file__).parents[1]

# Everything that the launcher calls besides uv and Python; every POSIX system has it.
POSIX_TOOLS = ("sh", "cat", "cksum", "dirname", "env", "mkdir", "readlink", "rm", "sed", "sort", "tr")

UV = r"""#!/bin/sh
echo "$*" >>"$UV_LOG"
for last; do :; done
case $1 in
venv) mkdir -p "$last/bin" && ln -s "$(command -v sh)" "$last/bin/python" ;;
pip)
  while [ "$1" != --python ]; do shift; done
  [ ! -e "$UV_LOG.offline" ] || { : >"${2%/*}/half"; exit 1; }
  printf '#!/bin/sh\necho "$PWD|$STEPWELL_ROOT|$*"\nexit "${PROGRAM_EXIT:-0}"\n' >"${2%/*}/stepwell"
  chmod +x "${2%/*}/stepwell"
  ;;
esac
"""
OLD_PYTHON = "#!/bin/sh\nexit 1\n"
PYTHON_WITHOUT_VENV = "#!/bin/sh\ncase $2 in *ensurepip*) exit 1 ;; esac\n"


@dataclass(frozen=True)
class Machine:
    """A clone, and a PATH with nothing but POSIX tools and the scripts of a test."""

    clone: Path
    bin: Path

    def install(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def run(
        self, *arguments: str, launcher: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [launcher or self.clone / "stepwell", *arguments],
            cwd=self.bin,
            env={"PATH": str(self.bin), "UV_LOG": str(self.uv_log), **environment},
            capture_output=True,
            text=True,
            timeout=30,
        )

    @property
    def uv_log(self) -> Path:
        return self.bin.parent / "uv.log"

    def installs(self) -> list[str]:
        """Return what uv installed, one line per call."""
        calls = self.uv_log.read_text().splitlines() if self.uv_log.exists() else []
        return [call.rpartition(" -e ")[2] for call in calls if call.startswith("pip install")]


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    """A machine without uv and Python; the clone's path contains a space."""
    machine = Machine(clone=tmp_path / "my clone", bin=tmp_path / "bin")
    machine.clone.mkdir()
    machine.bin.mkdir()
    for name in ("stepwell", "pyproject.toml", "model_export/pyproject.toml", "clients/python/pyproject.toml"):
        (machine.clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, machine.clone / name)
    for tool in (*POSIX_TOOLS, "ln", "chmod"):
        (machine.bin / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is not on the PATH"))
    return machine


@pytest.fixture
def machine(bare: Machine) -> Machine:
    """A machine with uv."""
    bare.install("uv", UV)
    return bare


def test_without_uv_and_python_one_line_names_what_to_install(bare: Machine) -> None:
    done = bare.run("demo")

    assert done.returncode == 3
    assert done.stderr.startswith("stepwell: needs uv, or Python 3.11 to 3.14 with venv. ")
    assert done.stderr.count("\n") == 1
    left = sorted(path.name for path in bare.clone.iterdir())
    assert left == ["clients", "model_export", "pyproject.toml", "stepwell"]


def test_a_python_that_is_too_old_is_not_used(bare: Machine) -> None:
    bare.install("python3", OLD_PYTHON)

    assert "needs uv, or Python 3.11 to 3.14 with venv" in bare.run("demo").stderr


def test_a_python_without_venv_is_reported_with_the_missing_package(bare: Machine) -> None:
    bare.install("python3", PYTHON_WITHOUT_VENV)

    done = bare.run("demo")

    assert done.returncode == 3
    assert done.stderr == (
        f"stepwell: found {bare.bin}/python3, but its venv module is missing. "
        "Debian, Ubuntu: apt install python3-venv\n"
    )


def test_the_program_gets_the_arguments_and_the_callers_folder(machine: Machine) -> None:
    done = machine.run("inspect", "a b.onnx")

    assert done.stdout == f"{machine.bin}|{machine.clone}|inspect a b.onnx\n"


def test_a_second_run_installs_and_prints_nothing_unless_the_project_file_has_changed(machine: Machine) -> None:
    machine.run("demo")
    again = machine.run("demo", PROGRAM_EXIT="7")
    assert (again.returncode, again.stderr) == (7, "")
    assert machine.installs() == [str(machine.clone)]
    with (machine.clone / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    machine.run("demo")

    assert len(machine.installs()) == 2


@pytest.mark.parametrize(
    ("command", "extras", "installed"),
    [
        ("serve", "", ""),
        ("export", "", "[keras]"),
        ("export", "torch", "[torch]"),
        ("test", "dev,torch", "[dev,test,torch]"),
    ],
)
def test_a_command_installs_the_extras_it_needs(machine: Machine, command: str, extras: str, installed: str) -> None:
    machine.run(command, STEPWELL_EXTRAS=extras)

    assert machine.installs() == [f"{machine.clone}{installed}"]


def test_a_command_with_fewer_extras_keeps_the_installed_ones(machine: Machine) -> None:
    machine.run("test")
    machine.run("demo")

    assert machine.installs() == [f"{machine.clone}[test]"]


def test_an_interrupted_install_is_repeated(machine: Machine) -> None:
    offline = Path(f"{machine.uv_log}.offline")
    offline.touch()
    failed = machine.run("demo")
    assert failed.returncode == 3
    assert (machine.clone / ".venv/bin/half").exists()
    offline.unlink()

    assert machine.run("demo").returncode == 0
    assert not (machine.clone / ".venv/bin/half").exists()


def test_an_environment_whose_python_is_missing_is_created_again(machine: Machine) -> None:
    machine.run("demo")
    python = machine.clone / ".venv/bin/python"
    python.unlink()
    python.symlink_to("python-that-was-upgraded-away")

    assert machine.run("demo").returncode == 0


@pytest.mark.parametrize("target", ["stepwell", "."], ids=["link to the launcher", "link to the clone"])
def test_the_launcher_can_be_called_through_a_link(machine: Machine, target: str) -> None:
    link = machine.bin / "link"
    link.symlink_to(Path("../my clone") / target)

    done = machine.run("demo", launcher=link if target == "stepwell" else link / "stepwell")

    assert done.stdout == f"{machine.bin}|{machine.clone}|demo\n"


def test_stepwell_venv_sets_the_folder_of_the_environment(machine: Machine) -> None:
    machine.run("demo", STEPWELL_VENV=str(machine.bin / "elsewhere"))

    assert (machine.bin / "elsewhere/bin/stepwell").exists()
    assert not (machine.clone / ".venv").exists()
