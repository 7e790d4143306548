"""`model.onnx` becomes one file that serves, or nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.exporter import export_source
from stepwell_export.runtime.errors import FileError, ModelLoadError, RefusedModelError, UnclearModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.streaming import convert
from tests.model_export.streaming.zoo import ZOO
from tests.model_export.streaming.zoo_parts import GRU, graph


def saved(folder: Path, model: onnx.ModelProto) -> str:
    onnx.save(model, folder / "sequence.onnx")
    return str(folder / "sequence.onnx")


def test_a_sequence_graph_in_a_file_becomes_one_file_that_serves(tmp_path: Path) -> None:
    done = export_source(saved(tmp_path, ZOO["lstm"].build()), tmp_path / "pump.onnx")
    model = StepModel(done.path)

    assert model.manifest.name == "pump"
    assert [state.input for state in model.manifest.states] == ["lstm.h", "lstm.c"]
    assert done.report.parity.against.startswith("onnxruntime ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pump.onnx", "sequence.onnx"]


def test_weights_in_a_file_of_their_own_are_found(tmp_path: Path) -> None:
    onnx.save(ZOO["gru"].build(), tmp_path / "sequence.onnx", save_as_external_data=True, size_threshold=0)
    done = export_source(str(tmp_path / "sequence.onnx"), tmp_path / "pump.onnx")

    assert done.nbytes == (tmp_path / "pump.onnx").stat().st_size > 500


def test_the_file_that_is_given_is_never_written_over(tmp_path: Path) -> None:
    source = Path(saved(tmp_path, ZOO["cumsum"].build()))
    before = source.read_bytes()
    with pytest.raises(FileError, match="is the file that was given"):
        export_source(str(source), source)

    assert source.read_bytes() == before


def test_what_was_exported_already_is_told_from_a_sequence_graph(tmp_path: Path) -> None:
    export_source(saved(tmp_path, ZOO["cumsum"].build()), tmp_path / "sum.onnx")
    with pytest.raises(RefusedModelError, match="'sum' is a step graph with its manifest already"):
        convert(tmp_path / "sum.onnx", name="again")


def test_a_graph_of_many_inputs_is_read_in_a_moment() -> None:
    """There are more ways to read thirteen inputs together than can be looked at."""
    names = [f"cache_{at}" for at in range(12)]
    takes = ", ".join(f"float[N, 4] {name}" for name in ("x", *names))
    gives = ", ".join(f"float[N, 4] {name}_next" for name in names)
    nodes = " ".join(f"{name}_next = Add ({name}, x)" for name in names)
    with pytest.raises(UnclearModelError, match="Nothing is carried from timestep to timestep"):
        convert(graph(f"({takes}) => ({gives}) {{ {nodes} }}"), name="many")


def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("no model")

    with pytest.raises(ModelLoadError, match="is not an ONNX model"):
        export_source(str(tmp_path / "model.onnx"), tmp_path / "pump.onnx")


def test_a_graph_that_is_stepwise_already_is_shown_the_other_way() -> None:
    model = graph(
        "(float[batch, 4] x, float[batch, 4] h) => (float[batch, 4] y, float[batch, 4] hn) "
        "{ a = Add (x, h) hn = Tanh (a) y = Gemm (hn, V) }", V=(4, 4),
    )  # fmt: skip

    with pytest.raises(UnclearModelError) as caught:
        convert(model, name="cell")
    assert "`stepwell adopt`" in caught.value.fix


def test_inputs_that_never_change_are_given_once() -> None:
    model = graph("(float[T, N, 4] x, float[1, 15, 4] W) => (float[T, 1, N, 5] y) "
                  "{ y = GRU <hidden_size = 5> (x, W, R, B) }", R=GRU["R"], B=GRU["B"])  # fmt: skip
    made = convert(model, name="gru", constants={"W": np.ones((1, 15, 4))})

    assert [spec.name for spec in made.manifest.inputs] == ["x"]
    with pytest.raises(UnclearModelError, match="no input 'V'"):
        convert(model, name="gru", constants={"V": np.ones(1)})


def test_without_the_onnx_package_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from stepwell_export.streaming import convert\n"
        "from stepwell_export.runtime.errors import MissingExtraError\n"
        "try: convert('model.onnx', name='m')\n"
        "except MissingExtraError as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "pip install 'stepwell[onnx]'" in done.stdout


def test_a_graph_in_float16_is_held_to_what_float16_can_tell() -> None:
    """Its convolution adds up in another order where it is given all timesteps."""
    half = np.random.default_rng(0).standard_normal((3, 4, 3)).astype(np.float16)
    text = "(float16[batch, 4, time] x) => (float16[batch, 3, time] y) { p = Pad (x, pads) y = Conv (p, W) }"
    model = graph(text, pads=np.array([0, 0, 2, 0, 0, 0]), W=half)
    _, report = verify_model(convert(model, name="half"), long_steps=1000)

    [line] = report.outputs
    assert line.atol == pytest.approx(5e-3 * line.scale.largest)
    assert 0 < report.parity.max_abs < 5e-3


def test_the_callers_model_is_left_alone() -> None:
    model = ZOO["loop_of_keras"].build()
    before = model.SerializeToString(deterministic=True)
    convert(model, name="loop")

    assert model.SerializeToString(deterministic=True) == before
