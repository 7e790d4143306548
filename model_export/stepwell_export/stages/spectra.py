"""Stages from samples to spectra and back: FFT, magnitude, power, mel bands, logarithm.

A spectrum of `size` samples has `size // 2 + 1` bins: as pairs of real and imaginary part, or as magnitude and phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from stepwell_export.runtime.errors import ManifestError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.stages.stage import ManyValued, Row, Stage, choice, count, number
from stepwell_export.stages.window_functions import Window, window_of

if TYPE_CHECKING:
    from stepwell_export.graph.builder import GraphBuilder

Form = Literal["pairs", "polar"]
POLAR = ("magnitude", "phase")
"""The names of the two values of a spectrum in polar form."""


@dataclass(frozen=True, eq=False)
class AudioStage(Stage):
    """A stage in float32 whose labels name nothing behind it."""

    computes: ClassVar[str] = "float32"
    samples: ClassVar[bool | None] = False

    def labels_after(self, labels: Sequence[str]) -> list[str]:
        del labels
        return []

    def _must_be(self, row: Row, expected: Row, fix: str) -> None:
        if row != expected:
            raise UnclearModelError(
                f"{self.title} takes rows {list(expected)}; a row there has shape {list(row)}.", fix=fix
            )


@dataclass(frozen=True, eq=False)
class _FFT(ManyValued, AudioStage):
    """What both directions have.

    Attributes:
        size: Samples of a frame, at least 2; it may be odd.
        window: What each sample is multiplied with.
        form: `pairs`: one value, rows `(size // 2 + 1, 2)`. `polar`: two values, `magnitude` and `phase`, rows
            `(size // 2 + 1,)`.
    """

    size: int
    window: Window = None
    form: Form = "pairs"

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: One is not as it is described.
        """
        count("size", self.size, 2)
        window_of(self.window, self.size)
        choice("form", self.form, ("pairs", "polar"))

    @property
    def _bins(self) -> int:
        return self.size // 2 + 1

    @property
    def _spectrum(self) -> list[Row]:
        return [(self._bins,)] * 2 if self.form == "polar" else [(self._bins, 2)]

    def _weights(self) -> Array:
        window = window_of(self.window, self.size)
        return np.ones(self.size) if window is None else window


@dataclass(frozen=True, eq=False)
class RFFT(_FFT):
    """The FFT of a frame of real samples; `numpy.fft.rfft(frame * window)`.

    It is a product with a matrix, which the window is a part of. On one core, for 64 rows of 512 samples, that takes
    0.20 ms and onnxruntime's operator DFT 0.47 ms; of 320 samples, 0.09 and 2.3 ms (`python -m benchmarks.fft`), where
    the operator also has errors of 1e-3. For a single row of 1,024 samples the operator is quicker: 0.03 to 0.19 ms.

    Phases are in (-pi, pi], 0 where the magnitude is 0. The imaginary parts of bin 0 and bin `size / 2` are +0.
    """

    @property
    def row(self) -> Row:
        return (self.size,)

    def row_before(self, row: Row) -> Row:
        self._must_be(row, self._spectrum[0], "Give RFFT the size of the model's spectrum.")
        return (self.size,)

    def rows_after(self, rows: Sequence[Row]) -> list[Row]:
        self._must_be(rows[0], (self.size,), f"Put Frames({self.size}, hop) in front of it.")
        return self._spectrum

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]
        return POLAR if self.form == "polar" else ()

    def references(self, values: Sequence[Array]) -> list[Array]:
        found = np.fft.rfft(values[0] * self._weights())
        imag = found.imag.copy()
        imag[..., 0] = 0
        if self.size % 2 == 0:
            imag[..., -1] = 0
        if self.form == "pairs":
            return [np.stack([found.real, imag], axis=-1)]
        magnitude = np.hypot(found.real, imag)
        return [magnitude, np.where(magnitude == 0, 0, np.arctan2(imag + 0.0, found.real))]

    def emit_all(self, graph: GraphBuilder, xs: Sequence[str], rows: Sequence[Row]) -> list[str]:
        del rows
        matrix = np.fft.rfft(np.diag(self._weights()))
        real, imag = matrix.real, matrix.imag + 0.0
        if self.form == "pairs":
            pairs = np.stack([real, imag], axis=-1).reshape(self.size, -1)
            product = graph.op("MatMul", xs[0], graph.constant(pairs, "float32"))
            return [graph.reshape(product, self._spectrum[0])]
        re, im = (graph.op("MatMul", xs[0], graph.constant(part, "float32")) for part in (real, imag))
        magnitude = _length(graph, re, im)
        return [magnitude, _angle(graph, re, im, magnitude)]

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        if self.form == "pairs":
            spectrum = values[..., 0] + 1j * values[..., 1]
        else:
            spectrum = values * np.exp(2j * np.pi * rng.random(values.shape))
        return np.fft.irfft(spectrum, self.size)

    def inverse(self) -> InverseRFFT:
        """Return the inverse FFT.

        Raises:
            UnclearModelError: There is a window: frames are put together by InverseSTFT then.
        """
        if self.window is not None:
            raise UnclearModelError(
                "RFFT with a window has no inverse for a frame alone.", fix="Use STFT and InverseSTFT."
            )
        return InverseRFFT(self.size, form=self.form)


