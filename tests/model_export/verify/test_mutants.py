"""Wrong graphs of every way to a step graph, with tiny and with huge outputs: caught, or called weak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stepwell_export.adoption.adopt_file import adopt_file
from stepwell_export.converted import ConvertedModel, check_model, verify_model
from stepwell_export.exporter import convert_source
from stepwell_export.graph.inline_window import fold_context
from stepwell_export.precision import Precision
from stepwell_export.row_axis import batchify
from stepwell_export.runtime.errors import ParityError
from stepwell_export.runtime.manifest import Array, Manifest
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.stages import EWMA, Diff, Impute, Lag, Pipeline, RollingMean, Stage, Standardize
from stepwell_export.streaming import convert
from stepwell_export.verify.parity import STEPS, verify_parity
from stepwell_export.verify.reference import PrefixAnswers, ReferenceModel
from stepwell_export.verify.tolerance import Tolerance
from tests import graphs
from tests.model_export.mutants import MUTANTS, ROW_MUTANTS, mutated, scaled
from tests.model_export.stages.test_stages import lstm
from tests.model_export.streaming import zoo

FULL, FP16, INT8, STORED = Precision(), Precision("fp16"), Precision("int8"), Precision(store_dtype="float16")


def torch_module(name: str) -> ConvertedModel:
    """A module of the zoo."""
    pytest.importorskip("torch", reason="PyTorch is not installed (the extra `torch`)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra `torch`)")
    from tests.model_export.torch.zoo import made

    return made(name)


def keras_model(name: str) -> ConvertedModel:
    """A model of the zoo."""
    pytest.importorskip("keras", reason="Keras is not installed (the extra `keras`)")
    from stepwell_export.keras import convert as convert_keras
    from tests.model_export.keras.zoo import build

    return convert_keras(build(name), name=name)


def running_product() -> ConvertedModel:
    from tests.model_export.streaming.zoo_parts import X, graph

    text = f"({X}) => (float[batch, time, 4] y) {{ s = Mul (x, tenth) e = Exp (s) y = CumProd (e, one) }}"
    return convert(graph(text, opset=26, tenth=np.float32(0.1), one=np.int64(1)), name="product")


def in_onnx(name: str) -> ConvertedModel:
    """A sequence graph of the zoo."""
    return convert(zoo.ZOO[name].build(), name=name)


def of_a_declared_length() -> ConvertedModel:
    from tests.model_export.streaming.test_declared_length import causal_operator
    from tests.model_export.streaming.zoo_length import LENGTH

    return convert(causal_operator(), name="attention", length=LENGTH)


def with_stages(folder: Path, *stages: Stage) -> ConvertedModel:
    """Stages in front of an LSTM."""
    return convert_source(Pipeline((*stages, lstm(folder))), name="stages")


def wide() -> ConvertedModel:
    """A GRU of 64, whose weights are large enough for fewer bits."""
    from tests.model_export.streaming.zoo_parts import batch_first

    model = batch_first(
        "y64 = GRU <hidden_size = 64> (xt, W, R, B)\nyt = MatMul (y64, D)",
        W=(1, 192, 4), R=(1, 192, 64), B=(1, 384), D=(64, 5),
    )  # fmt: skip
    return convert(model, name="wide")


WAYS: dict[str, tuple[Callable[[Path], ConvertedModel], Precision]] = {
    "torch: an associative scan": (lambda _: torch_module("scanned_recurrence"), FULL),
    "torch: SEANet": (lambda _: torch_module("codec_decoder"), FULL),
    "torch: Mamba": (lambda _: torch_module("mamba"), FULL),
    "torch: minGRU": (lambda _: torch_module("min_gru"), FULL),
    "torch: a transformer": (lambda _: torch_module("banded_encoder"), FULL),
    "keras: attention over a declared length": (lambda _: keras_model("attention_causal"), FULL),
    "onnx: a declared length": (lambda _: of_a_declared_length(), FULL),
    "onnx: a window": (lambda _: in_onnx("windowed_attention"), FULL),
    "onnx: attention pooling": (lambda _: in_onnx("attention_pooling"), FULL),
    "onnx: a weighted mean": (lambda _: in_onnx("mean_of_what_counts"), FULL),
    "onnx: a running product": (lambda _: running_product(), FULL),
    "stages with a history": (lambda folder: with_stages(folder, RollingMean(5), Lag(2), Diff()), FULL),
    "stages with a state": (lambda folder: with_stages(folder, Impute("last"), Standardize(2.0, 3.0), EWMA(0.3)), FULL),
    "weights as fp16": (lambda _: wide(), FP16),
    "weights as int8": (lambda _: wide(), INT8),
    "attention pooling as float16": (lambda _: in_onnx("attention_pooling"), STORED),
    "states as float16": (lambda _: wide(), STORED),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ConvertedModel]:
    """A candidate by the way that it was made, made once."""

    def make(way: str) -> ConvertedModel:
        candidate = WAYS[way][0](tmp_path_factory.mktemp("models"))
        return replace(candidate, original=computed_once(candidate.original))

    return cache(make)


def computed_once(original: ReferenceModel) -> ReferenceModel:
    """Return an original that remembers its answers: all mutants are compared on the same sequences."""
    known: dict[bytes, Mapping[str, Array | PrefixAnswers]] = {}

    def answers(inputs: Mapping[str, Array]) -> Mapping[str, Array | PrefixAnswers]:
        key = b"".join(f"{name}{value.shape}".encode() + value.tobytes() for name, value in sorted(inputs.items()))
        if key not in known:
            known[key] = original(inputs)
        return known[key]

    return answers


def outcome(candidate: ConvertedModel, precision: Precision) -> str:
    """Compare a candidate with its original as an export does; return `equal`, `weak` or `caught`."""
    try:
        if (lowered := precision.lower(candidate)) is not candidate:
            check_model(candidate)
        report = verify_parity(
            candidate.original,
            StepModel(lowered.proto.SerializeToString(), lowered.manifest),
            against="itself",
            tolerance=Tolerance(max(precision.atol, candidate.rounding), precision.rtol, scaled=True),
            samplers=candidate.kinds,
            seeds=(0,),
            steps=candidate.only_length or STEPS,
            long_steps=0,
        )
    except ParityError:
        return "caught"
    return "weak" if report.weak else "equal"


@pytest.mark.many
@pytest.mark.parametrize("scale", [1e-9, 1e7])
@pytest.mark.parametrize("way", WAYS)
def test_only_the_right_graph_passes(made: Callable[[str], ConvertedModel], way: str, scale: float) -> None:
    """Each mutant that can be made of it is caught or called weak."""
    right, precision = scaled(made(way), scale), WAYS[way][1]
    assert outcome(right, precision) == "equal"

    found = {}
    for name, mutate in MUTANTS.items():
        try:
            wrong = mutated(right, mutate)
        except LookupError:  # it has no two states of one shape, no bias, no matrix
            continue
        found[name] = outcome(wrong, precision)

    assert len(found) >= 3
    assert {name for name, how in found.items() if how == "equal"} == set()


def test_a_graph_that_is_wrong_from_the_fourth_row_on_runs_one_row_at_a_time(
    made: Callable[[str], ConvertedModel],
) -> None:
    right = made("weights as int8")
    wrong = mutated(right, ROW_MUTANTS["fourth row"])

    for candidate, mode in ((right, "stack"), (wrong, "single")):
        assert StepModel(verify_model(candidate, long_steps=0)[0]).manifest.batch.mode == mode


# -------------------------------------------------------------------- graphs that adopt writes


def cut(folder: Path) -> Path:
    """A graph with a window: sums of the last timesteps, a large number and a small one."""
    path = folder / "sums.onnx"
    path.write_bytes(
        graphs.graph_from_text(
            """sums (float[B,N] x) => (float[B,2] y) {
                axis = Constant <value = int64[1] {1}> ()
                sum = ReduceSum <keepdims = 1> (x, axis)
                y = Mul (sum, sizes)
            }""",
            {"sizes": np.array([1e3, 1e-3], np.float32)},
        )
    )
    return path


def lost_small_number(model: onnx.ModelProto) -> None:
    """The second number of a row is 0, a millionth of the first."""
    sizes = next(tensor for tensor in model.graph.initializer if tensor.name == "sizes")
    sizes.CopyFrom(numpy_helper.from_array(np.array([1e3, 0.0], np.float32), "sizes"))


@pytest.mark.parametrize(("wrong", "how"), [(False, "equal"), (True, "weak")])
def test_a_rewritten_graph_that_loses_a_small_number_is_called_weak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool, how: str
) -> None:
    def folded(model: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, Manifest]:
        made = fold_context(model, manifest)
        if wrong:
            lost_small_number(made[0])
        return made

    monkeypatch.setattr("stepwell_export.adoption.rewrite.fold_context", folded)
    adopted = adopt_file(
        cut(tmp_path), windows={"x": 3}, shapes={"x": [2]}, changes=["fold-context"], target=tmp_path / "new.onnx"
    )

    assert adopted.manifest.verified is not None
    assert adopted.manifest.verified.model_dump()["weak"] == (how == "weak")
    assert any("the verification of y is weak" in note for note in adopted.adoption.notes) == (how == "weak")


def for_one_row(folder: Path, scale: float) -> Path:
    """An LSTM whose exporter has written its one row into shapes."""
    rng = np.random.default_rng(0)
    shapes = {"W": (1, 16, 3), "R": (1, 16, 4), "B": (1, 32), "D": (4, 2), "E": (2,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    path = folder / "row.onnx"
    path.write_bytes(
        graphs.graph_from_text(
            """row (float[1,3] x, float[1,1,4] h, float[1,1,4] c)
                => (float[1,2] y, float[1,1,4] h_next, float[1,1,4] c_next) {
                step = Reshape (x, to_step)
                all, h_next, c_next = LSTM <hidden_size = 4> (step, W, R, B, , h, c)
                row = Reshape (all, to_row)
                z = Gemm (row, D, E)
                y = Mul (z, scale)
            }""",
            {
                **weights,
                "to_step": np.array([1, 1, 3]),
                "to_row": np.array([1, 4]),
                "scale": np.array(scale, np.float32),
            },
        )
    )
    return path


@pytest.mark.many
@pytest.mark.parametrize("mutant", [None, *MUTANTS, *ROW_MUTANTS])
def test_a_wrong_graph_that_runs_rows_together_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: str | None
) -> None:
    def rewritten(model: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, Manifest]:
        made, described = batchify(model, manifest)
        described = described.model_copy(deep=True)
        if mutant is not None:
            {**MUTANTS, **ROW_MUTANTS}[mutant](made, described)
        return made, described

    monkeypatch.setattr("stepwell_export.adoption.rewrite.batchify", rewritten)
    with nullcontext() if mutant is None else pytest.raises(ParityError):
        adopt_file(for_one_row(tmp_path, 1e-9), changes=["batchify"], target=tmp_path / "new.onnx")

    assert (tmp_path / "new.onnx").exists() == (mutant is None)
