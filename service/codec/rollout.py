"""The body of a rollout, and its answer."""

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
    """What a rollout may ask for.

    Attributes:
        horizon: Most timesteps.
        samples: Most samples.
        nbytes: Most bytes of predictions.
    """

    horizon: int
    samples: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class RolloutBody:
    """What a rollout asks for.

    Attributes:
        horizon: Timesteps.
        inputs: The first inputs that are given, `*row` by name, checked and finite.
        feedback: A rule by input, as it came; None: the model's own.
        temperature: In place of the rules' own, or None; likewise the two that follow.
        samples: How often, or None: once, and the answer has no axis for it.
        seed: Of the chances, or None.
        commit: The stream moves by it.
        seq: Number of the first timestep, or None.
        after: 16 bytes, or None.
        create: What a missing stream means.
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


def read_rollout(body: bytes, form: Format, manifest: Manifest, limits: RolloutLimits) -> RolloutBody:
    """Return what a rollout asks for.

    Args:
        body: As it came.
        form: Its format.
        manifest: What the model takes.
        limits: What may be asked for.

    Raises:
        ServiceError: `bad_json`, `bad_request`, `too_large`, `bad_input` or `non_finite`.
    """
    document = check_envelope(parse(body, form), _OPTIONAL, needed=("horizon",))
    horizon, samples = _count(document, "horizon"), _count(document, "samples") if "samples" in document else None
    commit, seed, feedback = document.get("commit", False), document.get("seed"), document.get("feedback")
    if not isinstance(commit, bool):
        bad_request(f"`commit` is {preview(commit)}; expected true or false.")
    if commit and (samples or 1) > 1:
        bad_request(f"`commit` is true with {samples} `samples`; expected one: a stream can go one way only.")
    if "seed" in document and not (type(seed) is int and 0 <= seed < SEQ_LIMIT):
        bad_request(f"`seed` is {preview(seed)}; expected an integer from 0 to {SEQ_LIMIT - 1}.")
    if "feedback" in document and not isinstance(feedback, dict):
        bad_request(
            f'`feedback` is {preview(feedback)}; expected an object with a rule by input, such as {{"x": "y"}}.'
        )
    how: dict[str, Any] = {name: document[name] for name in ("temperature", "top_k", "top_p") if name in document}
    try:
        check_draw(how)
    except FeedbackError as exc:
        bad_request(f"{exc}.")
    _check_within(limits, manifest, horizon, samples)
    return RolloutBody(
        horizon,
        _inputs(document["inputs"], manifest) if "inputs" in document else {},
        feedback,
        how.get("temperature"),
        how.get("top_k"),
        how.get("top_p"),
        samples,
        seed,
        commit,
        document.get("seq"),
        decode_state_id(document["after"]) if "after" in document else None,
        document.get("create", "auto"),
    )


def rollout_response(found: RolloutResult, form: Format, *, samples: bool) -> dict[str, Any]:
    """Return the answer to a rollout; only with `samples` it has an axis for them."""
    answer: dict[str, Any] = {
        "outputs": {name: encode_tensor(array if samples else array[0], form) for name, array in found.outputs.items()},
        "next": {
            name: encode_tensor(array if samples else array[0], form) for name, array in found.next_inputs.items()
        },
        "step": found.step,
    }
    if found.state_id:
        answer["state_id"] = encode_state_id(found.state_id)
    if found.seed is not None:
        answer["seed"] = found.seed
    if found.replayed:
        answer["replayed"] = True
    if found.created:
        answer["created"] = True
    return answer


def _count(document: dict[str, Any], name: str) -> int:
    value = document[name]
    if type(value) is not int or value < 1:
        bad_request(f"`{name}` is {preview(value)}; expected an integer from 1.")
    return value


def _check_within(limits: RolloutLimits, manifest: Manifest, horizon: int, samples: int | None) -> None:
    for name, found, most, setting in (
        ("horizon", horizon, limits.horizon, "max_horizon"),
        ("samples", samples or 1, limits.samples, "max_samples"),
    ):
        if found > most:
            raise ServiceError(
                "too_large",
                f"`{name}` is {found if found < SEQ_LIMIT else preview(found)}; at most {most} are taken.",
                fix=f"Ask for less, or raise `{setting}`.",
            )
    size = horizon * (samples or 1) * sum(spec.row_bytes for spec in manifest.answered)
    if size > limits.nbytes:
        raise ServiceError(
            "too_large",
            f"The answer would have {size} bytes of predictions; at most {limits.nbytes} are answered.",
            fix="Ask for a shorter horizon or fewer samples, or raise `max_body_bytes`.",
        )


def _inputs(value: Any, manifest: Manifest) -> dict[str, Array]:
    """Return the inputs that are given; the model's only input may be given alone."""
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
            f"`inputs` {found}; expected an object with the first of {', '.join(specs)}.",
            fix="Send each declared input at most once, and no other.",
        )
    return {name: read_tensor(item, specs[name], (), f"Input {name!r}") for name, item in value.items()}
