"""Published graphs are known by their structure, get what they need, and become one graph from samples to samples."""

from __future__ import annotations

import itertools
import runpy
import shutil
import wave
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from stepwell_client import AsyncClient
from stepwell_export.adoption.adopt_file import adopt_file
from stepwell_export.adoption.recipes import recipe_pipeline, recognized
from stepwell_export.exporter import convert_source, export_source
from stepwell_export.runtime.errors import FileError, RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.examples.runs import EXAMPLES
from tests.published import FOLDER

DTLN = [FOLDER / "dtln" / f"model_{half}.onnx" for half in (1, 2)]
SILERO = FOLDER / "silero-vad" / "silero_vad.onnx"
SPECTRAL = {
    "gtcrn": (FOLDER / "gtcrn" / "gtcrn_simple.onnx", 0.5),
    "ul-unas": (FOLDER / "ul-unas" / "ulunas_stream_simple.onnx", 1),
}
"""By recipe: the file as it is published, and the power of a Hann window that its authors use."""

pytestmark = pytest.mark.skipif(not DTLN[0].is_file(), reason="../shared/models is not there")


def recording(seconds: float = 1.0) -> Array:
    """Speech-like samples at 16 kHz: syllables of three tones, in noise."""
    t = np.arange(int(16000 * seconds) // 512 * 512) / 16000
    tones = sum(np.sin(2 * np.pi * pitch * t) for pitch in (140, 710, 1900))
    noise = np.random.default_rng(0).standard_normal(t.size)
    return (0.1 * tones * (np.sin(2 * np.pi * 3 * t) > 0) + 0.02 * noise).astype(np.float32)


def authors_loop(samples: Array) -> Array:
    """DTLN in real time as its authors describe it: blocks of 512 samples, shifted by 128."""
    first, second = (ort.InferenceSession(str(path)) for path in DTLN)
    states = [np.zeros((1, 2, 128, 2), np.float32) for _ in DTLN]
    block, out = np.zeros(512, np.float32), np.zeros(512, np.float32)
    cleaned = np.zeros_like(samples)
    for at in range(0, samples.size, 128):
        block = np.append(block[128:], samples[at : at + 128])
        spectrum = np.fft.rfft(block)
        magnitude = np.abs(spectrum).reshape(1, 1, -1).astype(np.float32)
        mask, states[0] = first.run(None, {"input_2": magnitude, "input_3": states[0]})
        estimate = np.fft.irfft((magnitude * mask).ravel() * np.exp(1j * np.angle(spectrum)))
        clean, states[1] = second.run(
            None, {"input_4": estimate.reshape(1, 1, -1).astype(np.float32), "input_5": states[1]}
        )
        out = np.append(out[128:], np.zeros(128, np.float32)) + clean.ravel()
        cleaned[at : at + 128] = out[:128]
    return cleaned


def loop_over_spectra(file: Path, window: Array, samples: Array) -> Array:
    """A denoiser of spectra in real time as its authors run it: frames of 512 samples, one for each 256."""
    session = ort.InferenceSession(str(file))
    shapes = {one.name: one.shape for one in session.get_inputs()}
    states = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name != "mix"}
    frames, out, cleaned = np.append(np.zeros(256), samples), np.zeros(256), np.zeros(samples.size)
    for at in range(0, samples.size, 256):
        spectrum = np.fft.rfft(frames[at : at + 512] * window)
        pairs = np.stack([spectrum.real, spectrum.imag], -1).reshape(1, 257, 1, 2).astype(np.float32)
        clean, *after = session.run(None, {"mix": pairs, **states})
        states = dict(zip(states, after, strict=True))
        frame = np.fft.irfft(clean[0, :, 0, 0] + 1j * clean[0, :, 0, 1]) * window
        cleaned[at : at + 256] = (out + frame[:256]) / (window[:256] ** 2 + window[256:] ** 2)
        out = frame[256:]
    return cleaned


