"""Each example runs from any folder, and the service's predictions equal those of Keras or PyTorch."""

from __future__ import annotations

import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from stepwell_export.exporter import export_source
from tests.examples.runs import EXAMPLES, run_python

EXAMPLE_NAMES = [
    pytest.param(path.stem, marks=pytest.mark.torch if path.stem.startswith("pytorch_") else ())
    for path in sorted(EXAMPLES.glob("*.py"))
    if path.stem not in {"denoise", "live", "quickstart", "voice", "walking_policy"}
]
GALLERY = {"fleet_readout", "flood", "heartbeat", "hydrograph", "machine_wear", "river_flow"}
GALLERY_PAGES = EXAMPLES.parent / "docs" / "gallery"
LINE = re.compile(r"^largest difference from (?:Keras|PyTorch): (\S+) \(([\d,]+) numbers\)$", re.MULTILINE)


NUMBERS = {
    "chunks_and_steps": [32 * 21 * 16] * 2,
    "fleet_readout": [8 * 1200],
    "flood": [3 * 48],
    "forecast_interval": [2 * 48],
    "heartbeat": [3 * 600],
    "hydrograph": [6000],
    "label_every_timestep": [3 * 10 * 2],
    "large_gru": [60],
    "machine_wear": [12 * 240],
    "priming": [20],
    "pytorch_causal_network": [60],
    "pytorch_lstm": [3 * 80],
    "pytorch_own_state": [2 * 40],
    "release": [200 * 100 * 4],
    "river_flow": [48],
    "sentiment_so_far": [2 * 10],
    "text_classification": [3 * 3],
    "text_generation": [120 * 24] * 2,
    "text_rollout": [120 * 24] * 3,
}
"""Number of predictions that each example compares: all that it requested."""


@pytest.mark.slow
@pytest.mark.many
@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_an_example_compares_every_prediction_with_the_original_model_and_draws_its_picture(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And it leaves no files in the folder of who runs it."""
    if name.startswith("pytorch_") and not find_spec("torch"):
        pytest.skip("PyTorch is not installed (STEPWELL_EXTRAS=torch)")
    folder, picture = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp("pictures") / "picture.svg"
    done = run_python(str(EXAMPLES / f"{name}.py"), *[str(picture)] * (name in GALLERY), folder=folder)
    compared = LINE.findall(done.stdout)

    assert done.returncode == 0, done.stdout + done.stderr
    assert [int(count.replace(",", "")) for _, count in compared] == NUMBERS[name]
    assert max(float(most) for most, _ in compared) <= 5e-6
    assert list(folder.iterdir()) == []
    if name in GALLERY:
        page = (GALLERY_PAGES / f"{name.replace('_', '-')}.md").read_text()
        [shown] = re.findall(r"!\[[^]]+\]\((\.\./images/\S+\.svg)\)", page)
        assert words(picture) == words(GALLERY_PAGES / shown)


def words(picture: Path) -> list[str]:
    """Return the texts of a picture without its numbers, which differ in their last digits from machine to machine."""
    return re.findall(r"<text.*?>([^<0-9]+)</text>", picture.read_text())


def test_a_walking_policy_of_torchscript_is_driven_by_its_simulators_log(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from tests.model_export.torch.test_buffers import Policy

    policy = torch.jit.script(Policy(47, 12).eval())
    torch.jit.save(policy, tmp_path / "motion.pt")
    observed = np.random.default_rng(0).standard_normal((70, 47)).astype(np.float32)
    answered = [policy(torch.from_numpy(row[None]))[0].detach().numpy() for row in observed]
    np.savetxt(tmp_path / "walk.csv", np.hstack([observed, answered]), delimiter=",")
    export_source(tmp_path / "motion.pt", tmp_path / "models" / "walk.onnx", examples={"obs": [1, 47]})
    main = runpy.run_path(str(EXAMPLES / "walking_policy.py"))["main"]

    found = main(str(tmp_path / "walk.csv"), str(tmp_path / "walking.svg"), ":memory:", models=tmp_path / "models")

    np.testing.assert_allclose(found, answered, atol=1e-5)
    assert words(tmp_path / "walking.svg") == words(GALLERY_PAGES.parent / "images" / "walking.svg")


@pytest.mark.parametrize("served", [[0.50002], [float("nan")], [0.5, 0.5]])
def test_an_example_fails_if_a_prediction_differs_from_the_original(served: list[float]) -> None:
    compare = runpy.run_path(str(EXAMPLES / "live.py"))["compare"]

    with pytest.raises(SystemExit, match="expected"):
        compare(served, np.array([0.5], np.float32))


def test_the_readme_links_every_example_and_nothing_else() -> None:
    linked = re.findall(r"\]\(([\w/.]+)\)", (EXAMPLES / "README.md").read_text())

    folders = ["activity/README.md", "addon/README.md", "denoise_page/page.js", "voice_page/serve.py"]
    assert sorted(linked) == sorted([*(path.name for path in EXAMPLES.glob("*.py")), *folders])
