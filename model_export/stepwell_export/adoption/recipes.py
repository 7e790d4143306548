"""Published graphs that are known by their structure, and what they need to be stepped.

`adopt` sets what a graph needs by its recipe; `export recipe:NAME=FILE` makes one graph from samples to samples of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stepwell_export.adoption.overrides import Overrides
from stepwell_export.adoption.structure_digest import structure_digest
from stepwell_export.graph.onnx_file import read_model
from stepwell_export.runtime.errors import FileError, RefusedModelError
from stepwell_export.stages.arithmetic import Multiply
from stepwell_export.stages.audio import PCM16, STFT, Context, Frames, InverseSTFT, OverlapAdd
from stepwell_export.stages.columns import Select
from stepwell_export.stages.pipeline import Part, Pipeline
from stepwell_export.stages.spectra import RFFT, InverseRFFT

if TYPE_CHECKING:
    from stepwell_export.converted import ConvertedModel

RATE = 16_000
"""Samples in a second that all of them are for."""

_ALONE: Final = ("v3",)
"""Versions of silero-vad that run one row at a time: together, rows differ in the last digits of small answers."""

SAMPLES = "samples"
_LAST = f"{SAMPLES}.out"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published graph.

    Attributes:
        name: Its name.
        what: What it does, from which input.
        source: Where it is published, with its licence.
        digests: Of its structure, for each version that is known, with the version.
        hop: New samples, or frames of a spectrum, of one timestep.
        context: By version, how many samples of the row before the graph takes in front.
    """

    name: str
    what: str
    source: str
    digests: Mapping[str, str]
    hop: int
    context: Mapping[str, int] = field(default_factory=dict)

    def overrides(self, model: Any, version: str) -> Overrides:
        """Return what the graph does not declare itself."""
        if self.name != "silero-vad":
            return Overrides()
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.input}
        audio = next(name for name, rank in ranks.items() if rank == 2)
        context = self.context[version]
        return Overrides(
            constants={name: RATE for name, rank in ranks.items() if not rank},
            windows={audio: context} if context else {},
            shapes={audio: (self.hop,)},
        )


RECIPES: Final[Sequence[Recipe]] = (
    Recipe(
        "silero-vad",
        "speech probability of 512 samples at 16 kHz",
        "https://github.com/snakers4/silero-vad (MIT)",
        {
            "3d6ad3da8ce110d9": "v3",
            "a3ed1a2e0aa27ad6": "v4",
            "bdd1d4db0ec6de25": "v4",
            "38e0a670b175f9b7": "v5 or v6",
            "bde47ef3a3f39508": "v5 or v6",
            "11e17bf64819bcfd": "v5 or v6",
            "401799acd0ae73d0": "v5 or v6",
            "42128b58b3dcf30b": "v5 or v6",
        },
        hop=512,
        context={"v3": 0, "v4": 0, "v5 or v6": 64},
    ),
    Recipe(
        "dtln-1",
        "first half of DTLN: a mask of a spectrum's magnitudes",
        "https://github.com/breizhn/DTLN (MIT)",
        {"24c0e971e2ed581b": "1"},
        hop=128,
    ),
    Recipe(
        "dtln-2",
        "second half of DTLN: a frame of samples without noise",
        "https://github.com/breizhn/DTLN (MIT)",
        {"7dddb36e44402f26": "1"},
        hop=128,
    ),
    Recipe(
        "gtcrn",
        "a spectrum without noise",
        "https://github.com/Xiaobin-Rong/gtcrn (MIT)",
        {"1cd3278867ddc766": "1", "e0e4634116627440": "1"},
        hop=256,
    ),
    Recipe(
        "ul-unas",
        "a spectrum without noise",
        "https://github.com/Xiaobin-Rong/ul-unas (MIT)",
        {"bc2451b27b56bde0": "1", "588cab21acbe2cd5": "1"},
        hop=256,
    ),
)

EXPORTED: Final[Mapping[str, Sequence[str]]] = {
    "dtln": ("dtln-1", "dtln-2"), "gtcrn": ("gtcrn",), "silero": ("silero-vad",), "ul-unas": ("ul-unas",),
}  # fmt: skip
"""What `export recipe:NAME` makes one graph of: the recipe of each file."""


def recognized(model: Any) -> tuple[Recipe, str] | None:
    """Return the recipe of a graph and its version; None: its structure is not known."""
    digest = structure_digest(model)
    return next(((one, one.digests[digest]) for one in RECIPES if digest in one.digests), None)


