"""`release_response`: a release as the API shows it: its document, the status of each version, and what was counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec.structs import asdict

from stepwell.addons.releases.counters import OutputCounts, TrialCounts
from stepwell.addons.releases.document import ReleaseDocument, Trial
from stepwell.addons.releases.forecast_errors import SUMS, figures
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.responses import (
    ComparisonResponse,
    EndedResponse,
    ErrorComparison,
    NumberComparison,
    OutputComparison,
    ReleaseResponse,
    Status,
    VersionStatus,
)
from stepwell.addons.releases.stream_counts import StreamCounts
from stepwell.addons.releases.sweep_progress import SweepProgress
from stepwell.models.registry import ModelRegistry
from stepwell_export.runtime.truth import Truth, truths_of


def release_response(
    document: ReleaseDocument,
    now: float,
    *,
    models: ModelRegistry,
    streams: StreamCounts | None,
    compared: TrialCounts,
    sweep: SweepProgress,
) -> ReleaseResponse:
    """Return the response to a request for a release.

    Args:
        document: The release.
        now: The store's clock, seconds since 1970.
        models: Names the versions that the document does not name.
        streams: The newest count of all streams; None: there is none.
        compared: The counts of the last trial.
        sweep: The newest sweep.
    """
    trial, running = document.trial, document.running
    return ReleaseResponse(
        model=document.model,
        revision=document.revision,
        current=document.current.number,
        candidate=None if running is None else running.new.number,
        mode=None if running is None else running.mode,
        percent=_percent(trial, now),
        schedule=[] if running is None else list(running.schedule),
        take="keep" if trial is None else trial.take,
        warm_steps=0 if trial is None else trial.warm_steps,
        existing=True if trial is None else trial.existing,
        rollback=False if trial is None else trial.rollback,
        gate=None if trial is None else _gate(trial),
        started_at=(document.started_at or None) if trial is None else trial.started_at,
        ended=None if trial is None else _ended(trial),
        versions=_versions(document, models, {} if streams is None else streams.of(document.model)),
        counted_at=None if streams is None else streams.counted_at,
        compared=_compared(compared, [] if trial is None else _truths(trial, models, document.model)),
        moved=sweep.moved,
        left=sweep.left,
    )


def version_names(document: ReleaseDocument | None, models: ModelRegistry, model: str) -> dict[str, int]:
    """Return the versions of a model by fingerprint in hex: those in the folders, and those that its release names."""
    named = {}
    if document is not None:
        trials = [*([] if document.trial is None else [document.trial]), *document.earlier]
        parts = [document.current, *document.formerly, *(half for one in trials for half in (one.old, one.new))]
        named = {part.fingerprint.hex(): part.number for part in parts}
    served = {number: models.get(model, number).fingerprint for number in models.versions(model)}
    named |= {fingerprint.hex(): number for number, fingerprint in served.items()}
    if document is not None and served.get(document.current.number) == document.current.fingerprint:
        named[document.current.fingerprint.hex()] = document.current.number  # not another number of the same file
    return named


def streams_by_version(
    releases: Releases, models: ModelRegistry, streams: StreamCounts | None
) -> dict[tuple[str, ...], float]:
    """Return the number of streams by model and version, for the models that are served; for metrics."""
    found: defaultdict[tuple[str, ...], float] = defaultdict(float)
    if streams is None:
        return found
    for model in models.names():
        names = version_names(releases.current(model), models, model)
        for fingerprint, n in streams.of(model).items():
            found[model, str(names.get(fingerprint, "unknown"))] += n
    return found


def ended_by_model(releases: Releases) -> dict[tuple[str, ...], float]:
    """Return when the last trial of each model ended, seconds since 1970, by model and how; for metrics.

    How it ended is `promoted`, `aborted` (by a request) or `gate` (aborted by its gate). A model whose last trial is
    still running has no entry.
    """
    found: dict[tuple[str, ...], float] = {}
    for model in releases.models():
        document = releases.current(model)
        ended = None if document is None or document.trial is None else document.trial.ended
        if ended is not None:
            found[model, "gate" if ended.by_gate else ended.how] = ended.at
    return found


def _versions(document: ReleaseDocument, models: ModelRegistry, streams: Mapping[str, int]) -> list[VersionStatus]:
    """Return a row for each version that is in the folders, that the release uses, or that has streams."""
    names = version_names(document, models, document.model)
    served = {models.get(document.model, number).fingerprint.hex() for number in models.versions(document.model)}
    used = {one.fingerprint.hex() for one in (document.current, *document.formerly)}
    if document.running is not None:
        used.add(document.running.new.fingerprint.hex())
    rows = []
    for fingerprint in served | used | {name for name, n in streams.items() if n}:
        loaded = models.by_fingerprint(document.model, bytes.fromhex(fingerprint))
        number = names.get(fingerprint, None if loaded is None else loaded.version)
        n = streams.get(fingerprint, 0)
        status = _status(document, bytes.fromhex(fingerprint), n)
        rows.append(VersionStatus(version=number, fingerprint=fingerprint, streams=n, status=status))
    return sorted(rows, key=lambda row: (row.version or 0, row.fingerprint))


def _status(document: ReleaseDocument, fingerprint: bytes, streams: int) -> Status:
    if fingerprint == document.current.fingerprint:
        return "current"
    if document.running is not None and fingerprint == document.running.new.fingerprint:
        return "ramping"
    if streams:
        return "draining"
    return "drained" if any(one.fingerprint == fingerprint for one in document.formerly) else "inactive"


def _percent(trial: Trial | None, now: float) -> float:
    if trial is None:
        return 0.0
    if trial.ended is not None:
        return 100.0 if trial.ended.how == "promoted" else 0.0
    return trial.percent_at(now)


def _gate(trial: Trial) -> dict[str, Any] | None:
    if trial.gate is None:
        return None
    return {name: limit for name, limit in asdict(trial.gate).items() if limit is not None and limit != {}}


def _ended(trial: Trial) -> EndedResponse | None:
    if trial.ended is None:
        return None
    return EndedResponse(how=trial.ended.how, why=trial.ended.why, at=trial.ended.at, candidate=trial.new.number)


def _truths(trial: Trial, models: ModelRegistry, model: str) -> list[Truth]:
    """Return the truths of a trial, as far as its versions are loaded here."""
    halves = (models.by_fingerprint(model, half.fingerprint) for half in (trial.new, trial.old))
    return truths_of(*(half.manifest for half in halves if half is not None))


def _compared(counts: TrialCounts, truths: Sequence[Truth]) -> ComparisonResponse:
    outputs = {
        name: OutputComparison(
            **_differences(found),
            disagree=None if found.disagree is None else found.disagree / max(counts.steps, 1),
            labels={label: NumberComparison(**_differences(one)) for label, one in found.labels.items()},
        )
        for name, found in sorted(counts.outputs.items())
    }
    none = np.zeros(SUMS)
    sums = {truth.output: dict.fromkeys(truth.labels, none) for truth in truths}
    for name, labels in counts.errors.items():
        sums[name] = sums.get(name, {}) | labels
    errors = {
        name: {label: ErrorComparison(**figures(one)._asdict()) for label, one in labels.items()}
        for name, labels in sums.items()
    }
    return ComparisonResponse(
        steps=counts.steps,
        lost=counts.lost,
        fell_back=counts.fell_back,
        non_finite=counts.non_finite,
        outputs=outputs,
        error=errors or None,
    )


def _differences(found: OutputCounts) -> dict[str, float]:
    mean = found.sum_abs / found.numbers if found.numbers else 0.0
    return {"max_abs": found.max_abs, "mean_abs": mean, "p99_abs": found.quantile(0.99)}
