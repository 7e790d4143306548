"""Stages on samples: PCM, frames, context, overlap-add, and the STFT with its inverse."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stepwell_export.runtime.errors import ManifestError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.stages.spectra import RFFT, AudioStage, Form, InverseRFFT
from stepwell_export.stages.stage import ManyValued, Row, Stage, count
from stepwell_export.stages.window_functions import Window, check_hop, window_of

if TYPE_CHECKING:
    from stepwell_export.graph.builder import GraphBuilder

_FULL_SCALE = 32768.0


@dataclass(frozen=True, eq=False)
class PCM16(AudioStage):
    """16-bit samples to numbers from -1 to 1: `x / 32768`; `int16` to `float32`."""

    takes: ClassVar[str] = "int16"
    samples: ClassVar[bool | None] = True

    def reference(self, values: Array) -> Array:
        return np.asarray(values / _FULL_SCALE)

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        del row
        return graph.op("Mul", graph.cast(x, "float32"), graph.constant(1 / _FULL_SCALE, "float32"))

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return _pcm(values)

    def labels_after(self, labels: Sequence[str]) -> list[str]:
        return list(labels)

    def inverse(self) -> _InversePCM16:
        """Return the stage that makes 16-bit samples: it rounds half to even, and clips to -32768..32767."""
        return _InversePCM16(of=self.of, to=self.to, on=self.on, labels=self.labels)


@dataclass(frozen=True, eq=False)
class _InversePCM16(AudioStage):
    """The inverse of PCM16."""

    returns: ClassVar[str] = "int16"
    samples: ClassVar[bool | None] = True

    @property
    def title(self) -> str:
        return "PCM16.inverse"

    def reference(self, values: Array) -> Array:
        return _pcm(values)

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        del row
        scaled = graph.op("Round", graph.op("Mul", x, graph.constant(_FULL_SCALE, "float32")))
        low, high = (graph.constant(end, "float32") for end in (-_FULL_SCALE, _FULL_SCALE - 1))
        return graph.op("Clip", scaled, low, high)

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return np.asarray(values / _FULL_SCALE)

    def inverse(self) -> PCM16:
        """Return PCM16."""
        return PCM16(of=self.of, to=self.to, on=self.on, labels=self.labels)


def _pcm(values: Array) -> Array:
    return np.clip(np.round(values * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)


def _joined(graph: GraphBuilder, name: str, x: str, past: int, hop: int) -> str:
    """Emit the last samples and the new ones, `(batch, past + hop)`, float32."""
    if not past:
        return x
    state = graph.state(name, (past,))
    joined = graph.op("Concat", state.input, x, axis=1)
    graph.next_state(state, graph.op("Slice", joined, graph.ints([hop]), graph.ints([hop + past]), graph.ints([1])))
    return joined


@dataclass(frozen=True, eq=False)
class Frames(AudioStage):
    """The last `size` samples, the newest one last: rows `(hop,)` -> `(size,)`; zeros before the stream.

    Attributes:
        size: Samples of a frame.
        hop: New samples of each timestep, at most `size`.
    """

    size: int
    hop: int

    samples: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: One is no whole number, or `hop` is larger than `size`.
        """
        count("size", self.size)
        count("hop", self.hop)
        check_hop(self.size, self.hop)

    @property
    def row(self) -> Row:
        return (self.hop,)

    def row_before(self, row: Row) -> Row:
        self._must_be(row, (self.size,), "Give Frames the size that the model takes.")
        return (self.hop,)

    def row_after(self, row: Row) -> Row:
        self._must_be(row, (self.hop,), "Send `hop` samples in each timestep.")
        return (self.size,)

    def reference(self, values: Array) -> Array:
        rows, steps = values.shape[:2]
        samples = np.concatenate([np.zeros((rows, self.size - self.hop)), values.reshape(rows, -1)], axis=1)
        return sliding_window_view(samples, self.size, axis=1)[:, :: self.hop][:, :steps]

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        del row
        return _joined(graph, f"{self.title}.past", x, self.size - self.hop, self.hop)

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return values[..., -self.hop :]