async def in_pieces(file: Path, rows: Array) -> list[Array]:
    """Return what a model answers by POST to pieces of several sizes, and over the feed to one row after the other."""
    ends = [0, *(end for end in (1, 8, 300, 812) if end < len(rows)), len(rows)]
    async with AsyncClient(":memory:", models=file.parent, settings={"model_probe_s": 0}) as client:
        model = client.model(file.stem)
        chunks = [await model.stream("a").steps(rows[i:j]) for i, j in itertools.pairwise(ends)]
        async with model.feed() as feed:
            timesteps = [await feed.step("b", row) for row in rows]
    return [np.concatenate([answer.output.ravel() for answer in answers]) for answers in (chunks, timesteps)]


def renamed_and_retrained(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give all tensors of a graph other names, and its weights other values."""

    def rename(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [name and f"t_{name}" for name in node.input]
            node.output[:] = [name and f"t_{name}" for name in node.output]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    rename(attribute.g)
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = f"t_{value.name}"
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype.kind == "f":
                tensor.CopyFrom(numpy_helper.from_array((array * 0.9).astype(array.dtype), tensor.name))

    rename(model.graph)
    return model


@pytest.mark.parametrize(
    ("file", "name"), [(DTLN[0], "dtln-1"), (DTLN[1], "dtln-2"), (SILERO, "silero-vad")], ids=["1", "2", "vad"]
)
def test_a_graph_with_other_names_and_weights_is_known(file: Path, name: str) -> None:
    found = recognized(renamed_and_retrained(onnx.load(file)))

    assert found is not None
    assert found[0].name == name


def test_a_look_alike_is_not_known() -> None:
    model = onnx.load(DTLN[0])
    sigmoid = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    sigmoid.op_type = "Tanh"
    assert recognized(model) is None

    smaller = onnx.load(DTLN[0])
    bias = next(tensor for tensor in smaller.graph.initializer if list(tensor.dims) == [257])
    bias.CopyFrom(numpy_helper.from_array(np.zeros(256, np.float32), bias.name))
    assert recognized(smaller) is None


def test_a_known_graph_gets_what_it_needs_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "anything.onnx"
    shutil.copyfile(SILERO, path)

    found = adopt_file(path)

    assert found.recipe is not None
    assert found.recipe.name == "silero-vad"
    manifest = found.manifest
    assert (manifest.windows[0].context, manifest.inputs[0].shape) == (64, [512])
    assert manifest.constants["sr"].value == 16000
    other = adopt_file(path, constants={"sr": 8000}, windows={"input": 32}, shapes={"input": [256]})
    assert (other.manifest.windows[0].context, other.manifest.constants["sr"].value) == (32, 8000)
    assert "recipe silero-vad has --window input=64; 32 was given" in other.adoption.notes
    with pytest.raises(UnclearModelError):
        adopt_file(path, use_recipe=False)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dtln") / "dtln.onnx"
    done = export_source(f"recipe:dtln={DTLN[0]},{DTLN[1]}", path)
    assert not done.report.weak
    return path


def test_the_example_writes_a_recording_without_noise(tmp_path: Path) -> None:
    export_source(f"recipe:dtln={DTLN[0]},{DTLN[1]}", tmp_path / "models" / "dtln.onnx", pcm16=True)
    samples = (recording() * 32767).astype("<i2")
    with wave.open(str(tmp_path / "noisy.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    example = runpy.run_path(str(EXAMPLES / "denoise.py"))

    example["main"](str(tmp_path / "noisy.wav"), str(tmp_path / "clean.wav"), str(tmp_path / "models"))

    with wave.open(str(tmp_path / "clean.wav")) as file:
        cleaned = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    padded = np.append(samples / 32768, np.zeros(384)).astype(np.float32)
    np.testing.assert_allclose(cleaned / 32768, authors_loop(padded)[384:], atol=2 / 32768)


def test_the_example_finds_speech_where_silero_does(tmp_path: Path) -> None:
    export_source(f"recipe:silero={SILERO}", tmp_path / "models" / "voice.onnx", pcm16=True)
    kept = np.load(SILERO.with_suffix(".reference.npz"))
    samples = np.round(kept["x:input"][:, 0, 64:].ravel() * 32768).clip(-32768, 32767).astype("<i2")
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    example = runpy.run_path(str(EXAMPLES / "voice.py"))

    found = example["main"](
        str(tmp_path / "speech.wav"), str(tmp_path / "voice.svg"), ":memory:", models=tmp_path / "models"
    )

    np.testing.assert_allclose(found, kept["y:output"].ravel(), atol=1e-3)
    assert "<svg" in (tmp_path / "voice.svg").read_text()


async def test_silero_from_samples_to_speech_equals_its_own_loop_in_pieces_of_any_size(tmp_path: Path) -> None:
    export_source(f"recipe:silero={SILERO}", tmp_path / "vad.onnx")
    model, rows = StepModel(tmp_path / "vad.onnx"), recording().reshape(-1, 512)
    session = ort.InferenceSession(str(SILERO))
    context, state = np.zeros(64, np.float32), np.zeros((2, 1, 128), np.float32)
    want: list[float] = []
    for row in rows:
        sent = np.append(context, row)[None]
        answer, state = session.run(None, {"input": sent, "state": state, "sr": np.array(16000)})
        context, want = row[-64:], [*want, answer.item()]

    assert model.manifest.latency is None
    for found in await in_pieces(tmp_path / "vad.onnx", rows):
        np.testing.assert_allclose(found, want, atol=1e-4)


def test_samples_of_a_recipe_may_have_16_bits() -> None:
    manifest = convert_source(recipe_pipeline(f"recipe:dtln={DTLN[0]},{DTLN[1]}", pcm16=True), name="m").manifest

    assert [spec.dtype for spec in (*manifest.inputs, *manifest.answered)] == ["int16", "int16"]
    with pytest.raises(UnclearModelError, match="int16 samples are for recipes"):
        export_source(DTLN[0], "m.onnx", pcm16=True)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("recipe:dtlm=a.onnx", "is no recipe; expected recipe:dtln=FILE,FILE, recipe:gtcrn=FILE"),
        (f"recipe:dtln={DTLN[0]}", "is no recipe"),
        (f"recipe:dtln={DTLN[1]},{DTLN[0]}", "is the graph of dtln-2; expected dtln-1"),
        (f"recipe:gtcrn={SILERO}", "is the graph of silero-vad; expected gtcrn"),
    ],
)
def test_a_wrong_file_or_recipe_is_refused(source: str, problem: str) -> None:
    with pytest.raises(RefusedModelError, match=problem):
        recipe_pipeline(source)
    with pytest.raises(FileError):
        recipe_pipeline("recipe:silero=nothing.onnx")


async def test_ten_seconds_in_pieces_of_any_size_equal_the_authors_loop(denoiser: Path) -> None:
    samples = recording(10)
    want = authors_loop(samples)

    for found in await in_pieces(denoiser, samples.reshape(-1, 128)):
        np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("name", SPECTRAL)
async def test_a_denoiser_of_spectra_equals_its_authors_loop_in_pieces_of_any_size(name: str, tmp_path: Path) -> None:
    file, power = SPECTRAL[name]
    if not file.is_file():
        pytest.skip(f"{file.name}, which its authors publish, is not available in ../shared/models/{name}")
    samples, window = recording(4), (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)) ** power
    export_source(f"recipe:{name}={file}", tmp_path / "model.onnx")

    assert StepModel(tmp_path / "model.onnx").manifest.latency == 256
    for found in await in_pieces(tmp_path / "model.onnx", samples.reshape(-1, 256)):
        np.testing.assert_allclose(found, loop_over_spectra(file, window, samples), atol=1e-5)
