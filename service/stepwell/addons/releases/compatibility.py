"""`check_candidate`: whether a version can be tried on the streams of another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stepwell.addons.releases.bodies import bad_release
from stepwell.addons.releases.document import Gate, Take
from stepwell.addons.releases.takeover import same_states
from stepwell.addons.releases.translations import Translations, translation_file
from stepwell.addons.releases.version_differences import tensors_differ
from stepwell.errors import ServiceError
from stepwell.models.served import ServedModel
from stepwell.models.version_differences import needed_inputs
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.labels import labels_of_outputs
from stepwell_export.runtime.truth import truths_of

_MOST_NAMED: Final = 5


def check_candidate(old: ServedModel, new: ServedModel, take: Take) -> None:
    """Check that a version accepts the streams of another one.

    Args:
        old: The current version.
        new: The candidate.
        take: How its states are made.

    Raises:
        ServiceError: `release_refused`: inputs or outputs differ; with `keep`, the state schemas differ.
    """
    difference = tensors_differ(old.manifest, new.manifest)
    if difference is None and (needed := needed_inputs(old.manifest, new.manifest)):
        difference = f"input {needed[0]!r} takes no missing values and did"
    if difference is not None:
        raise _refused(f"The versions differ: {difference}.", "Keep inputs and outputs as they are.")
    if take == "keep" and (difference := same_states(old.step_model.fields, new.step_model.fields)) is not None:
        raise _refused(
            f"`keep` needs equal states: {difference}.",
            "Send `take`: `translate` with a translation beside the new version, or `reset`.",
        )


async def publish_translation(translations: Translations, old: ServedModel, new: ServedModel, before: bytes) -> bytes:
    """Check the translation of a version's states to those of a new one, and store it for all replicas.

    None of them uses it before a release names its digest.

    Args:
        translations: The translations of this worker.
        old: The current version.
        new: The candidate.
        before: The digest of the translation that the running release names; empty: it names none.

    Returns:
        The digest of the file beside the new version; if there is none, `before`.

    Raises:
        ServiceError: `release_refused`: there is no translation, or one that does not fit or cannot be stored; or an
            error of the store.
    """
    name = translation_file(new, old.version).name
    try:
        digest = await translations.publish(old, new)
        if digest is None and before and await translations.load(old, new, before) is not None:
            digest = before
    except StepwellError as exc:
        raise _refused(f"{name} cannot be used: {exc.problem}", exc.fix or "Export it again.") from exc
    except OSError as exc:
        raise _refused(f"{name} cannot be read or stored: {exc}", "Check the folders' permissions.") from exc
    if digest is None:
        raise _refused(
            f"Version {new.version} has no {name} beside it.",
            "Export the translation graph to this name, or send `take`: `reset`.",
        )
    return digest


def check_gate(gate: Gate | None, new: ServedModel) -> None:
    """Check that a gate names outputs of the candidate only, and their labels, and that errors can be judged.

    Raises:
        ServiceError: `bad_release`.
    """
    outputs = [spec.name for spec in new.manifest.answered]
    unknown = [] if gate is None else sorted(gate.max_abs.keys() - set(outputs))
    if unknown:
        bad_release(
            f"`gate` has a limit for {_listed(unknown)}; the outputs are {_listed(outputs)}.", "Name outputs only."
        )
    if gate is None:
        return
    labels = labels_of_outputs(new.manifest)
    for output, limits in gate.max_abs.items():
        if isinstance(limits, dict) and (unknown := sorted(limits.keys() - set(labels[output]))):
            known = f"has the labels {_listed(labels[output])}" if labels[output] else "has no labels"
            bad_release(f"`gate` has a limit for {_listed(unknown)} of {output!r}, which {known}.", "Name labels only.")
    if gate.max_error_ratio is not None and not truths_of(new.manifest):
        bad_release(
            "`gate` has `max_error_ratio`, and nothing shows the truth of a prediction: the candidate has no feedback "
            "rule, and no stage that learns from a truth.",
            "Export the model with `--feedback OUTPUT=INPUT`, or leave `max_error_ratio` out.",
        )


def _refused(problem: str, fix: str) -> ServiceError:
    return ServiceError("release_refused", problem, fix=fix)


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f", and {more} more" if more > 0 else "")