@dataclass(frozen=True, eq=False)
class Context(AudioStage):
    """The samples before the row in front of it: rows `(m,)` -> `(n + m,)`; zeros before the stream.

    Attributes:
        n: How many samples; they may be more than a row has.
    """

    n: int

    samples: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        """Check the parameter.

        Raises:
            ManifestError: It is no whole number of at least 1.
        """
        count("n", self.n)

    def row_before(self, row: Row) -> Row:
        if len(row) != 1 or row[0] <= self.n:
            raise UnclearModelError(
                f"Context({self.n}) returns more than {self.n} samples; the row after it has shape {list(row)}.",
                fix="Give fewer samples of context.",
            )
        return (row[0] - self.n,)

    def row_after(self, row: Row) -> Row:
        if len(row) != 1:
            raise UnclearModelError(
                f"Context takes rows of samples; a row there has shape {list(row)}.", fix="Put it behind samples."
            )
        return (row[0] + self.n,)

    def reference(self, values: Array) -> Array:
        hop = values.shape[-1]
        return Frames(self.n + hop, hop).reference(values)

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        return _joined(graph, f"{self.title}.past", x, self.n, row[0])

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return values[..., self.n :]


@dataclass(frozen=True, eq=False)
class OverlapAdd(AudioStage):
    """Adds overlapping frames, and returns the samples that no later frame adds to: rows `(size,)` -> `(hop,)`.

    Its newest sample is `size - hop` samples older than the newest one of the frame.

    Attributes:
        size: Samples of a frame.
        hop: Samples between the beginnings of two frames; it divides `size`.
        window: If given, sums are divided by those of its squares over all `size / hop` frames, at the beginning too.
    """

    size: int
    hop: int
    window: Window = None

    samples: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: One is not as it is described, or the window's squares add up to almost nothing somewhere.
        """
        count("size", self.size)
        count("hop", self.hop)
        check_hop(self.size, self.hop, divides=True)
        sums = self._sums()
        if sums is not None and sums.min() < 1e-3 * sums.max():
            raise ManifestError(
                f"The squares of `window` over frames at every {self.hop} samples add up to "
                f"{sums.min() / sums.max():.1g} of their largest sum at sample {int(sums.argmin())}; expected at least "
                "0.001.",
                fix=f"Give a smaller `hop`, such as {max(self.size // 4, 1)}, or another window.",
            )

    def _sums(self) -> Array | None:
        window = window_of(self.window, self.size)
        return None if window is None else (window**2).reshape(-1, self.hop).sum(axis=0)

    @property
    def delay(self) -> int:
        """How many samples later a sample leaves it."""
        return self.size - self.hop

    @property
    def row(self) -> Row:
        return (self.size,)

    def row_before(self, row: Row) -> Row:
        self._must_be(row, (self.hop,), "Give OverlapAdd the hop of the samples behind it.")
        return (self.size,)

    def row_after(self, row: Row) -> Row:
        self._must_be(row, (self.size,), "Give OverlapAdd the size of the frames.")
        return (self.hop,)

    def reference(self, values: Array) -> Array:
        rows, steps = values.shape[:2]
        total = np.zeros((rows, steps + self.size // self.hop - 1, self.hop))
        for part in range(self.size // self.hop):
            total[:, part : part + steps] += values[..., part * self.hop : (part + 1) * self.hop]
        sums = self._sums()
        return total[:, :steps] if sums is None else total[:, :steps] / sums

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        del row
        if self.size > self.hop:
            past = graph.state(f"{self.title}.sum", (self.size - self.hop,))
            begin, cut, end, axis = (graph.ints([at]) for at in (0, self.size - self.hop, self.size, 1))
            old = graph.op("Add", graph.op("Slice", x, begin, cut, axis), past.input)
            total = graph.op("Concat", old, graph.op("Slice", x, cut, end, axis), axis=1)
            hop = graph.ints([self.hop])
            graph.next_state(past, graph.op("Slice", total, hop, end, axis))
            x = graph.op("Slice", total, begin, hop, axis)
        sums = self._sums()
        return x if sums is None else graph.op("Mul", x, graph.constant(1 / sums, "float32"))

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        window = window_of(self.window, self.size)
        return np.tile(values, self.size // self.hop) * (self.hop / self.size if window is None else window)


@dataclass(frozen=True, eq=False)
class _Chain(ManyValued, AudioStage):
    """Two stages, one behind the other."""

    @abstractmethod
    def parts(self) -> tuple[Stage, Stage]:
        """Return both, in order."""

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: One is not as it is described.
        """
        self.parts()

    @property
    def sources(self) -> list[str | None]:
        return self.parts()[0].sources

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]
        first, second = self.parts()
        return second.gives or first.gives

    @property
    def delay(self) -> int:
        """How many samples later a sample leaves it."""
        return sum(part.delay for part in self.parts())

    @property
    def row(self) -> Row | None:
        return self.parts()[0].row

    def row_before(self, row: Row) -> Row:
        first, second = self.parts()
        return first.row_before(second.row_before(row))

    def rows_after(self, rows: Sequence[Row]) -> list[Row]:
        first, second = self.parts()
        return second.rows_after(first.rows_after(rows))

    def references(self, values: Sequence[Array]) -> list[Array]:
        first, second = self.parts()
        return second.references(first.references(values))

    def emit_all(self, graph: GraphBuilder, xs: Sequence[str], rows: Sequence[Row]) -> list[str]:
        first, second = self.parts()
        return second.emit_all(graph, first.emit_all(graph, xs, rows), first.rows_after(rows))

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        first, second = self.parts()
        return first.draw_before(rng, second.draw_before(rng, values))


