"""Verification: originals that are right pass, and each way of being wrong is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from stepwell_export.labels import with_labels
from stepwell_export.runtime.errors import ParityError, TensorError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.parity import PrefixAnswers, verify_parity
from stepwell_export.verify.samplers import random_sampler, read_user_data
from stepwell_export.verify.tolerance import ATOL, RTOL, Tolerance
from tests import graphs

Sequences = Mapping[str, Array]


def model(build: Callable[[], graphs.Built] = graphs.total) -> StepModel:
    return StepModel(*build())


def running_sum(inputs: Sequences) -> dict[str, Array]:
    """The original of `graphs.total`."""
    return {"y": np.cumsum(inputs["x"], axis=1, dtype=np.float32)}


def two_inputs(inputs: Sequences) -> dict[str, Array]:
    """The original of `graphs.two_inputs`."""
    return {"total": np.cumsum(inputs["a"] + inputs["b"][..., None], axis=1), "last": inputs["b"].copy()}


def fold(inputs: Sequences) -> dict[str, Array]:
    """The original of `graphs.fold`: integers that wrap around at 64 bits."""
    return {"y": np.array([graphs.fold_reference(row) for row in inputs["x"][..., 0].tolist()])[..., None]}


def test_a_right_step_graph_passes_and_the_report_says_over_what() -> None:
    report = verify_parity(running_sum, model(), against="numpy 2", seeds=[4, 5], steps=20)

    [line] = report.outputs
    assert report.parity.model_dump(exclude={"covered"}) == {
        "against": "numpy 2", "steps": 20, "max_abs": line.max_abs, "atol": line.atol, "rtol": 1e-4,
        "sequences": ["random"], "long_steps": 2000, "weak": False,
        "scale": {"y": {"largest": line.scale.largest, "median": line.scale.median, "distinct": 1.0}},
    }  # fmt: skip
    assert line.atol == pytest.approx(1e-5 * line.scale.largest)
    assert report.parity.max_abs < 1e-4
    assert [(line.name, line.compared) for line in report.outputs] == [("y", 2 * 3 * 20 * 2 + 2000 * 2)]


def test_integers_are_compared_exactly_past_the_53_bits_of_a_float() -> None:
    assert verify_parity(fold, model(graphs.fold), against="python").parity.max_abs == 0

    def one_off(inputs: Sequences) -> dict[str, Array]:
        answers = fold(inputs)["y"]
        answers[0, 40] += 1
        return {"y": answers}

    with pytest.raises(ParityError, match=r"timestep 41 "):
        verify_parity(one_off, model(graphs.fold), against="python", tolerance=Tolerance(0.5, 0))


def test_several_inputs_and_outputs_of_different_dtypes_pass() -> None:
    report = verify_parity(two_inputs, model(graphs.two_inputs), against="numpy")

    assert [line.name for line in report.outputs] == ["total", "last"]


def test_the_first_timestep_and_output_that_differ_are_named_with_both_values() -> None:
    def wrong(inputs: Sequences) -> dict[str, Array]:
        answers = two_inputs(inputs)
        answers["total"][1, 7:] += 100
        answers["last"][2, 4:] += 1
        return answers

    with pytest.raises(ParityError) as caught:
        verify_parity(wrong, model(graphs.two_inputs), against="numpy")

    assert "'last' first differs at timestep 5 (random data, sequence 3): the original gives " in caught.value.problem
    assert "; they differ by 1, and " in caught.value.problem
    assert "Nothing was written" in caught.value.fix


def test_a_difference_in_the_last_timestep_alone_is_found() -> None:
    def wrong(inputs: Sequences) -> dict[str, Array]:
        answers = running_sum(inputs)["y"]
        answers[2, -1, 1] += 0.01
        return {"y": answers}

    with pytest.raises(ParityError, match=r"timestep 64 \(random data, sequence 3, element \[1\]\)"):
        verify_parity(wrong, model(), against="numpy")


def test_an_original_that_looks_ahead_is_found() -> None:
    def whole(inputs: Sequences) -> dict[str, Array]:
        return {"y": np.repeat(inputs["x"].sum(axis=1, keepdims=True), inputs["x"].shape[1], axis=1)}

    with pytest.raises(ParityError, match="timestep 1 "):
        verify_parity(whole, model(), against="numpy")


def test_an_original_that_answers_nan_is_no_parity() -> None:
    def broken(inputs: Sequences) -> dict[str, Array]:
        answers = running_sum(inputs)["y"]
        answers[0, 3, 0] = np.nan
        return {"y": answers}

    with pytest.raises(ParityError, match=r"timestep 4 .*the original gives nan"):
        verify_parity(broken, model(), against="numpy")


def test_answers_for_some_beginnings_are_compared_at_those() -> None:
    def last(inputs: Sequences) -> dict[str, PrefixAnswers]:
        steps = [1, 5, inputs["x"].shape[1]]
        sums = running_sum(inputs)["y"]
        return {"y": PrefixAnswers(steps, np.stack([sums[:, step - 1] for step in steps], axis=1))}

    def wrong_at_5(inputs: Sequences) -> dict[str, PrefixAnswers]:
        answers = last(inputs)["y"]
        answers.values[:, 1] -= 1
        return {"y": answers}

    assert verify_parity(last, model(), against="numpy", long_steps=0).outputs[0].compared == 9 * 3 * 2
    with pytest.raises(ParityError, match="timestep 5 "):
        verify_parity(wrong_at_5, model(), against="numpy")


def test_tolerance_is_absolute_plus_relative() -> None:
    def near(inputs: Sequences) -> dict[str, Array]:
        return {"y": running_sum(inputs)["y"] + np.float32(0.05)}

    assert verify_parity(
        near, model(), against="numpy", tolerance=Tolerance(0.1, RTOL)
    ).parity.max_abs == pytest.approx(0.05, abs=1e-4)
    with pytest.raises(ParityError):
        verify_parity(near, model(), against="numpy", tolerance=Tolerance(0.01, 0))


def test_states_pass_through_their_packed_form_after_every_timestep() -> None:
    """A state that is stored as float16 loses digits, so the answers from the second on do not hold 1e-5."""
    with pytest.raises(ParityError) as caught:
        verify_parity(
            running_sum, model(graphs.total_half), against="numpy", steps=10, tolerance=Tolerance(ATOL, 0, scaled=True)
        )

    assert "timestep 2 " in caught.value.problem


def test_the_users_sequences_are_compared_too() -> None:
    report = verify_parity(running_sum, model(), against="numpy", user_data={"x": np.full((5, 90, 2), 0.5, np.float32)})

    assert report.parity.sequences == ["random", "user"]
    assert report.parity.steps == 90


def test_progress_reaches_its_end_for_each_kind_of_data() -> None:
    seen: list[tuple[str, int, int]] = []

    verify_parity(
        running_sum,
        model(),
        against="numpy",
        samplers={"random": random_sampler(model().manifest), "masked": random_sampler(model().manifest)},
        progress=lambda what, done, of: seen.append((what, done, of)),
    )

    assert [entry for entry in seen if entry[1] == entry[2]] == [
        ("random: step by step", 9, 9), ("masked: step by step", 9, 9), ("long run of 2000 timesteps", 1, 1),
        ("driven: rare values", 1, 1),
    ]  # fmt: skip


def test_random_outputs_are_not_held_against_the_original() -> None:
    graph, manifest = graphs.two_inputs()
    manifest.outputs[1].kind = "random"

    report = verify_parity(
        lambda inputs: {"total": two_inputs(inputs)["total"]}, StepModel(graph, manifest), against="numpy"
    )

    assert [line.name for line in report.outputs] == ["total"]


def test_an_original_with_too_few_answers_is_refused() -> None:
    with pytest.raises(ParityError, match=r"for \[9, 1\] sequences and timesteps; expected \[9, 64\]"):
        verify_parity(lambda inputs: {"y": inputs["x"][:, :1]}, model(), against="numpy")


def test_an_original_whose_rows_have_another_shape_is_refused() -> None:
    with pytest.raises(ParityError, match=r"Output 'y' of the original has shape \(9, 20, 1\); expected \(9, 20, 2\)"):
        verify_parity(lambda inputs: {"y": running_sum(inputs)["y"][..., :1]}, model(), against="numpy", steps=20)


# -------------------------------------------------------------------- the user's own data


def test_one_sequence_gets_a_batch_axis_and_the_inputs_dtype(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(8.0).reshape(4, 2))

    data = read_user_data(tmp_path / "data.npz", model().manifest)

    assert data["x"].shape == (1, 4, 2)
    assert data["x"].dtype == np.float32


def test_the_only_array_of_a_model_with_one_input_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", np.zeros((3, 4, 2)))

    assert read_user_data(tmp_path / "data.npz", model().manifest)["x"].shape == (3, 4, 2)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.zeros((4, 2), np.int64)}, r"has arrays \['a'\]; expected \['a', 'b'\]"),
        ({"a": np.zeros((4, 3), np.int64), "b": np.zeros(4, np.int32)}, r"'a' has shape \[1, 4, 3\]"),
        ({"a": np.zeros((4, 2)), "b": np.zeros(4, np.int32)}, "'a' has .*dtype float64"),
        ({"a": np.zeros((4, 2), np.int64), "b": np.zeros(5, np.int32)}, "numbers of sequences and timesteps"),
        ({"a": np.zeros((0, 2), np.int64), "b": np.zeros(0, np.int32)}, "numbers of sequences and timesteps"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_what_was_found(
    tmp_path: Path, arrays: dict[str, Array], words: str
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]  # savez's own flag is no array of ours

    with pytest.raises(TensorError, match=words):
        read_user_data(tmp_path / "data.npz", model(graphs.two_inputs).manifest)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_own_data_that_is_not_finite_is_refused_with_its_place(tmp_path: Path, value: float) -> None:
    x = np.zeros((3, 4, 2))
    x[1, 2, 0] = value
    np.savez(tmp_path / "data.npz", x=x)

    with pytest.raises(TensorError, match=rf"'x' has {re.escape(str(value))} at \[1, 2, 0\]; expected finite numbers"):
        read_user_data(tmp_path / "data.npz", model().manifest)


def test_own_data_may_have_missing_values_if_the_model_takes_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", a=np.full((4, 2), np.nan), b=np.zeros(4))
    manifest = model(graphs.last_seen).manifest

    assert np.isnan(read_user_data(tmp_path / "data.npz", manifest)["a"]).all()
    np.savez(tmp_path / "data.npz", a=np.full((4, 2), np.inf), b=np.zeros(4))
    with pytest.raises(TensorError, match="or NaN for missing values"):
        read_user_data(tmp_path / "data.npz", manifest)


def _damaged(whole: bytes) -> bytes:
    middle = len(whole) // 2
    return whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]


@pytest.mark.parametrize(
    "content_of",
    [
        lambda _whole: b"x,y\n1,2\n",
        lambda _whole: b"",
        lambda whole: whole[: len(whole) // 2],
        _damaged,
    ],
    ids=["text", "empty", "cut off", "damaged"],
)
def test_a_file_that_is_no_npz_is_refused_by_name(tmp_path: Path, content_of: Callable[[bytes], bytes]) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(600.0).reshape(100, 3, 2))
    (tmp_path / "data.npz").write_bytes(content_of((tmp_path / "data.npz").read_bytes()))

    with pytest.raises(TensorError, match=r"data\.npz cannot be read as \.npz"):
        read_user_data(tmp_path / "data.npz", model().manifest)


def labelled() -> StepModel:
    graph, manifest = graphs.total()
    return StepModel(graph, with_labels(manifest, {"y": ["vibration", "rpm"]}))


def own_data() -> Sequences:
    """Vibrations of about 1 beside rotations of about 3,000."""
    return {"x": (np.random.default_rng(0).normal(size=(2, 20, 2)) * [1, 3000]).astype(np.float32)}


def sum_with(offset: float) -> Callable[[Sequences], dict[str, Array]]:
    """Return a running sum whose first number is off where the second one is large."""

    def original(inputs: Sequences) -> dict[str, Array]:
        y = running_sum(inputs)["y"]
        vibration, rpm = inputs["x"].std(axis=(0, 1))
        y[..., 0] += np.float32(offset) * (rpm > 1000 * vibration)
        return {"y": y}

    return original


def test_a_number_with_a_label_is_held_to_its_own_size_beside_a_larger_one() -> None:
    report = verify_parity(sum_with(0.05), model(), against="numpy", user_data=own_data())
    assert report.outputs[0].max_abs == pytest.approx(0.05, rel=0.1)

    with pytest.raises(ParityError, match=r"element \[0\]") as caught:
        verify_parity(sum_with(0.05), labelled(), against="numpy", user_data=own_data())
    assert "differ by 0.05, and 0.0166 is allowed" in caught.value.problem


def test_the_report_has_the_scale_and_the_tolerance_of_each_label() -> None:
    report = verify_parity(running_sum, labelled(), against="numpy", user_data=own_data())
    [line] = report.outputs
    labels = line.labels

    assert list(labels) == ["vibration", "rpm"]
    assert labels["rpm"].scale.largest == line.scale.largest > 100 * labels["vibration"].scale.largest
    assert labels["vibration"].atol < labels["rpm"].atol / 100
    assert report.parity.model_dump()["scale"]["y"]["labels"]["rpm"]["largest"] == line.scale.largest
