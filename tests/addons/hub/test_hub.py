"""`stepwell push` and `pull` with the Hub's own client, against a stand-in of the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from stepwell.addons.hub.model_card import model_card
from stepwell_export.runtime.describe import describe, load
from tests.addons.hub.stand_in import HubRepository, StandInHub, stand_in_hub
from tests.graphs import fold, lstm, write_model

ROOT = Path(__file__).parents[3]
TOKEN = "hf_for_the_tests"

needs_client = pytest.mark.skipif(
    find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed (STEPWELL_EXTRAS=hub)"
)


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with stand_in_hub(TOKEN) as running:
        yield running


def stepwell(hub: StandInHub, folder: Path, *words: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """Run `stepwell WORDS` in a folder, with the stand-in as the Hub."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "stepwell", *map(str, words)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@needs_client
def test_a_model_is_pushed_with_its_card_and_pulled_where_the_service_loads_it(hub: StandInHub, tmp_path: Path) -> None:
    file = write_model(tmp_path, "lstm", lstm)

    pushed = stepwell(hub, tmp_path, "push", file, "me/wear", "--json")
    pulled = stepwell(hub, tmp_path, "pull", "me/wear", "--json")

    assert (pushed.returncode, pulled.returncode) == (0, 0), pushed.stderr + pulled.stderr
    repository = hub.repositories["me/wear"]
    assert json.loads(pushed.stdout)["revision"] == json.loads(pulled.stdout)["revision"] == repository.sha
    assert (tmp_path / "models" / "wear.onnx").read_bytes() == file.read_bytes()
    card = repository.files["README.md"].decode()
    assert "stepwell pull me/wear" in card
    assert describe(file, load(file))["fingerprint"] in card


@needs_client
def test_a_repository_that_is_there_gets_another_commit(hub: StandInHub, tmp_path: Path) -> None:
    files = write_model(tmp_path, "fold", fold), write_model(tmp_path, "lstm", lstm)

    for file, message in zip(files, ("first", "second"), strict=True):
        assert stepwell(hub, tmp_path, "push", file, "me/wear", "--private", "--message", message).returncode == 0

    assert hub.repositories["me/wear"].messages == ["first", "second"]
    assert hub.repositories["me/wear"].private


@needs_client
def test_another_file_is_replaced_only_if_that_is_said(hub: StandInHub, tmp_path: Path) -> None:
    stepwell(hub, tmp_path, "push", write_model(tmp_path, "fold", fold), "me/wear")
    there = write_model(tmp_path / "models", "wear", lstm)

    refused = stepwell(hub, tmp_path, "pull", "me/wear")
    beside = stepwell(hub, tmp_path, "pull", "me/wear", "-o", "models/wear2/2/model.onnx")
    replaced = stepwell(hub, tmp_path, "pull", "me/wear", "--overwrite")
    again = stepwell(hub, tmp_path, "pull", "me/wear")

    assert [each.returncode for each in (refused, beside, replaced, again)] == [1, 0, 0, 0]
    assert "is another file" in refused.stderr
    assert there.read_bytes() == (tmp_path / "models" / "wear2" / "2" / "model.onnx").read_bytes()


@needs_client
def test_what_cannot_be_done_is_said_without_a_traceback(hub: StandInHub, tmp_path: Path) -> None:
    stepwell(hub, tmp_path, "push", write_model(tmp_path, "fold", fold), "me/wear")
    hub.repositories["me/broken"] = HubRepository(private=False, files={"model.onnx": b"not a model"})
    calls = {
        ("pull", "me/absent"): "me/absent is not there, or not for you",
        ("pull", "me/wear", "--file", "other.onnx"): "has no such file",
        ("pull", "a/b/c"): "expected OWNER/NAME",
        ("pull", "me/broken"): "",
        ("push", "fold.onnx", "me/new"): "The Hub failed",
        ("push", "absent.onnx", "me/new"): "is not there",
    }

    for words, reason in calls.items():
        done = stepwell(hub, tmp_path, *words, token="hf_wrong" if "fold.onnx" in words else TOKEN)

        assert done.returncode == 1
        assert reason in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists(), "what is no step graph is not written"


def test_without_the_client_the_command_names_the_extra(tmp_path: Path) -> None:
    file = write_model(tmp_path, "fold", fold)
    code = f"import sys; sys.modules['huggingface_hub'] = None; sys.argv = ['stepwell', 'push', {str(file)!r}, 'a/b']"

    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import stepwell; stepwell.main()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 3
    assert "stepwell[hub]" in "".join(done.stderr.split())


def test_the_card_has_units_labels_and_the_report_of_the_verification() -> None:
    described = {
        "name": "pump",
        "bytes_per_stream": 64,
        "inputs": [{"name": "x", "dtype": "float32", "shape": [2], "unit": "bar", "labels": ["in", "out|side"]}],
        "outputs": [{"name": "wear", "dtype": "float32", "shape": []}],
        "states": [{"in": "h", "dtype": "float32", "shape": [4, 4]}],
        "parity": {
            "against": "keras 3.15", "steps": 500, "sequences": ["random", "user"], "max_abs": 1e-7, "atol": 1e-5,
            "rtol": 1e-4,
        },
        "weights": None,
        "graph": {"opset": {"": 20}},
        "fingerprint": "00ff",
    }  # fmt: skip

    card = model_card(described, "me/pump", "model.onnx")

    assert "| x | float32 | 2 | bar | in, out\\|side |" in card
    assert "| wear | float32 | one number |" in card
    assert "Compared with keras 3.15 over sequences of 500 timesteps (random, user)" in card
