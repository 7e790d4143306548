"""Request bodies of rollouts, and their responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model_export.feedback import FeedbackError, check_draw
from model_export.manifest import Array, Manifest
from service.codec.envelopes import bad_request, check_envelope
from service.codec.formats import Format
from service.codec.responses import encode_tensor
from service.codec.strict_parse import parse, preview
from service.codec.strict_tensors import read_tensor
from service.errors import ServiceError
from service.ids import SEQ_LIMIT, decode_state_id, encode_state_id
from service.types import Create, RolloutResult

_OPTIONAL = (
    *("inputs", "feedback", "temperature", "top_k", "top_p", "samples", "seed", "commit"),
    *("seq", "after", "create"),
)


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


@dataclass(frozen=True, slots=True)
class RolloutBody:
    """A decoded rollout request.

    Attributes:
        horizon: Number of timesteps.
        inputs: The given first inputs, `*row` by name, checked and finite.
        feedback: A rule by input, not yet checked; None: the model's own rules.
        temperature: Overrides that of the rules, or None; likewise `top_k` and `top_p`.
        samples: Number of samples; None: one, and the response has no axis for samples.
        seed: Seed of the random draws, or None.
        commit: Commit the rollout to the stream.
        seq: Step of the first timestep, or None.
        after: State id, 16 bytes, or None.
        create: What to do if the stream is missing.
    """

    horizon: int
    inputs: dict[str, Array]
    feedback: dict[str, Any] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    samples: int | None
    seed: int | None
    commit: bool
    seq: int | None
    after: bytes | None
    create: Create


def read_rollout(body: bytes, body_format: Format, manifest: Manifest, limits: RolloutLimits) -> RolloutBody:
    """Decode the body of a rollout.

    Args:
        body: The request's body.
        body_format: Its format.
        manifest: The model's manifest.
        limits: The limits of a rollout.

    Raises:
        ServiceError: `bad_json`, `bad_request`, `too_large`, `bad_input` or `non_finite`.
    """
    document = check_envelope(parse(body, body_format), _OPTIONAL, required=("horizon",))
    horizon, samples = _count(document, "horizon"), _count(document, "samples") if "samples" in document else None
    commit, seed, feedback = document.get("commit", False), document.get("seed"), document.get("feedback")
    if not isinstance(commit, bool):
        bad_request(f"`commit` is {preview(commit)}; expected true or false.")
    if commit and (samples or 1) > 1:
        bad_request(f"`commit` is true with {samples} `samples`; expected one: only one sample can be committed.")
    if "seed" in document and not (type(seed) is int and 0 <= seed < SEQ_LIMIT):
        bad_request(f"`seed` is {preview(seed)}; expected an integer from 0 to {SEQ_LIMIT - 1}.")
    if "feedback" in document and not isinstance(feedback, dict):
        bad_request(
            f'`feedback` is {preview(feedback)}; expected an object with a rule by input, such as {{"x": "y"}}.'
        )
    draw: dict[str, Any] = {name: document[name] for name in ("temperature", "top_k", "top_p") if name in document}
    try:
        check_draw(draw)
    except FeedbackError as exc:
        bad_request(f"{exc}.")
    _check_limits(limits, manifest, horizon, samples)
    return RolloutBody(
        horizon,
        _inputs(document["inputs"], manifest) if "inputs" in document else {},
        feedback,
        draw.get("temperature"),
        draw.get("top_k"),
        draw.get("top_p"),
        samples,
        seed,
        commit,
        document.get("seq"),
        decode_state_id(document["after"]) if "after" in document else None,
        document.get("create", "auto"),
    )


def rollout_response(result: RolloutResult, body_format: Format, *, samples: bool) -> dict[str, Any]:
    """Return the response to a rollout; it has an axis for samples only if `samples` is true."""
    response: dict[str, Any] = {
        "outputs": {
            name: encode_tensor(array if samples else array[0], body_format) for name, array in result.outputs.items()
        },
        "next": {
            name: encode_tensor(array if samples else array[0], body_format)
            for name, array in result.next_inputs.items()
        },
        "step": result.step,
    }
    if result.state_id:
        response["state_id"] = encode_state_id(result.state_id)
    if result.seed is not None:
        response["seed"] = result.seed
    if result.replayed:
        response["replayed"] = True
    if result.created:
        response["created"] = True
    return response


def _count(document: dict[str, Any], name: str) -> int:
    value = document[name]
    if type(value) is not int or value < 1:
        bad_request(f"`{name}` is {preview(value)}; expected an integer of at least 1.")
    return value


def _check_limits(limits: RolloutLimits, manifest: Manifest, horizon: int, samples: int | None) -> None:
    for name, value, limit, setting in (
        ("horizon", horizon, limits.horizon, "max_horizon"),
        ("samples", samples or 1, limits.samples, "max_samples"),
    ):
        if value > limit:
            raise ServiceError(
                "too_large",
                f"`{name}` is {value if value < SEQ_LIMIT else preview(value)}; at most {limit} are allowed.",
                fix=f"Send a smaller number, or raise `{setting}`.",
            )
    size = horizon * (samples or 1) * sum(spec.row_bytes for spec in manifest.answered)
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
