"""Request bodies of rollouts, and their responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict

from stepwell.addons.api_schemas.responses import Created, Document, Replayed, Tensors
from stepwell.addons.rollouts.requests import RolloutResult
from stepwell.codec.step_bodies import TENSORS, CreateMode, Seq, StateId
from stepwell.codec.strict.bodies import check_envelope
from stepwell.codec.strict.parse import bad_request, parse, preview
from stepwell.codec.strict.tensors import read_tensor
from stepwell.errors import ServiceError
from stepwell_client.wire.formats import JSON, Format, encode_tensors
from stepwell_client.wire.ids import SEQ_LIMIT, decode_state_id, encode_state_id
from stepwell_export.runtime.feedback import FeedbackError, check_draw
from stepwell_export.runtime.manifest import Array, Manifest

_DRAW: dict[str, dict[str, Any]] = {
    "temperature": {
        "type": "number",
        "minimum": 0,
        "description": "0: the most probable class; 1: the model's probabilities.",
    },
    "top_k": {"type": "integer", "minimum": 1, "description": "Draw from this many of the most probable classes."},
    "top_p": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "description": "Draw from the most probable classes with this total probability.",
    },
}
_RULE = {
    "description": "The name of an output, or the rule that computes the input from it.",
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["output"],
            "properties": {
                "output": {"type": "string"},
                "horizon": {
                    "type": "integer",
                    "minimum": 1,
                    "description": "Timesteps ahead in the output, its first axis; the first is fed back.",
                },
                "scale": {"description": "Factor of the output: a number, or one for each element of the input."},
                "offset": {"description": "Term added to that: a number, or one for each element of the input."},
                "std": {"description": "Standard deviation of normal noise: a number, or the name of an output."},
                "df": {
                    "description": "With `std`: degrees of freedom of Student's t: a number, or the name of an output."
                },
                "dispersion": {"description": "Of a negative binomial count: a number, or the name of an output."},
                "sample": {"type": "boolean", "description": "The output has probabilities: draw a class from them."},
                "logits": {"type": "boolean", "description": "The output has logarithms of probabilities."},
                "one_hot": {"type": "boolean", "description": "The input is the one-hot vector of the drawn class."},
                **_DRAW,
            },
        },
    ],
}
Count = Annotated[int, Meta(ge=1)]


class RolloutBody(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The body of a rollout; `check_draw` checks how classes are drawn, and the rollout its feedback rules."""

    horizon: Annotated[Count, Meta(description="Number of timesteps.")]
    inputs: (
        Annotated[
            Any,
            Meta(
                description="The first input; by default it is computed from the stream's last prediction.",
                extra_json_schema={"anyOf": [TENSORS, {}], "example": TENSORS["example"]},
            ),
        ]
        | UnsetType
    ) = UNSET
    feedback: (
        Annotated[
            dict[str, Any],
            Meta(
                description="By input, the rule that computes it; by default the rules of the model's manifest.",
                extra={"expected": 'an object with a rule by input, such as {"x": "y"}'},
                extra_json_schema={"additionalProperties": _RULE, "example": {"x": "y"}},
            ),
        ]
        | UnsetType
    ) = UNSET
    samples: (
        Annotated[Count, Meta(description="Number of samples; tensors then have a first axis for them.")] | UnsetType
    ) = UNSET
    seed: Annotated[int, Meta(ge=0, lt=SEQ_LIMIT)] | UnsetType = UNSET
    commit: (
        Annotated[bool, Meta(description="Apply the timesteps to the stream.", extra_json_schema={"default": False})]
        | UnsetType
    ) = UNSET
    seq: Seq | UnsetType = UNSET
    after: StateId | UnsetType = UNSET
    create: CreateMode | UnsetType = UNSET
    temperature: Annotated[Any, Meta(extra_json_schema=_DRAW["temperature"])] | UnsetType = UNSET
    top_k: Annotated[Any, Meta(extra_json_schema=_DRAW["top_k"])] | UnsetType = UNSET
    top_p: Annotated[Any, Meta(extra_json_schema=_DRAW["top_p"])] | UnsetType = UNSET

    def options(self) -> dict[str, Any]:
        """Return the given fields as those of a `RolloutRequest`, but `inputs`."""
        options = {name: value for name, value in asdict(self).items() if value is not UNSET and name != "inputs"}
        if self.after is not UNSET:
            options["after"] = decode_state_id(self.after)
        return options


class RolloutResponse(Document, kw_only=True):
    """The response to a rollout; with `samples`, tensors have a first axis for them."""

    outputs: Annotated[Tensors, Meta(description="A prediction for each timestep: `[horizon, ..]`.")]
    next: Annotated[
        Tensors, Meta(description="The next input that was computed from each prediction: `[horizon, ..]`.")
    ]
    step: Annotated[int, Meta(description="The step that the stream is at, or would be at.")]
    state_id: StateId | UnsetType = UNSET
    seed: Annotated[int, Meta(description="Seed of the random draws, if there were any.")] | UnsetType = UNSET
    replayed: Replayed | UnsetType = UNSET
    created: Created | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """The limits of a rollout.

    Attributes:
        horizon: Most timesteps.
        samples: Most samples.
        nbytes: Most bytes of predictions in a response.
    """

    horizon: int
    samples: int
    nbytes: int