def with_recipe(hints: Overrides, recipe: Recipe, model: Any, version: str) -> tuple[Overrides, list[str]]:
    """Return a person's declarations with those of a recipe, and in words where both contradict each other."""
    own, notes, merged = recipe.overrides(model, version), list[str](), {}
    for kind, flag in (("constants", "--constant"), ("windows", "--window"), ("shapes", "--shape")):
        said, known = dict(getattr(hints, kind)), dict(getattr(own, kind))
        for name, value in known.items():
            if name in said and said[name] != value:
                notes.append(f"recipe {recipe.name} has {flag} {name}={_text(value)}; {_text(said[name])} was given")
        merged[kind] = {**known, **said}
    return hints.model_copy(update=merged), notes


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def recipe_pipeline(source: str, *, pcm16: bool = False) -> Pipeline:
    """Return the pipeline of `recipe:NAME=FILE`, or of several files with commas between.

    Its input is `samples`, float32 from -1 to 1 at 16 kHz; its output `samples`, or `speech` of a voice detector.

    Args:
        source: As it is given to `export`.
        pcm16: Whether samples are int16.

    Raises:
        FileError: A file is not there.
        RefusedModelError: There is no such recipe, or a file is another graph.
    """
    name, _, files = source.removeprefix("recipe:").partition("=")
    wanted = EXPORTED.get(name)
    paths = [Path(file) for file in files.split(",") if file]
    if wanted is None or len(paths) != len(wanted):
        forms = ", ".join(f"recipe:{name}={','.join(['FILE'] * len(graphs))}" for name, graphs in EXPORTED.items())
        raise RefusedModelError(f"{source!r} is no recipe; expected {forms}.", fix="`stepwell recipes` lists them.")
    made = [_part(path, wanted_one) for path, wanted_one in zip(paths, wanted, strict=True)]
    parts, shown = _PARTS[name](*made)
    if pcm16:
        parts = [PCM16(of=SAMPLES), *parts, *([PCM16(of=_LAST, to=_LAST).inverse()] if shown else [])]
    return Pipeline(parts, shown=shown)


def _part(path: Path, name: str) -> tuple[ConvertedModel, str]:
    """Return a published graph as a step graph of many rows whose original is the file, and its version."""
    from stepwell_export.adoption.autoconfigure import adopt
    from stepwell_export.row_axis import batchify
    from stepwell_export.stages.stepwise_file import read_stepwise

    if not path.is_file():
        raise FileError(f"{path} is not there; expected an ONNX file.", fix="Check the path.")
    model = read_model(path, weights=True)
    found = recognized(model)
    if found is None or found[0].name != name:
        what = "a graph of another structure" if found is None else f"the graph of {found[0].name}"
        raise RefusedModelError(
            f"{path} is {what}; expected {name}.",
            fix="Give the published file, or one trained further from it; `stepwell adopt` takes any step graph.",
        )
    recipe, version = found
    hints = recipe.overrides(model, version)
    if recipe.name == "silero-vad":  # the context is a stage
        (audio,) = hints.shapes
        hints = hints.model_copy(update={"windows": {}, "shapes": {audio: (recipe.hop + recipe.context[version],)}})
    made = read_stepwise(path, adopt(path, hints=hints, replace=True).manifest)
    if version not in _ALONE and made.manifest.batch.mode == "single":
        with suppress(RefusedModelError):  # one row at a time
            proto, manifest = batchify(made.proto, made.manifest)
            made = replace(made, proto=proto, manifest=manifest)
    return made, version


Parts = tuple[list[Any], dict[str, str]]


def _dtln(first: tuple[ConvertedModel, str], second: tuple[ConvertedModel, str]) -> Parts:
    return [
        Frames(512, 128, of=SAMPLES, to="block"),
        RFFT(512, form="polar", of="block"),
        Part(first[0], of="magnitude", to=_first(first[0], "mask")),
        Multiply(of=("magnitude", "mask"), to="masked"),
        InverseRFFT(512, form="polar", of=("masked", "phase"), to="estimate"),
        Part(second[0], of="estimate", to=_first(second[0], "clean")),
        OverlapAdd(512, 128, of="clean", to=_LAST),
    ], {_LAST: SAMPLES}


def _spectral(window: str, part: tuple[ConvertedModel, str]) -> Parts:
    return [
        STFT(512, 256, window, of=SAMPLES, to="spectrum"),
        Part(part[0], of="spectrum", to=_first(part[0], "clean")),
        InverseSTFT(512, 256, window, of="clean", to=_LAST),
    ], {_LAST: SAMPLES}


def _silero(part: tuple[ConvertedModel, str]) -> Parts:
    model, version = part
    context = next(recipe for recipe in RECIPES if recipe.name == "silero-vad").context[version]
    front: list[Any] = [Context(context, of=SAMPLES, to="heard")] if context else []
    given = _first(model, "speech" if version != "v3" else "classes")
    last = [Select([1], width=2, of="classes", to="speech")] if version == "v3" else []
    return [*front, Part(model, of="heard" if context else SAMPLES, to=given), *last], {}


def _first(model: ConvertedModel, name: str) -> dict[str, str]:
    """Name the first output of a graph."""
    return {model.manifest.answered[0].name: name}


_PARTS: Final[Mapping[str, Callable[..., Parts]]] = {
    "dtln": _dtln, "gtcrn": partial(_spectral, "sqrt_hann"), "ul-unas": partial(_spectral, "hann"), "silero": _silero,
}  # fmt: skip