@dataclass(frozen=True, eq=False)
class STFT(_Chain):
    """The FFT of the last `size` samples: `Frames`, then `RFFT`; rows `(hop,)` -> `(size // 2 + 1, 2)`.

    It equals `torch.stft(center=False)` over the sequence with `size - hop` zeros in front of it.

    Attributes:
        size: Samples of a frame.
        hop: New samples of each timestep, at most `size`.
        window: What each sample of a frame is multiplied with.
        form: `pairs` or `polar`, as for `RFFT`.
    """

    size: int
    hop: int
    window: Window = None
    form: Form = "pairs"

    def parts(self) -> tuple[Stage, Stage]:
        named = self.of if self.of is not None else self.on
        return Frames(self.size, self.hop, of=named), RFFT(self.size, self.window, self.form)

    def inverse(self) -> InverseSTFT:
        """Return the inverse, which is late by `size - hop` samples."""
        return InverseSTFT(self.size, self.hop, self.window, self.form)


@dataclass(frozen=True, eq=False)
class InverseSTFT(_Chain):
    """The samples of a spectrum: `InverseRFFT`, then `OverlapAdd`; rows `(size // 2 + 1, 2)` -> `(hop,)`.

    `InverseSTFT(STFT(x))` is x, `size - hop` samples later. In polar form it reads the values `magnitude` and `phase`,
    and its value is called `samples`.

    Attributes:
        size: Samples of a frame.
        hop: Samples of each timestep; it divides `size`.
        window: The window of the STFT, which samples are multiplied with again; sums are divided by those of its
            squares, or by the number of frames without one.
        form: `pairs` or `polar`, as for `RFFT`.
    """

    size: int
    hop: int
    window: Window = None
    form: Form = "pairs"

    samples: ClassVar[bool | None] = True

    def parts(self) -> tuple[Stage, Stage]:
        named = self.of if self.of is not None else self.on
        window = np.ones(count("size", self.size)) if self.window is None else self.window
        return InverseRFFT(self.size, self.window, self.form, of=named), OverlapAdd(self.size, self.hop, window)

    def inverse(self) -> STFT:
        """Return the STFT; it is late by `size - hop` samples."""
        return STFT(self.size, self.hop, self.window, self.form)
