"""`stepwell.run`: from a trained model to predictions and a plot, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from stepwell.addons.notebook import LiveModel, run
from stepwell_export.runtime.errors import MissingExtraError

keras = pytest.importorskip("keras", reason="Keras is not installed")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((None, 2), name="x"), layers.GRU(3, return_sequences=True), layers.Dense(2, name="y")], name="pump"
    )


@pytest.fixture(scope="module")
def live(model: Any) -> Iterator[LiveModel]:
    with run(model, labels={"y": ["wear", "<heat>"]}) as made:
        yield made


def test_the_steps_equal_the_whole_sequence_of_keras(live: LiveModel, model: Any) -> None:
    xs = np.random.default_rng(3).normal(size=(20, 2)).astype(np.float32)

    served = [result.output for result in live.replay(xs, "a")]

    np.testing.assert_allclose(served, model.predict(xs[None], verbose=0)[0], atol=1e-5)


def test_the_name_is_that_of_the_model(live: LiveModel) -> None:
    assert live.model.name == live.exported.name == "pump"


def test_a_notebook_shows_a_chart_of_each_stream(live: LiveModel) -> None:
    for n in range(5):
        live.step([n, -n], "b")
    shown = live._repr_html_()
    charts = ET.fromstring(shown).iter("{http://www.w3.org/2000/svg}svg")
    [chart] = [svg for svg in charts if "y of b" in text(svg)]

    assert "differs by at most" in shown
    assert {"wear", "<heat>", "step 1", "5"} <= text(chart)


def text(element: ET.Element) -> set[str]:
    return {each.text for each in element.iter() if each.text}


def test_a_stream_that_was_reset_is_drawn_from_its_first_step(live: LiveModel) -> None:
    live.step([1, 1], "c")
    live.model.stream("c").reset()
    live.step([2, 2], "c")

    assert len(live._recent["c"]) == 1


def test_the_plot_is_updated_while_streams_are_stepped(live: LiveModel) -> None:
    shell = pytest.importorskip("IPython", reason="IPython is not installed").core.interactiveshell.InteractiveShell
    published: list[dict[str, Any]] = []
    hub = shell.instance().display_pub
    hub.publish = lambda data, **_: published.append(data)  # what a notebook receives
    try:
        live.show()
        live._updated_at = 0.0
        live.step([1, 1], "shown")
    finally:
        live._display = None
        shell.clear_instance()

    assert len(published) == 2
    assert ["y of shown" in data["text/html"] for data in published] == [False, True]


def test_without_ipython_showing_is_an_error_that_says_so(live: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)

    with pytest.raises(MissingExtraError, match="needs IPython"):
        live.show()


def test_the_end_of_the_program_leaves_nothing_behind(tmp_path: Path) -> None:
    code = "import keras, stepwell; m = keras.Sequential([keras.Input((None, 2)), keras.layers.GRU(3)]); "
    code += "live = stepwell.run(m, name='m'); print(live.step([1, 2]).step, live.exported.path, live.client.url)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    step, path, url = done.stdout.split()
    assert step == "1"
    assert not Path(path).exists()
    assert not Path(url.removeprefix("unix://")).exists()
