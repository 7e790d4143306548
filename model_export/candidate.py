"""`Candidate`: a step graph on its way to being written, with the original that it has to equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_export.manifest import METADATA_KEY, Array, Manifest
from model_export.stored_model import StoredStepModel
from model_export.verify import ATOL, RTOL, STEPS, Original, ParityReport, Progress, Sampler, verify_parity

if TYPE_CHECKING:
    import onnx

UserData = Mapping[str, Array] | Callable[[Manifest], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a front end makes of a trained model.

    Attributes:
        proto: The step graph, without manifest.
        manifest: What it takes, carries and gives.
        original: The model as it was trained.
        against: The original and its version, say `keras 3.15.1 jax`.
        samplers: What to draw for the comparison, by the name of its kind; None: random data.
        only_length: The one number of timesteps that the original takes; None: any.
    """

    proto: onnx.ModelProto
    manifest: Manifest
    original: Original
    against: str
    samplers: Mapping[str, Sampler] | None = None
    only_length: int | None = None


def prove(
    candidate: Candidate,
    *,
    atol: float = ATOL,
    rtol: float = RTOL,
    user_data: UserData | None = None,
    progress: Progress | None = None,
) -> tuple[bytes, ParityReport]:
    """Hold a candidate against its original; writes nothing.

    Args:
        candidate: The step graph and its original.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        user_data: Sequences of the user's own, `{input: (N, T, *shape)}`, or a function of the manifest that
            reads them.
        progress: Called as parts are done.

    Returns:
        The bytes of the ONNX file with its manifest inside, and the parity report.

    Raises:
        ParityError: Step by step and whole sequence differ; names the first timestep and output.
    """
    proto, manifest = candidate.proto, candidate.manifest
    report = verify_parity(
        candidate.original,
        StoredStepModel(proto.SerializeToString(), manifest),
        against=candidate.against,
        samplers=candidate.samplers,
        user_data=user_data(manifest) if callable(user_data) else user_data,
        steps=candidate.only_length or STEPS,
        atol=atol,
        rtol=rtol,
        progress=progress,
    )
    manifest.verified = report.parity
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, manifest.to_json()
    return proto.SerializeToString(), report
