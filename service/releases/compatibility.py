"""`check_candidate`: whether a version can be tried on the streams of another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from model_export.errors import StepwellError
from model_export.step_model import StepModel
from service.codec.releases import bad_release
from service.errors import ServiceError
from service.models.paired import same_states, tensors_differ
from service.models.served import ServedModel
from service.releases.document import Gate, Take
from service.releases.takeover import Translation, translation_file

_MOST_NAMED: Final = 5


def check_candidate(old: ServedModel, new: ServedModel, take: Take) -> None:
    """Check that a version accepts the streams of another one; a translation is loaded, so this may take a while.

    Args:
        old: The current version.
        new: The candidate.
        take: How its states are made.

    Raises:
        ServiceError: `release_refused`: inputs or outputs differ; with `keep`, the state schemas differ; with
            `translate`, there is no translation, or one that does not fit.
    """
    if (difference := tensors_differ(old.manifest, new.manifest)) is not None:
        raise _refused(f"The versions differ: {difference}.", "Keep inputs and outputs as they are.")
    if take == "keep" and (difference := same_states(old.step_model.fields, new.step_model.fields)) is not None:
        raise _refused(
            f"`keep` needs equal states: {difference}.",
            "Send `take`: `translate` with a translation beside the new version, or `reset`.",
        )
    if take == "translate":
        _check_translation(old, new)


def _check_translation(old: ServedModel, new: ServedModel) -> None:
    file = translation_file(new, old.version)
    if not file.is_file():
        raise _refused(
            f"Version {new.version} has no {file.name} beside it.",
            "Export the translation graph to this name, or send `take`: `reset`.",
        )
    assert isinstance(old.step_model, StepModel)
    assert isinstance(new.step_model, StepModel)
    try:
        Translation(file, old.step_model, new.step_model)
    except StepwellError as exc:
        raise _refused(f"{file.name} cannot be used: {exc.problem}", exc.fix or "Export it again.") from exc


def check_gate(gate: Gate | None, new: ServedModel) -> None:
    """Check that a gate names outputs of the candidate only.

    Raises:
        ServiceError: `bad_release`.
    """
    outputs = [spec.name for spec in new.manifest.answered]
    unknown = [] if gate is None else sorted(gate.max_abs.keys() - set(outputs))
    if unknown:
        bad_release(
            f"`gate` has a limit for {_listed(unknown)}; the outputs are {_listed(outputs)}.", "Name outputs only."
        )


def _refused(problem: str, fix: str) -> ServiceError:
    return ServiceError("release_refused", problem, fix=fix)


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f", and {more} more" if more > 0 else "")