@dataclass(frozen=True, eq=False)
class InverseRFFT(_FFT):
    """The inverse FFT of a spectrum, times the window; `numpy.fft.irfft(spectrum, size) * window`.

    In polar form it reads the values `magnitude` and `phase`, and its value is called `samples`. It is a product with
    a matrix, as `RFFT` is.
    """

    samples: ClassVar[bool | None] = True

    @property
    def row(self) -> Row:
        return self._spectrum[0]

    @property
    def sources(self) -> list[str | None]:
        if self.form == "polar" and self.of is None and self.on is None:
            return [*POLAR]
        return super().sources

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("samples",) if self.form == "polar" else ()

    def row_before(self, row: Row) -> Row:
        self._must_be(row, (self.size,), "Give InverseRFFT the size of the model's frame.")
        return self._spectrum[0]

    def rows_after(self, rows: Sequence[Row]) -> list[Row]:
        for row, expected in zip(rows, self._spectrum, strict=True):
            self._must_be(row, expected, "Give InverseRFFT the size of the frame that the spectrum is of.")
        return [(self.size,)]

    def references(self, values: Sequence[Array]) -> list[Array]:
        if self.form == "polar":
            magnitude, phase = values
            spectrum = magnitude * np.cos(phase) + 1j * (magnitude * np.sin(phase))
        else:
            spectrum = values[0][..., 0] + 1j * values[0][..., 1]
        return [np.fft.irfft(spectrum, self.size) * self._weights()]

    def emit_all(self, graph: GraphBuilder, xs: Sequence[str], rows: Sequence[Row]) -> list[str]:
        del rows
        bins, has_middle = self._bins, self.size % 2 == 0
        used = np.arange(1, bins - 1 if has_middle else bins)  # of the others numpy ignores the imaginary part
        real, imag = (np.fft.irfft(unit * np.eye(bins), self.size) * self._weights() for unit in (1, 1j))
        if self.form == "pairs":
            places = np.concatenate([2 * np.arange(bins), 2 * used + 1])
            flat = graph.reshape(xs[0], [2 * bins])
            parts = graph.op("Gather", flat, graph.constant(places, "int64"), axis=1)
        else:
            magnitude, phase = xs
            re, im = (graph.op("Mul", magnitude, graph.op(kind, phase)) for kind in ("Cos", "Sin"))
            im = graph.op("Slice", im, graph.ints([1]), graph.ints([1 + len(used)]), graph.ints([1]))
            parts = graph.op("Concat", re, im, axis=1)
        return [graph.op("MatMul", parts, graph.constant(np.concatenate([real, imag[used]]), "float32"))]

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        spectrum = np.fft.rfft(values)
        return np.abs(spectrum) if self.form == "polar" else np.stack([spectrum.real, spectrum.imag], axis=-1)

    def inverse(self) -> RFFT:
        """Return the FFT.

        Raises:
            UnclearModelError: There is a window.
        """
        if self.window is not None:
            raise UnclearModelError(
                "InverseRFFT with a window has no inverse for a frame alone.", fix="Use STFT and InverseSTFT."
            )
        return RFFT(self.size, form=self.form)


