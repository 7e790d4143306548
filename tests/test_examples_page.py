"""The examples of docs/examples.md run unchanged in each language, and print what the page shows."""

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

from tests.addons.dashboard.browser import browser, chromium
from tests.npm import NEEDS_NODE, node_command
from tests.processes import ServiceProcess, service_process

needs_keras = "the page's model is a Keras model: STEPWELL_EXTRAS=keras ./stepwell --version"
pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason=needs_keras)

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "examples.md").read_text()
SHOWN = re.findall(r"```text\n(.*?)```", PAGE, re.S)


def block(name: str) -> str:
    """Return the text between the two comments of a name, without the code fence."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- /{name} -->", PAGE, re.S)
    assert found, f"the page has no block {name!r}"
    return found[1]


def program(language: str, one: ServiceProcess) -> str:
    """Return all blocks of a language after the model's, in order, with the port of the test's service."""
    rest = PAGE[PAGE.index("## A timestep") :].replace(block("browser"), "")
    code = "\n".join(re.findall(rf"```{language}\n(.*?)```", rest, re.S))
    assert ":8000" in code
    return code.replace(":8000", f":{one.port}")


def run_program(command: list[str], **more: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The page's model, exported by the page's commands, and served."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "wave.py").write_text(block("wave"))
    export = block("export").replace("stepwell", f"{sys.executable} -P -m stepwell")
    run_program(["sh", "-c", f"cd {folder}; {export}"], PYTHONPATH=f"{folder}:{ROOT}")
    with service_process(folder / "models", tmp_path_factory.mktemp("sw"), "--history", "wave=64") as running:
        yield running


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_examples_are_answered_and_receive_events(one: ServiceProcess) -> None:
    code = program("sh", one).replace("curl -s", "curl -w '\\n' -s")
    lines = run_program(["sh", "-c", code]).splitlines()
    answers = [json.loads(line) for line in lines if line.startswith("{")]

    assert [answer.get("step") for answer in answers] == [1, 4, [1, 1], 5, 28, 4, 4, 5, 4, None, 4, 5]
    assert answers[9]["snapshots"][0]["name"] == "before"
    assert [line for line in lines if line.startswith('data: {"model":"wave"')]  # of the events


def test_the_python_example_prints_what_the_page_shows(one: ServiceProcess) -> None:
    assert run_program([sys.executable, "-c", program("python", one)]) == "".join(SHOWN)


def test_the_javascript_example_prints_in_node_what_the_page_shows(one: ServiceProcess, tmp_path: Path) -> None:
    node = node_command() or pytest.skip(NEEDS_NODE)
    (tmp_path / "examples.mjs").write_text(program("js", one))

    assert run_program([*node, str(tmp_path / "examples.mjs")]) == "".join(SHOWN)


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium")
def test_the_javascript_example_prints_in_a_browser_what_the_page_shows(one: ServiceProcess, tmp_path: Path) -> None:
    before, after = program("js", one).split("for (const name of")
    code = f"{before}\n{block('browser')}\nfor (const name of{after}"
    with browser(str(chromium()), tmp_path) as one_browser, one_browser.tab() as tab:
        tab.open(f"{one.url}/docs/errors")
        printed = tab.evaluate(f"""(async () => {{
            const printed = [];
            const console = {{log: (...words) => printed.push(words.join(' ') + '\\n')}};
            {code}
            return printed;
        }})()""")

    assert printed == [*"".join(SHOWN[:-1]).splitlines(keepends=True), "source 7 since 7\n", SHOWN[-1]]
