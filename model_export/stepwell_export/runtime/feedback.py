"""Feedback rules: how an input of the next timestep is made of a prediction.

A manifest, or a request, has one for each input that is fed back: `{"x": "y"}` feeds output `y` to input `x`. A rule
is an output's name, or an object:

    output                     the output's name
    horizon                    y has so many timesteps ahead, its first axis: the first of them is fed back
    scale, offset              x = y * scale + offset; a number each, or one for each element of the input
    std                        x = y + std * z, z from the normal distribution: a number, or the name of an output
    df                         with `std`: z from Student's t distribution with so many degrees of freedom: a number
                               above 0, or the name of an output
    dispersion                 x is a count of the negative binomial distribution with mean y and variance
                               y + dispersion * y * y: a number from 0 (Poisson), or the name of an output
    sample                     y are probabilities: draw one of them. Said by the following, too, and plain where the
                               input is an integer and the output a vector of floats
    temperature, top_k, top_p  how it is drawn: 1, all, all by default; temperature 0 is the most probable one
    logits                     y are logarithms of probabilities, whatever they sum up to
    one_hot                    x has a 1 in the place that was drawn; plain where input and output are equally long
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import Array, Manifest, OutputSpec, TensorSpec

Makes = Literal["value", "index", "one_hot"]

_SAMPLING = ("sample", "temperature", "top_k", "top_p", "logits", "one_hot")
_NOISE = ("std", "df", "dispersion")
_KEYS = ("output", "horizon", "scale", "offset", *_NOISE, *_SAMPLING)


@dataclass(frozen=True, slots=True)
class Draw:
    """How one of several is drawn.

    Attributes:
        temperature: 1: as probable as by the model; towards 0 ever more the most probable one, at 0 that alone.
        top_k: Only the k most probable ones; None: all.
        top_p: Only the most probable ones that together have this probability, at least one; None: all.
        logits: The weights are logarithms.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    logits: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """How one input is made of a prediction, checked against a model.

    Attributes:
        input: The input.
        output: The output that it is made of.
        makes: The output's value, the index that was drawn from it, or that index as a vector with one 1.
        draw: How it is drawn; None: nothing is.
        scale: What it is multiplied with, broadcast to the input's row; None: 1.
        offset: What is added to that; None: 0.
        std: The standard deviation of what is added by chance, or the output that is it; None: nothing is.
        df: Degrees of freedom of what is added, or the output that is it; None: it is normally distributed.
        dispersion: Of the count that is drawn with the value as its mean, or the output that is it; None: none is.
        horizon: How many timesteps ahead the output has, `(horizon, *row)`; None: the next one, without an axis for it.
    """

    input: TensorSpec
    output: OutputSpec
    makes: Makes
    draw: Draw | None
    scale: Array | None
    offset: Array | None
    std: float | OutputSpec | None
    df: float | OutputSpec | None = None
    dispersion: float | OutputSpec | None = None
    horizon: int | None = None

    @property
    def is_random(self) -> bool:
        """Whether chance has a part in it."""
        return (
            self.std is not None or self.dispersion is not None or (self.draw is not None and self.draw.temperature > 0)
        )

    def drawn(self, temperature: float | None, top_k: int | None, top_p: float | None) -> Rule:
        """Return the rule with another way to draw, as far as it is given; one that draws nothing stays as it is."""
        if self.draw is None:
            return self
        mine = self.draw
        draw = Draw(
            mine.temperature if temperature is None else temperature,
            mine.top_k if top_k is None else top_k,
            mine.top_p if top_p is None else top_p,
            mine.logits,
        )
        return replace(self, draw=draw)


class FeedbackError(ValueError):
    """A rule that is empty or does not fit the model; its text has what was found and expected.

    Attributes:
        fits_no_model: The rule itself is wrong, whatever the model.
    """

    def __init__(self, problem: str, *, fits_no_model: bool = False) -> None:
        super().__init__(problem)
        self.fits_no_model = fits_no_model