def read_rollout(
    body: bytes, body_format: Format, manifest: Manifest, limits: RolloutLimits
) -> tuple[RolloutBody, dict[str, Array]]:
    """Decode the body of a rollout: its fields, and the given first inputs, `*row` by name, checked and finite.

    Args:
        body: The request's body.
        body_format: Its format.
        manifest: The model's manifest.
        limits: The limits of a rollout.

    Raises:
        ServiceError: `bad_json`, `bad_request`, `too_large`, `bad_input` or `non_finite`.
    """
    document = check_envelope(parse(body, body_format), RolloutBody)
    decoded = RolloutBody(**document)
    samples = 1 if decoded.samples is UNSET else decoded.samples
    if decoded.commit is True and samples > 1:
        bad_request(f"`commit` is true with {samples} `samples`; expected one: only one sample can be committed.")
    try:
        check_draw(document)
    except FeedbackError as exc:
        bad_request(f"{exc}.")
    _check_limits(limits, manifest, decoded.horizon, samples)
    return decoded, _inputs(document["inputs"], manifest) if "inputs" in document else {}


def rollout_response(result: RolloutResult, body_format: Format, *, samples: bool) -> dict[str, Any]:
    """Return the response to a rollout; it has an axis for samples only if `samples` is true."""
    response = _tensors(result.outputs, result.next_inputs, body_format, samples=samples) | {"step": result.step}
    if result.state_id:
        response["state_id"] = encode_state_id(result.state_id)
    if result.seed is not None:
        response["seed"] = result.seed
    if result.replayed:
        response["replayed"] = True
    if result.created:
        response["created"] = True
    return response


def timestep_event(outputs: Mapping[str, Array], next_inputs: Mapping[str, Array], *, samples: bool) -> dict[str, Any]:
    """Return the event of one timestep of a rollout, from arrays `(samples, *row)` by name."""
    return _tensors(outputs, next_inputs, JSON, samples=samples)


def done_event(result: RolloutResult, *, samples: bool) -> dict[str, Any]:
    """Return the last event of a rollout: its response without the outputs."""
    response = rollout_response(result, JSON, samples=samples)
    del response["outputs"]
    return response


def _tensors(
    outputs: Mapping[str, Array], next_inputs: Mapping[str, Array], body_format: Format, *, samples: bool
) -> dict[str, Any]:
    """Return predictions and the inputs computed from them; an axis for samples, the first, only if `samples`."""
    return {
        member: encode_tensors(arrays if samples else {name: array[0] for name, array in arrays.items()}, body_format)
        for member, arrays in (("outputs", outputs), ("next", next_inputs))
    }


def _check_limits(limits: RolloutLimits, manifest: Manifest, horizon: int, samples: int) -> None:
    for name, value, limit, setting in (
        ("horizon", horizon, limits.horizon, "max_horizon"),
        ("samples", samples, limits.samples, "max_samples"),
    ):
        if value > limit:
            raise ServiceError(
                "too_large",
                f"`{name}` is {value if value < SEQ_LIMIT else preview(value)}; at most {limit} are allowed.",
                fix=f"Send a smaller number, or raise `{setting}`.",
            )
    size = horizon * samples * sum(spec.row_bytes for spec in manifest.answered)
    if size > limits.nbytes:
        raise ServiceError(
            "too_large",
            f"The response would have {size} bytes of predictions; at most {limits.nbytes} are allowed.",
            fix="Use a shorter horizon or fewer samples, or raise `max_body_bytes`.",
        )


def _inputs(value: Any, manifest: Manifest) -> dict[str, Array]:
    """Decode the given inputs; for a model with one input, its value alone is valid too."""
    specs = {spec.name: spec for spec in manifest.inputs}
    packed = isinstance(value, dict) and isinstance(value.get("b"), bytes)
    if len(specs) == 1 and (not isinstance(value, dict) or (packed and not value.keys() & specs.keys())):
        value = {next(iter(specs)): value}
    if not isinstance(value, dict) or not value.keys() <= specs.keys():
        found = (
            f"has {', '.join(map(preview, list(value)[:20]))}" if isinstance(value, dict) else f"is {preview(value)}"
        )
        raise ServiceError(
            "bad_input",
            f"`inputs` {found}; expected an object with the first inputs, from {', '.join(specs)}.",
            fix="Send each declared input at most once, and no other.",
        )
    return {name: read_tensor(item, specs[name], (), f"Input {name!r}") for name, item in value.items()}