@dataclass(frozen=True, eq=False)
class Magnitude(AudioStage):
    """The magnitude of each pair: rows `(.., 2)` -> `(..)`."""

    def row_before(self, row: Row) -> Row:
        return (*row, 2)

    def row_after(self, row: Row) -> Row:
        if row[-1:] != (2,):
            raise UnclearModelError(
                f"{self.title} takes pairs of real and imaginary part; a row there has shape {list(row)}.",
                fix="Put RFFT or STFT with `form='pairs'` in front of it.",
            )
        return row[:-1]

    def reference(self, values: Array) -> Array:
        return np.hypot(values[..., 0], values[..., 1])

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        return graph.op("Sqrt", _squares(graph, x, row))

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        angle = 2 * np.pi * rng.random(values.shape)
        return np.stack([values * np.cos(angle), values * np.sin(angle)], axis=-1)


@dataclass(frozen=True, eq=False)
class Power(Magnitude):
    """The squared magnitude of each pair: rows `(.., 2)` -> `(..)`."""

    def reference(self, values: Array) -> Array:
        return np.asarray(values[..., 0] ** 2 + values[..., 1] ** 2)

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        return _squares(graph, x, row)

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return super().draw_before(rng, np.sqrt(np.abs(values)))


@dataclass(frozen=True, eq=False)
class Mel(AudioStage):
    """Mel bands of a spectrum's magnitudes or powers; `librosa.filters.mel`. A band so narrow that it has no bin is 0.

    Attributes:
        bands: How many bands.
        sample_rate: Samples in a second.
        size: Samples of the frame that the spectrum is of; rows are `(size // 2 + 1,)` -> `(bands,)`.
        low: The lowest frequency, Hz.
        high: The highest one; None: half of the sample rate.
        scale: The scale of frequencies: `slaney` (linear to 1 kHz) or `htk`.
        norm: `slaney`: each band has area 1. None: each has the peak 1.
    """

    bands: int
    sample_rate: float
    size: int
    low: float = 0.0
    high: float | None = None
    scale: Literal["slaney", "htk"] = "slaney"
    norm: Literal["slaney"] | None = "slaney"

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: One is not as it is described.
        """
        count("bands", self.bands)
        count("size", self.size, 2)
        choice("scale", self.scale, ("slaney", "htk"))
        choice("norm", self.norm, ("slaney", None))
        rate, low = number("sample_rate", self.sample_rate), number("low", self.low)
        high = rate / 2 if self.high is None else number("high", self.high)
        if not 0 <= low < high <= rate / 2:
            raise ManifestError(
                f"`low` is {low:g} Hz and `high` {high:g} Hz; expected 0 <= low < high <= {rate / 2:g}, half of the "
                "sample rate.",
                fix="Give frequencies in that range.",
            )

    def _matrix(self) -> Array:
        """Return the weights of bins in bands, shape `(size // 2 + 1, bands)`."""
        high = self.sample_rate / 2 if self.high is None else self.high
        to_mel, to_hz = (_htk_mel, _htk_hz) if self.scale == "htk" else (_slaney_mel, _slaney_hz)
        first, last = to_mel(np.array([self.low, high], np.float64))
        ends = to_hz(np.linspace(float(first), float(last), self.bands + 2))
        bins = np.arange(self.size // 2 + 1) * (self.sample_rate / self.size)
        slopes, widths = ends[None, :] - bins[:, None], np.diff(ends)
        rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
        weights = np.maximum(0, np.minimum(rising, falling))
        return np.asarray(weights * (2 / (ends[2:] - ends[:-2])) if self.norm else weights)

    @property
    def row(self) -> Row:
        return (self.size // 2 + 1,)

    def row_before(self, row: Row) -> Row:
        self._must_be(row, (self.bands,), "Give Mel the number of bands that the model takes.")
        return (self.size // 2 + 1,)

    def row_after(self, row: Row) -> Row:
        self._must_be(row, (self.size // 2 + 1,), "Put Magnitude() or Power() of a spectrum of that size in front.")
        return (self.bands,)

    def reference(self, values: Array) -> Array:
        return np.asarray(values @ self._matrix())

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        del row
        return graph.op("MatMul", x, graph.constant(self._matrix(), "float32"))

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return np.abs(values @ np.linalg.pinv(self._matrix()))


@dataclass(frozen=True, eq=False)
class Log(AudioStage):
    """The logarithm of each number: `log(x + offset)`, or `log(max(x, floor))`.

    Attributes:
        offset: What is added first.
        floor: The smallest number that the logarithm is taken of, above 0; None: there is none.
        base: The base; None: the natural logarithm.
    """

    offset: float = 0.0
    floor: float | None = None
    base: float | None = None

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: `floor` or `base` is not above 0, or there is neither offset nor floor.
        """
        offset = number("offset", self.offset)
        for name, value, wrong in (("floor", self.floor, ()), ("base", self.base, (1.0,))):
            if value is not None and (not number(name, value) > 0 or number(name, value) in wrong):
                raise ManifestError(f"`{name}` is {value!r}; expected a number above 0.", fix=f"Give `{name}=10`.")
        if offset <= 0 and self.floor is None:
            raise ManifestError(
                f"`offset` is {offset:g} and there is no `floor`; the logarithm of 0 is not finite.",
                fix="Give `Log(1e-6)` or `Log(floor=1e-10)`.",
            )

    @property
    def _scale(self) -> float:
        return 1.0 if self.base is None else float(1 / np.log(self.base))

    def reference(self, values: Array) -> Array:
        values = values + self.offset
        return np.log(values if self.floor is None else np.maximum(values, self.floor)) * self._scale

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        del row
        if self.offset:
            x = graph.op("Add", x, graph.constant(self.offset, "float32"))
        if self.floor is not None:
            x = graph.op("Max", x, graph.constant(self.floor, "float32"))
        x = graph.op("Log", x)
        return x if self.base is None else graph.op("Mul", x, graph.constant(self._scale, "float32"))

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return np.exp(values / self._scale) - self.offset

    def labels_after(self, labels: Sequence[str]) -> list[str]:
        return list(labels)


