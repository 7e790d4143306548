"""Follows the tutorial's first page from the built wheel in an empty environment: `python -m scripts.first_page`.

Its commands are run as the page has them, in two terminals; only the name on the package index is replaced by the
wheel, and the port by a free one. It fails if a response is not what the page shows, if there are more than ten
commands, if they take more than five minutes, or if the environment has got packages of common names.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "tutorial" / "1-export.md"
MOST_COMMANDS: Final = 10
MOST_SECONDS: Final = 300
_BLOCK: Final = re.compile(r"(?:<!-- ([^\n]+) -->\n)?```(\w+)\n(.*?)```\n", re.DOTALL)
_END: Final = "end of the command:"
_OWN: Final = ("STEPWELL_", "PYTHON", "VIRTUAL_ENV", "KERAS_", "JAX_", "XLA_")
"""The settings of whoever runs this, which a newcomer does not have."""


class CodeBlock(NamedTuple):
    """A block of code on a page.

    Attributes:
        note: The comment before it, or "".
        language: Its language.
        text: Its lines.
    """

    note: str
    language: str
    text: str


def blocks(page: Path) -> list[CodeBlock]:
    """Return the blocks of code of a page."""
    return [CodeBlock(*found) for found in _BLOCK.findall(page.read_text())]


class Terminal:
    """A shell in a folder, which keeps what its commands set."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh"],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that Ctrl-C reaches what it runs, and nothing else
        )

    def run(self, command: str) -> str:
        """Run a command and return what it prints.

        Raises:
            SystemExit: The command fails.
        """
        self._type(f'{command}\necho; echo "{_END} $?"\n')
        printed = self._read_until(_END)
        *lines, last = printed.splitlines()
        text = "\n".join(lines)
        if last.removeprefix(_END).strip() != "0":
            sys.exit(f"failed: {command}\n{text}")
        return text

    def start(self, command: str, ready: str) -> None:
        """Start a command that does not end, and wait until it prints a text.

        Raises:
            SystemExit: The command ends.
        """
        self._type(f"exec {command}\n")
        self._read_until(ready)

    def close(self) -> None:
        """End the shell and what it runs, as Ctrl-C does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGINT)
        self._shell.communicate()

    def _type(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text)
        self._shell.stdin.flush()

    def _read_until(self, text: str) -> str:
        assert self._shell.stdout is not None
        read = ""
        for line in self._shell.stdout:
            read += line
            if text in line:
                return read
        sys.exit(f"ended before it printed {text!r}:\n{read}")


def build(folder: Path) -> Path:
    """Build wheels and sdists, check them for the package index, and return the wheel of the service."""
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t", "sdist", "-t", "wheel"]
    for source in (ROOT, ROOT / "model_export", ROOT / "clients" / "python"):
        subprocess.run(hatchling, cwd=source, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir()], check=True)
    [wheel] = folder.glob("stepwell-*.whl")
    return wheel


def follow(wheel: Path, folder: Path) -> dict[str, float]:
    """Run the page's commands in a folder, and return how many seconds each has taken.

    Raises:
        SystemExit: A command fails, or its output is not what the page shows.
    """
    port = _free_port()
    own_bin = str(Path(sys.executable).parent)
    path = os.pathsep.join(entry for entry in os.environ["PATH"].split(os.pathsep) if entry != own_bin)
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
    env |= {"PATH": path, "STEPWELL_PORT": str(port), "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env["PIP_FIND_LINKS"] = " ".join(filter(None, (str(wheel.parent), env.get("PIP_FIND_LINKS"))))  # the other two
    terminals = [Terminal(folder, env)]
    took: dict[str, float] = {}
    output = ""
    try:
        for block in blocks(PAGE):
            if block.note.startswith("file: "):
                (folder / block.note.removeprefix("file: ")).write_text(block.text)
            elif block.language == "sh":
                for line in block.text.splitlines():
                    command = line.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
                    command = command.replace("'stepwell[", f"'{wheel}[")
                    started = time.monotonic()
                    if command.startswith("stepwell serve"):
                        terminals[-1].start(command, f"http://127.0.0.1:{port}")
                        terminals.append(Terminal(folder, env))
                    else:
                        output = terminals[-1].run(command)
                    took[f"{len(took) + 1:2} {line}"] = time.monotonic() - started
            elif block.language == "json":
                _compare(json.loads(block.text), json.loads(output))
        terminals[-1].run("! python -c 'import stepwell' 2>/dev/null")
        terminals[-1].run("! python -c 'import stepwell_export' 2>/dev/null")
    finally:
        for terminal in reversed(terminals):
            terminal.close()
    return took


def _compare(shown: dict[str, object], answered: dict[str, object]) -> None:
    """Compare a response with the page's; the values of predictions and ids differ from training to training."""
    if list(shown) != list(answered) or shown["step"] != answered["step"]:
        sys.exit(f"the page shows {shown}, the service responded {answered}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def main() -> int:
    """Follow the page and print how long each command takes. Exit codes: 0 within the limits, 1 not."""
    with tempfile.TemporaryDirectory(prefix="stepwell-first-page-") as folder:
        (built := Path(folder) / "dist").mkdir()
        (reader := Path(folder) / "reader").mkdir()
        took = follow(build(built), reader)
    for command, seconds in took.items():
        print(f"{seconds:7.1f} s  {command}")
    total = sum(took.values())
    print(f"{total:7.1f} s  for {len(took)} commands; at most {MOST_SECONDS} s and {MOST_COMMANDS} are allowed")
    return int(len(took) > MOST_COMMANDS or total > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
