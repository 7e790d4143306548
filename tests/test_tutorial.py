"""The tutorial works as written: its commands and programs run in order, and print what its pages show."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from scripts.first_page import MOST_COMMANDS, CodeBlock, blocks
from tests.processes import ServiceProcess, free_port

needs_keras = "the tutorial's model is a Keras model: STEPWELL_EXTRAS=keras ./stepwell --version"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("keras") is None, reason=needs_keras),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl: apt-get install curl"),
]

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "tutorial").glob("*.md"))
SERVE = "stepwell serve"
SAME = {
    *("code", "applied", "retry", "step", "expected", "title", "detail"),
    *("replayed", "created", "ready", "loaded"),
}
"""Fields of answers whose values are those of the page."""


class Reader:
    """Somebody who follows the pages in a folder, with the service of the last `stepwell serve` in the background."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._service: ServiceProcess | None = None
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, words in (("stepwell", "-P -m stepwell"), ("python", "")):
            (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            (bin_folder / name).chmod(0o755)
        others = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
        self._env = others | {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "STEPWELL_URL": f"http://127.0.0.1:{self._port}",
        }

    def run(self, block: CodeBlock) -> str:
        """Run the commands of a block and return what they print."""
        commands = block.text.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")
        if commands.startswith(SERVE):
            self._serve(commands.removeprefix(SERVE).split())
            return ""
        done = subprocess.run(
            ["sh", "-e", "-c", commands], cwd=self._folder, env=self._env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def save(self, name: str, block: CodeBlock) -> None:
        """Save a program, with the port of the test's service."""
        (self._folder / name).write_text(block.text.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}"))

    def _serve(self, flags: list[str]) -> None:
        """Start the service with these flags, after ending the one that runs."""
        assert flags[:2] == ["--models", "models"]
        self.end()
        rest = [str(self._folder / flag) if flag.endswith(".json") else flag for flag in flags[2:]]
        models, folder = self._folder / "models", self._folder / "service"
        self._service = ServiceProcess(models, folder, *rest, port=self._port).start()

    def end(self) -> None:
        if self._service is not None:
            self._service.stop()


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[tuple[CodeBlock, str]]]]:
    """By page, each block that shows output, with what the commands before it have printed."""
    reader = Reader(tmp_path_factory.mktemp("tutorial"))
    found: dict[str, list[tuple[CodeBlock, str]]] = {}
    try:
        for page in PAGES:
            output = ""
            shown = found.setdefault(page.name, [])
            for block in blocks(page):
                if block.note.startswith("file: "):
                    reader.save(block.note.removeprefix("file: "), block)
                elif block.language == "sh" and not block.note.startswith("not run: "):
                    output = reader.run(block)
                elif block.language in ("text", "json"):
                    shown.append((block, output))
        yield found
    finally:
        reader.end()


def shape(text: str) -> list[str]:
    """Return the lines of a text without the values of numbers and without what depends on the terminal's width."""
    lines = [" ".join(re.sub(r"-?\b\d[\d,.]*(?:e-?\d+)?", "0", line).split()) for line in text.splitlines()]
    return [line for line in lines if line]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [page.name for page in PAGES])
def test_the_commands_of_a_page_print_what_it_shows(printed: dict[str, list[tuple[CodeBlock, str]]], name: str) -> None:
    for block, output in printed[name]:
        if block.language == "text":
            missing = [line for line in shape(block.text) if line not in shape(output)]
            assert missing == [], output
        else:
            shown, answered = json.loads(block.text), json.loads(output.splitlines()[-1])
            assert list(shown) == list(answered)
            assert {name: shown.get(name) for name in SAME} == {name: answered.get(name) for name in SAME}


def test_every_block_is_run_saved_or_compared_and_the_first_page_needs_at_most_ten_commands() -> None:
    for page in PAGES:
        found = blocks(page)
        assert len(found) == page.read_text().count("\n```") / 2
        assert {block.language for block in found} <= {"sh", "python", "text", "json"}
        assert [one for one in found if one.language == "python" and not one.note.startswith("file: ")] == []

    commands = [line for block in blocks(PAGES[0]) if block.language == "sh" for line in block.text.splitlines()]
    assert len(commands) <= MOST_COMMANDS
