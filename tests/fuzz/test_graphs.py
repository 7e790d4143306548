"""No file makes the exporter fail in a way of its own: what cannot be exported or adopted is refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from stepwell_export.adoption.autoconfigure import adopt
from stepwell_export.adoption.overrides import Overrides
from stepwell_export.converted import verify_model
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.streaming import convert
from tests import graphs
from tests.fuzz.graphs import broken
from tests.model_export.streaming.zoo import ZOO

COUNT = 150
"""Files of each kind; the seeds count from 0."""

STEPWISE = (graphs.lstm, graphs.total, graphs.two_inputs, graphs.batch_axis_1, graphs.time_axis, graphs.latch)


def exported(seed: int) -> str:
    """Export one broken graph; return how it ended."""
    rng = np.random.default_rng(seed)
    name = sorted(ZOO)[int(rng.integers(len(ZOO)))]
    model = broken(ZOO[name].build(), rng)
    try:
        verify_model(convert(model, name="fuzzed"), long_steps=70)
    except StepwellError as exc:
        return type(exc).__name__ if exc.problem.strip() else ""
    return "written"


def adopted(seed: int, folder: Path) -> str:
    """Adopt one broken graph; return how it ended."""
    rng = np.random.default_rng(seed)
    model = broken(onnx.load_from_string(STEPWISE[int(rng.integers(len(STEPWISE)))]()[0]), rng)
    path = folder / f"fuzzed_{seed}.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        adopt(path, hints=Overrides(), steps=4)
    except StepwellError as exc:
        return type(exc).__name__ if exc.problem.strip() else ""
    finally:
        path.unlink()
    return "written"


@pytest.mark.many
@pytest.mark.parametrize("tens", range(COUNT // 10))
def test_a_broken_sequence_graph_is_exported_or_refused_in_words(tens: int) -> None:
    assert all(exported(seed) for seed in range(10 * tens, 10 * tens + 10))


def test_a_concat_without_an_axis_behind_a_loop_that_was_written_out_is_refused_in_words() -> None:
    model = ZOO["unrolled"].build()
    [concat] = [node for node in model.graph.node if node.op_type == "Concat" and len(node.input) > 2]
    del concat.attribute[:]

    with pytest.raises(StepwellError) as caught:
        convert(model, name="fuzzed")
    assert caught.value.problem.strip()


@pytest.mark.many
@pytest.mark.parametrize("tens", range(COUNT // 10))
def test_a_broken_step_graph_is_adopted_or_refused_in_words(tens: int, tmp_path: Path) -> None:
    assert all(adopted(seed, tmp_path) for seed in range(10 * tens, 10 * tens + 10))