# ---------------------------------------------------------------- in the graph


def _squares(graph: GraphBuilder, pairs: str, row: Row) -> str:
    """Emit the sum of the squares of each pair."""
    return graph.op("ReduceSum", graph.op("Mul", pairs, pairs), graph.ints([len(row)]), keepdims=0)


def _length(graph: GraphBuilder, re: str, im: str) -> str:
    squares = graph.op("Add", graph.op("Mul", re, re), graph.op("Mul", im, im))
    return graph.op("Sqrt", squares)


def _angle(graph: GraphBuilder, re: str, im: str, magnitude: str) -> str:
    """Emit the phase in (-pi, pi], 0 where the magnitude is 0."""
    zero, pi = graph.constant(0.0, "float32"), graph.constant(np.pi, "float32")
    minus_pi = graph.constant(-np.pi, "float32")
    half = graph.op("Where", graph.op("Less", im, zero), minus_pi, pi)
    turn = graph.op("Where", graph.op("Less", re, zero), half, zero)
    angle = graph.op("Add", graph.op("Atan", graph.op("Div", im, re)), turn)
    angle = graph.op("Where", graph.op("Greater", angle, minus_pi), angle, pi)
    return graph.op("Where", graph.op("Equal", magnitude, zero), zero, angle)


# ---------------------------------------------------------------- the scales of mel


def _htk_mel(hz: Array) -> Array:
    return np.asarray(2595 * np.log10(1 + hz / 700))


def _htk_hz(mel: Array) -> Array:
    return np.asarray(700 * (10 ** (mel / 2595) - 1))


_LINEAR_HZ, _LINEAR_TO, _LOG_STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _slaney_mel(hz: Array) -> Array:
    above = _LINEAR_TO / _LINEAR_HZ + np.log(np.maximum(hz, _LINEAR_TO) / _LINEAR_TO) / _LOG_STEP
    return np.where(hz < _LINEAR_TO, hz / _LINEAR_HZ, above)


def _slaney_hz(mel: Array) -> Array:
    knee = _LINEAR_TO / _LINEAR_HZ
    return np.where(mel < knee, mel * _LINEAR_HZ, _LINEAR_TO * np.exp(_LOG_STEP * (mel - knee)))