def rules_of(feedback: Mapping[str, Any], manifest: Manifest) -> list[Rule]:
    """Return the rules of a manifest or a request, checked against a model.

    Raises:
        FeedbackError: A rule does not fit.
    """
    inputs = {spec.name: spec for spec in manifest.inputs}
    outputs = {spec.name: spec for spec in manifest.answered}
    rules = []
    for name, said in feedback.items():
        if name not in inputs:
            hint = f" (rules are by input: did you mean {{{said!r}: {name!r}}}?)" if name in outputs else ""
            raise FeedbackError(f"feedback of {name!r}: no such input; inputs are {', '.join(inputs)}{hint}")
        try:
            rules.append(_rule(inputs[name], said, outputs))
        except FeedbackError as exc:
            raise FeedbackError(f"feedback of {name!r}: {exc}", fits_no_model=exc.fits_no_model) from exc
    return rules


def fault_of(manifest: Manifest) -> str | None:
    """Return why a model's own feedback cannot be used, None where it can."""
    try:
        rules_of(manifest.feedback, manifest)
    except FeedbackError as exc:
        return str(exc)
    return None


def with_feedback(manifest: Manifest, feedback: Mapping[str, Any]) -> Manifest:
    """Return a manifest with these rules, checked.

    Args:
        manifest: What the model takes and gives.
        feedback: A rule by input; where it is empty the manifest stays as it is.

    Raises:
        UnclearModelError: A rule does not fit the model.
    """
    if not feedback:
        return manifest
    changed = manifest.model_copy(update={"feedback": dict(feedback)})
    if (fault := fault_of(changed)) is not None:
        raise UnclearModelError(
            f"{fault[:1].upper()}{fault[1:]}.",
            fix="Say `--feedback OUTPUT=INPUT`, or a JSON object with a rule by input.",
        )
    return changed


def check_draw(found: Mapping[str, Any]) -> Draw:
    """Return how to draw, from plain values.

    Raises:
        FeedbackError: A value is not one that it can have.
    """
    temperature, top_k, top_p = found.get("temperature", 1.0), found.get("top_k"), found.get("top_p")
    if not _is_number(temperature) or not 0 <= temperature <= 1e6:
        raise FeedbackError(f"`temperature` is {temperature!r:.60}; expected a number from 0", fits_no_model=True)
    if top_k is not None and (type(top_k) is not int or not 1 <= top_k < 2**31):
        raise FeedbackError(f"`top_k` is {top_k!r:.60}; expected an integer from 1", fits_no_model=True)
    if top_p is not None and (not _is_number(top_p) or not 0 < top_p <= 1):
        raise FeedbackError(f"`top_p` is {top_p!r:.60}; expected a number above 0, at most 1", fits_no_model=True)
    for name in ("sample", "logits", "one_hot"):
        if not isinstance(found.get(name, False), bool):
            raise FeedbackError(f"`{name}` is {found[name]!r:.60}; expected true or false", fits_no_model=True)
    return Draw(float(temperature), top_k, None if top_p is None else float(top_p), found.get("logits", False))


def _rule(spec: TensorSpec, said: Any, outputs: Mapping[str, OutputSpec]) -> Rule:
    found: Mapping[str, Any] = {"output": said} if isinstance(said, str) else said
    if not isinstance(found, Mapping) or not isinstance(found.get("output"), str):
        raise FeedbackError("expected an output's name, or an object with `output`", fits_no_model=True)
    for key in found:
        if key not in _KEYS:
            raise FeedbackError(f"it has the key {key!r:.60}; expected {', '.join(_KEYS)}", fits_no_model=True)
    output = _output(found["output"], outputs)
    noise = next((key for key in _NOISE if key in found), None)
    sampling = next((key for key in _SAMPLING if key in found), None)
    if noise and sampling:
        raise FeedbackError(f"it has `{noise}` and `{sampling}`; expected one of them", fits_no_model=True)
    if "df" in found and "std" not in found:
        raise FeedbackError("it has `df` without `std`; expected both", fits_no_model=True)
    if "dispersion" in found and "std" in found:
        raise FeedbackError("it has `std` and `dispersion`; expected one of them", fits_no_model=True)
    if "horizon" in found and sampling:
        raise FeedbackError(f"it has `horizon` and `{sampling}`; expected one of them", fits_no_model=True)
    horizon = _horizon(found.get("horizon"))
    draw = check_draw(found) if horizon is None and _draws(spec, output, found) else None
    makes: Makes = "value" if draw is None else _what_is_drawn(spec, output, found)
    if draw is None:
        _demand_same_row(spec, output, horizon)
    if np.dtype(spec.dtype).kind != "f" and any(key in found for key in ("scale", "offset", *_NOISE)):
        raise FeedbackError(
            f"`scale`, `offset`, `std`, `df` and `dispersion` are for inputs of floats; it is {spec.dtype}"
        )
    return Rule(
        spec,
        output,
        makes,
        draw,
        _numbers("scale", found.get("scale"), spec),
        _numbers("offset", found.get("offset"), spec),
        **{key: _parameter(key, found.get(key), spec, outputs) for key in _NOISE},
        horizon=horizon,
    )


