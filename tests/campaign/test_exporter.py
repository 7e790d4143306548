"""The generated models: each follows from its name, can be run in every front end, and is judged rightly."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from campaign.exporter import onnx_models
from campaign.exporter.breaking import Break, count_breaks, install, was_reached
from campaign.exporter.broken import draw_breaks
from campaign.exporter.built import Array, Built
from campaign.exporter.cases import FRONT_ENDS, IDS, RECENT, Case, FrontEnd, draw, find
from campaign.exporter.judge import Fault, find_fault, sequences
from campaign.exporter.ops import Setting
from campaign.exporter.rare import CELLS, SEQUENCE, STEPWISE
from campaign.exporter.run import Found, Plan, run
from campaign.exporter.verdicts import judge_case

SETTING = Setting(10.0, 23, 0)


def case(rare: str, *, front_end: FrontEnd = "onnx", **changes: Any) -> Case:
    place: Any = "inside" if rare in CELLS else "before"
    made = dataclasses.replace(draw(front_end, 1, 2), rare=rare, place=place, setting=SETTING, blocks=(), head="each")
    return dataclasses.replace(made, **changes)


def fault_of(one: Case, built: Built, folder: Path) -> Fault | None:
    assert not built.export(folder / "model.onnx")
    return find_fault(one, built, folder / "model.onnx")


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_model_follows_from_its_name(front_end: FrontEnd) -> None:
    assert find(draw(front_end, 7, 12).id) == draw(front_end, 7, 12)


def test_models_of_a_seed_have_every_rare_condition() -> None:
    drawn = {draw("onnx", 7, index).rare for index in range(600)}

    assert drawn == {"", RECENT, *SEQUENCE, *STEPWISE, *IDS, *(name for name, cell in CELLS.items() if cell.is_rare)}


def test_no_model_normalizes_a_single_number() -> None:
    drawn = [draw("keras", 7, index) for index in range(600)]

    assert {1, 2} <= {one.features for one in drawn}
    assert [one.id for one in drawn if "norm" in one.blocks and one.features == 1] == []


@pytest.mark.many
@pytest.mark.parametrize("rare", [*SEQUENCE, *STEPWISE, *CELLS, *IDS])
def test_every_condition_runs_in_onnx(rare: str) -> None:
    one = case(rare)
    x = sequences(one, np.random.default_rng(0))[:, :40]

    assert onnx_models.build(one).run(x).shape == (len(x), 40, 2)


@pytest.mark.many
@pytest.mark.parametrize("front_end", ["torch", "keras"])
@pytest.mark.parametrize("rare", [*SEQUENCE, *STEPWISE])
def test_a_condition_is_the_same_in_every_front_end(rare: str, front_end: str) -> None:
    if find_spec(front_end) is None:
        pytest.skip(f"{front_end} is not installed (the extra `{front_end}`)")
    module = importlib.import_module(f"campaign.exporter.{front_end}_models")
    part = SEQUENCE.get(rare) or STEPWISE[rare]
    x = np.random.default_rng(0).normal(size=(3, 40, 2)).astype(np.float32) * 20
    if front_end == "keras":
        found = np.asarray(part(module.KerasOps(), module.ops.convert_to_tensor(x), SETTING))
    else:
        found = part(module.TorchOps(), module.torch.from_numpy(x), SETTING).numpy()

    np.testing.assert_allclose(found, in_onnx(rare, x), rtol=1e-5, atol=1e-6)


def in_onnx(rare: str, x: Array) -> Array:
    graph = onnx_models.Graph()
    end = (SEQUENCE.get(rare) or STEPWISE[rare])(graph, "x", SETTING)
    graph.nodes.append(onnx.helper.make_node("Identity", [end], ["y"]))
    value = onnx.helper.make_tensor_value_info
    content = graph.model([value("x", 1, x.shape)], [value("y", 1, ["a", "b", "c"])])
    answer: Array = onnxruntime.InferenceSession(content).run(None, {"x": x})[0]
    return answer


# -------------------------------------------------------------------- the judge


def test_a_step_graph_without_the_rare_condition_is_wrong(tmp_path: Path) -> None:
    """The graph of a model without the alarm is judged by the model with it."""
    plain, alarm = case("", place="nowhere", blocks=("conv",)), case("latch", blocks=("conv",))
    built = Built(onnx_models.build(alarm).run, onnx_models.build(plain).export)

    assert fault_of(alarm, built, tmp_path) is not None


def test_rounding_is_no_fault(tmp_path: Path) -> None:
    one = case("saturation", blocks=("lstm",))
    built = onnx_models.build(one)

    def rounded(x: Array) -> Array:
        return (built.run(x).astype(np.float64) * (1 + 3e-7)).astype(np.float32)

    assert fault_of(one, dataclasses.replace(built, run=rounded), tmp_path) is None


def test_a_difference_in_one_late_timestep_is_a_fault(tmp_path: Path) -> None:
    one = case("counter", setting=Setting(10.0, 300, 0))
    built = onnx_models.build(one)

    def changed(x: Array) -> Array:
        answers = built.run(x)
        answers[:, 600:601] += 0.01 * np.abs(answers[:, 600:601]).max(axis=(1, 2), keepdims=True)
        return answers

    fault = fault_of(one, dataclasses.replace(built, run=changed), tmp_path)
    assert fault is not None
    assert fault.timestep == 600


def test_numbers_that_onnxruntime_makes_of_nan_are_not_required(tmp_path: Path) -> None:
    one = find("onnx-7301-119")
    assert (one.rare, one.place, one.blocks) == ("not a number", "before", ("lstm", "rnn"))

    assert fault_of(one, onnx_models.build(one), tmp_path) is None


def test_a_step_graph_that_gives_nan_below_the_limit_of_the_original_is_wrong(tmp_path: Path) -> None:
    one = find("onnx-7301-119")
    higher = dataclasses.replace(one, setting=dataclasses.replace(one.setting, limit=50.0))
    built = Built(onnx_models.build(higher).run, onnx_models.build(one).export)

    assert fault_of(higher, built, tmp_path) is not None


def test_an_original_whose_rows_depend_on_each_other_is_no_original_of_a_step_graph(tmp_path: Path) -> None:
    one = case("", place="nowhere", blocks=("conv",))
    built = onnx_models.build(one)

    def together(x: Array) -> Array:
        return built.run(x) + np.float32(len(x) > 1)

    assert fault_of(one, dataclasses.replace(built, run=together), tmp_path) is not None


def test_an_error_that_is_no_refusal_is_a_verdict() -> None:
    outcome = judge_case(case("", blocks=("no such layer",)))

    assert outcome.verdict == "failed"
    assert outcome.why.startswith("KeyError at onnx_models.py:")


# -------------------------------------------------------------------- runs


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_run_writes_no_wrong_model_and_every_plain_one() -> None:
    found = Found()
    front_ends: tuple[FrontEnd, ...] = ("onnx", "adopt", "states") if find_spec("torch") else ("onnx", "adopt")
    run(Plan(front_ends, seed=10, seconds=300, models=12), found)

    assert len(found.outcomes) == 12
    assert {outcome.verdict for outcome in found.outcomes} <= {"right", "weak", "refused"}
    assert {outcome.verdict for outcome in found.outcomes if not outcome.rare} == {"right"}


def test_the_table_has_the_share_of_plain_models_that_are_written() -> None:
    found = Found([judge_case(case("", place="nowhere"))])

    assert found.row("onnx") == {
        "models": 1, "right": 1, "weak": 0, "refused": 0, "wrong": 0, "failed": 0, "plain": 1, "plain_written": 1,
        "plain_share": 1.0,
    }  # fmt: skip


# -------------------------------------------------------------------- broken exporters

VICTIM = """
def part(a, b, c):
    if a > b and c:
        return a - b
    return 7
"""


@pytest.mark.parametrize(
    ("index", "arguments", "result"),
    [(0, (2, 2, True), 0), (1, (2, 1, False), 1), (2, (3, 1, True), -2), (3, (1, 2, True), 8)],
)
def test_one_expression_of_a_module_is_broken_as_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int, arguments: tuple[Any, ...], result: Any
) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "__init__.py").touch()
    (tmp_path / "victim" / "part.py").write_text(VICTIM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    for name in ("victim", "victim.part"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    install(Break("victim.part", index))

    assert importlib.import_module("victim.part").part(*arguments) == result
    assert was_reached()


def test_expressions_are_drawn_from_all_modules_of_a_front_end() -> None:
    drawn = [broken for broken, _ in zip(draw_breaks("adopt", 1), range(200), strict=False)]

    assert {broken.module for broken in drawn} >= {"stepwell_export.adoption.pairing", "stepwell_export.adoption.axes"}
    assert all(broken.index < count_breaks(broken.module) for broken in drawn)
