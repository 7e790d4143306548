"""Audio stages: each equals NumPy and torch, goes back by its inverse, and is verified as part of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.exporter import convert_source
from stepwell_export.runtime.errors import ManifestError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.stages import (
    PCM16,
    RFFT,
    STFT,
    Add,
    Context,
    Frames,
    InverseRFFT,
    InverseSTFT,
    Lag,
    Log,
    Magnitude,
    Mel,
    Multiply,
    OverlapAdd,
    Part,
    Pipeline,
    Power,
    Stage,
)
from stepwell_export.verify.runners import chunked, stepped
from tests.model_export.rows_apart import assert_rows_apart
from tests.model_export.streaming.zoo_parts import graph

pytest.importorskip("onnx", reason="onnx is not installed")

RNG = np.random.default_rng(0)


def rows_model(folder: Path, *row: int, name: str = "y") -> Path:
    """An ONNX file without memory: `x`, half of it."""
    shape = ", ".join(map(str, ["b", *row]))
    path = folder / f"half_{'_'.join(map(str, row))}.onnx"
    onnx.save(
        graph(f"(float[{shape}] x) => (float[{shape}] {name}) {{ {name} = Mul (x, h) }}", h=np.float32(0.5)), path
    )
    return path


def exported(*parts: Any, outputs: list[str] | None = None) -> StepModel:
    """Verify a pipeline, and load it."""
    content, report = verify_model(convert_source(Pipeline(parts, outputs=outputs), name="m"), long_steps=128)
    assert not report.weak
    return StepModel(content)


def samples(hop: int, steps: int = 20, rows: int = 2) -> Array:
    return RNG.standard_normal((rows, steps, hop)).astype(np.float32)


IN_FRONT: list[tuple[Stage, int]] = [
    (Frames(12, 5), 12),
    (Context(7), 11),
    (Context(3), 11),
    (OverlapAdd(12, 4), 4),
    (OverlapAdd(12, 4, "hann"), 4),
    (Log(1e-3), 6),
    (Log(floor=1e-4, base=10), 6),
    (Mel(4, 8000, 64), 4),
    (PCM16(), 6),
]


@pytest.mark.parametrize(("stage", "width"), IN_FRONT, ids=lambda value: str(getattr(value, "title", value)))
def test_an_audio_stage_in_front_of_a_model_equals_its_definition_in_chunks_of_any_cut(
    tmp_path: Path, stage: Stage, width: int
) -> None:
    model = exported(stage, rows_model(tmp_path, width))
    spec = model.manifest.inputs[0]
    x = np.abs(samples(spec.shape[0]))
    x = (x * 9000).clip(0, 32767).astype(np.int16) if spec.dtype == "int16" else x

    want = stage.reference(x.astype(np.float64)) / 2
    whole, ends = stepped(model, {"x": x})
    np.testing.assert_allclose(whole["y"], want, rtol=1e-5, atol=1e-5)
    for lengths in ([20], [1, 7, 2, 10]):
        cut, states = chunked(model, {"x": x}, lengths)
        np.testing.assert_allclose(cut["y"], want, rtol=1e-5, atol=1e-5)
        assert all(np.allclose(states[name], ends[name], atol=1e-5) for name in ends)
    assert_rows_apart(model)


@pytest.mark.parametrize("size", [16, 15])
def test_pairs_go_through_the_graph_as_through_numpy(tmp_path: Path, size: int) -> None:
    model = exported(RFFT(size), rows_model(tmp_path, size // 2 + 1, 2), InverseRFFT(size))
    x = samples(size)

    found = stepped(model, {"x": x})[0]["y"]

    np.testing.assert_allclose(found, x / 2, atol=1e-5)


def test_imaginary_parts_of_a_real_bin_are_positive_zero(tmp_path: Path) -> None:
    model = exported(RFFT(16), rows_model(tmp_path, 9, 2))

    found = stepped(model, {"x": np.concatenate([samples(16), -np.abs(samples(16))])})[0]["y"][..., [0, 8], 1]

    assert not found.any()
    assert not np.signbit(found).any()


def test_a_mask_on_a_spectrum_in_polar_form_is_heard(tmp_path: Path) -> None:
    mask = rows_model(tmp_path, 33, name="mask")
    model = exported(
        STFT(64, 16, "hann", "polar"),
        Part(mask, of="magnitude"),
        Multiply(of=("magnitude", "mask"), to="magnitude"),
        InverseSTFT(64, 16, "hann", "polar"),
    )
    x = samples(16)
    twin = STFT(64, 16, "hann", "polar")
    magnitude, phase = twin.reference(x)
    want = InverseSTFT(64, 16, "hann", "polar").reference(magnitude**2 / 2, phase)

    assert [spec.name for spec in model.manifest.answered] == ["samples"]
    np.testing.assert_allclose(stepped(model, {"x": x})[0]["samples"], want, atol=1e-3)


def test_an_stft_and_its_inverse_return_the_samples_late_by_size_less_hop(tmp_path: Path) -> None:
    for window in ("hann", "sqrt_hann", "hamming", "vorbis", None, np.linspace(1, 2, 64)):
        stage, x = STFT(64, 16, window), samples(16).astype(np.float64)
        found = stage.inverse().reference(stage.reference(x)).reshape(2, -1)

        np.testing.assert_allclose(found[:, 48:], x.reshape(2, -1)[:, :-48], atol=1e-12)
        np.testing.assert_allclose(found[:, :48], 0, atol=1e-12)
    model = exported(STFT(64, 16, "hann"), rows_model(tmp_path, 33, 2), InverseSTFT(64, 16, "hann"))
    got = stepped(model, {"x": x.astype(np.float32)})[0]["y"].reshape(2, -1)
    np.testing.assert_allclose(got[:, 48:], x.reshape(2, -1)[:, :-48] / 2, atol=1e-5)


def test_an_stft_equals_torchs_over_the_sequence_with_zeros_in_front() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = samples(160).astype(np.float64)
    sent = torch.from_numpy(np.concatenate([np.zeros((2, 240)), x.reshape(2, -1)], axis=1))
    window = torch.hann_window(400, dtype=torch.float64)
    want = torch.stft(sent, 400, 160, window=window, center=False, return_complex=True).numpy()

    pairs = STFT(400, 160, "hann").reference(x)
    magnitude, phase = STFT(400, 160, "hann", "polar").reference(x)

    np.testing.assert_allclose(pairs[..., 0] + 1j * pairs[..., 1], want.transpose(0, 2, 1), atol=1e-10)
    np.testing.assert_allclose(magnitude * np.exp(1j * phase), want.transpose(0, 2, 1), atol=1e-10)


def test_phases_are_above_minus_pi_and_0_of_nothing() -> None:
    silence, minus = np.zeros((1, 1, 8)), -np.ones((1, 1, 8))

    assert not RFFT(8, form="polar").reference(silence)[1].any()
    assert RFFT(8, form="polar").reference(minus)[1][0, 0, 0] == np.pi


def test_answered_phases_are_compared_as_what_they_turn(tmp_path: Path) -> None:
    model = exported(RFFT(16, form="polar"), Part(rows_model(tmp_path, 9, name="mask"), of="magnitude"))
    x = samples(16)
    magnitude, phase = RFFT(16, form="polar").reference(x)
    found = stepped(model, {"x": x})[0]

    assert [spec.name for spec in model.manifest.outputs] == ["phase", "mask"]
    np.testing.assert_allclose(magnitude * np.exp(1j * found["phase"]), magnitude * np.exp(1j * phase), atol=1e-5)
    assert (found["phase"] > -np.float32(np.pi)).all()
    assert (found["phase"] <= np.float32(np.pi)).all()


def test_samples_of_16_bits_come_back_rounded_and_clipped(tmp_path: Path) -> None:
    model = exported(PCM16(), rows_model(tmp_path, 4), PCM16().inverse())
    x = np.array([[[-32768, 32767, 5, 7]]], np.int16)

    found = stepped(model, {"x": x})[0]["y"]

    assert found.dtype == np.int16
    assert found.tolist() == [[[-16384, 16384, 2, 4]]]
    loud = PCM16().inverse().reference(np.array([[[2.0, -2.0, 0.5 / 32768]]]))
    assert loud.tolist() == [[[32767, -32768, 0]]]


def test_mel_bands_are_those_of_librosa_and_htk() -> None:
    power = np.eye(33)[None]

    slaney = Mel(3, 8000, 64, low=100, high=3000).reference(power)[0]
    htk = Mel(3, 8000, 64, scale="htk", norm=None).reference(power)[0]

    assert np.argmax(slaney, axis=0).tolist() == [5, 9, 15]  # centres at 591, 1,089 and 1,808 Hz; a bin has 125
    assert htk.max() <= 1
    assert (htk.sum(axis=1) <= 1 + 1e-9).all()
    assert np.allclose((slaney * 125).sum(axis=0), 1, atol=0.1)  # an area of 1


def test_magnitude_and_power_of_pairs_are_multiplied_and_added(tmp_path: Path) -> None:
    model = exported(
        STFT(16, 4),
        Magnitude(to="m"),
        Power(of="x", to="p"),
        Part(rows_model(tmp_path, 9), of="m"),
        Add(of=("y", "p", "m")),
        Multiply(of=("y", "x")),
        outputs=["sum", "product"],
    )
    x = samples(4)
    pairs = STFT(16, 4).reference(x)
    magnitude = np.hypot(pairs[..., 0], pairs[..., 1])
    found = stepped(model, {"x": x})[0]

    np.testing.assert_allclose(found["sum"], 1.5 * magnitude + magnitude**2, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["product"], pairs * magnitude[..., None] / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Frames(8, 9), "`hop` is 9 and `size` 8"),
        (lambda: OverlapAdd(8, 3), "a `hop` that divides"),
        (lambda: InverseSTFT(8, 3), "a `hop` that divides"),
        (lambda: OverlapAdd(8, 8, "hann"), "add up to 0"),
        (lambda: InverseSTFT(512, 512, "sqrt_hann"), "add up to 0"),
        (lambda: STFT(8, 4, "han"), "expected 'hann', 'sqrt_hann', 'hamming', 'vorbis' or 8 numbers"),
        (lambda: RFFT(8, np.ones(7)), "expected 8 finite numbers"),
        (lambda: RFFT(1), "`size` is 1"),
        (lambda: RFFT(8, form="complex"), "expected 'pairs' or 'polar'"),  # type: ignore[arg-type]
        (lambda: RFFT(8, "hann").inverse(), "has no inverse for a frame alone"),
        (lambda: Mel(4, 8000, 64, low=5000), "0 <= low < high <= 4000"),
        (Log, "the logarithm of 0 is not finite"),
        (lambda: Context(0), "`n` is 0"),
    ],
)
def test_a_wrong_size_or_window_is_refused(make: Any, problem: str) -> None:
    with pytest.raises((ManifestError, UnclearModelError), match=problem):
        make()


def test_values_that_do_not_fit_are_not_multiplied(tmp_path: Path) -> None:
    parts = [STFT(16, 4), Part(rows_model(tmp_path, 9, 2), to="y"), Multiply(of=("y", "inputs.x"))]

    with pytest.raises(UnclearModelError, match=r"Multiply reads rows \[4\] and \[9, 2\]"):
        exported(*parts)


def test_the_latency_of_each_output_stands_in_the_manifest(tmp_path: Path) -> None:
    mask = rows_model(tmp_path, 33, 2, name="mask")
    model = exported(
        STFT(64, 16, "hann", of="x", to="spectrum"),
        Part(mask, of="spectrum"),
        InverseSTFT(64, 16, "hann", of="mask", to="clean"),
        Frames(32, 16, of="inputs.x", to="frame"),
        Magnitude(of="spectrum", to="loudness"),
    )

    late = {spec.name: spec.latency for spec in model.manifest.answered}
    assert late == {"clean": 48, "frame": 0, "loudness": None}
    assert model.manifest.latency == 48


def test_a_lag_adds_its_timesteps_to_the_latency(tmp_path: Path) -> None:
    half = Part(rows_model(tmp_path, 4), to="y")

    behind = exported(Frames(4, 2), half, OverlapAdd(4, 2), Lag(1))
    between = exported(Frames(4, 2), half, Lag(3), OverlapAdd(4, 2))
    in_front = exported(Lag(2, of="x"), Frames(4, 2), half, OverlapAdd(4, 2))

    assert [model.manifest.latency for model in (behind, between, in_front)] == [4, 8, 6]


def test_the_inverse_of_pcm_reads_and_writes_the_same_values_with_the_same_labels() -> None:
    stage = PCM16(of="a", to="b", labels=("l", "r"))

    for made in (stage.inverse(), stage.inverse().inverse()):
        assert (made.of, made.to, made.on, made.labels) == ("a", "b", None, ("l", "r"))


def test_a_mel_band_without_a_bin_is_zero() -> None:
    mel = Mel(128, 16000, 400, scale="htk")

    found = mel.reference(np.ones((1, 1, 201)))[0, 0]

    assert (found == 0).any()
    assert (found >= 0).all()
    assert found.any()