def _horizon(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise FeedbackError(f"`horizon` is {value!r:.60}; expected an integer from 1", fits_no_model=True)
    return value


def _output(name: str, outputs: Mapping[str, OutputSpec]) -> OutputSpec:
    if name not in outputs:
        raise FeedbackError(f"there is no output {name!r:.80}; outputs are {', '.join(outputs)}")
    return outputs[name]


def _draws(spec: TensorSpec, output: OutputSpec, found: Mapping[str, Any]) -> bool:
    if "sample" in found:
        return bool(found["sample"])
    if any(key in found for key in _SAMPLING):
        return True
    return np.dtype(spec.dtype).kind in "iu" and np.dtype(output.dtype).kind == "f" and output.row_size > 1


def _what_is_drawn(spec: TensorSpec, output: OutputSpec, found: Mapping[str, Any]) -> Makes:
    several = output.row_size
    if np.dtype(output.dtype).kind != "f" or several < 2 or max(output.shape) != several:
        raise FeedbackError(f"to draw from output {output.name!r} it has to be a vector of floats, not {_kind(output)}")
    one_hot = found.get("one_hot", spec.row_size == several)
    if spec.row_size != (several if one_hot else 1):
        wanted = f"{several} elements" if one_hot else "one element"
        raise FeedbackError(f"what is drawn from {several} needs {wanted}; it is {_kind(spec)}")
    if not one_hot and np.dtype(spec.dtype).kind in "iu" and several - 1 > np.iinfo(spec.dtype).max:
        raise FeedbackError(f"{spec.dtype} cannot hold an index up to {several - 1}")
    return "one_hot" if one_hot else "index"


def _demand_same_row(spec: TensorSpec, output: OutputSpec, horizon: int | None = None) -> None:
    row = [dim for dim in spec.shape if dim != 1]
    ahead, *rest = output.shape or [1]
    has_ahead = [dim for dim in rest if dim != 1] == row
    has_same = [dim for dim in output.shape if dim != 1] == row
    if not (has_same if horizon is None else has_ahead and ahead == horizon):
        wanted = "the same shape" if horizon is None else f"that shape with {horizon} timesteps ahead as the first axis"
        hint = f"; for {ahead} timesteps ahead, set `horizon`: {ahead}" if horizon is None and has_ahead and row else ""
        raise FeedbackError(
            f"it is {_kind(spec)} and output {output.name!r} is {_kind(output)}; expected {wanted}{hint}"
        )
    if not np.can_cast(output.dtype, spec.dtype, "same_kind"):
        raise FeedbackError(
            f"it is {_kind(spec)} and output {output.name!r} is {_kind(output)}, which it cannot hold; "
            "to draw from probabilities, set `sample`"
        )


def _numbers(name: str, value: Any, spec: TensorSpec) -> Array | None:
    if value is None:
        return None
    flat = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not all(map(_is_number, flat)) or len(flat) not in (1, spec.row_size):
        raise FeedbackError(f"`{name}` is {value!r:.60}; expected a number, or {spec.row_size} of them")
    return np.array(flat if len(flat) == 1 else np.reshape(flat, spec.row_shape), np.float64)


def _parameter(key: str, value: Any, spec: TensorSpec, outputs: Mapping[str, OutputSpec]) -> float | OutputSpec | None:
    """Return a parameter of a distribution: a number, or the output that is it."""
    if value is None:
        return None
    if isinstance(value, str):
        output = _output(value, outputs)
        _demand_same_row(spec, output)
        return output
    if not _is_number(value) or value < 0 or (key == "df" and not value):
        wanted = "above 0" if key == "df" else "from 0"
        raise FeedbackError(f"`{key}` is {value!r:.60}; expected a number {wanted}, or an output's name")
    return float(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def _kind(spec: TensorSpec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"
