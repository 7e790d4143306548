r"""`TrialCounts`: the comparison of a trial's two versions, counted by each worker and added up in the store.

The counts of one trial are one hash, `keys.trial_key(model, trial.revision)`:

    steps, lost, fell_back, non_finite     integers
    run_s:old, run_s:new                   seconds of model runs
    max_abs:OUTPUT, sum_abs:OUTPUT         over the absolute differences of all numbers of an output
    numbers:OUTPUT                         how many numbers
    disagree:OUTPUT                        timesteps whose arg max differs; not there for an output of one number
    bucket:I:OUTPUT                        how many numbers are in a bucket of the histogram
    error:COLUMN:OUTPUT\0N\0LABEL          a sum of the errors against the truth; see `forecast_errors`
    seq:WORKER                             the newest addition of a worker

Of the N-th number of an output with labels, `OUTPUT\0N\0LABEL` stands for OUTPUT.

Bucket I holds differences d with 1.2**I <= d < 1.2**(I + 1), so a quantile read from it is exact to 10 %; differences
of 0 are in no bucket. Each worker collects its counts in a `TrialCounts` and adds them with `add_counts` once a second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from stepwell.addons.releases import keys
from stepwell.addons.releases.forecast_errors import SUMS
from stepwell.store.scripts import Script
from stepwell.store.state_store import StateStore
from stepwell.store.transport.connection import Argument
from stepwell_export.runtime.manifest import Array

SCRIPT: Final = Script.of("trial_counts.lua", "stepwell.addons.releases")
"""Adds counts to those of a trial."""

_BASE: Final[float] = 1.2
_TTL_MS: Final = 90 * 86400 * 1000


@dataclass(slots=True)
class OutputCounts:
    """The differences of one output.

    Attributes:
        max_abs: The greatest absolute difference.
        sum_abs: The sum of all absolute differences.
        numbers: How many numbers were compared.
        disagree: Timesteps whose arg max differs; None: the output has one number.
        buckets: Numbers in each bucket of the histogram.
        labels: The differences of each number that has a label.
    """

    max_abs: float = 0.0
    sum_abs: float = 0.0
    numbers: int = 0
    disagree: int | None = None
    buckets: Counter[int] = field(default_factory=Counter)
    labels: dict[str, OutputCounts] = field(default_factory=dict)

    def compare(self, old: Array, new: Array, labels: Sequence[str] = ()) -> None:
        """Count the predictions of both versions for the same timesteps, `(n, *row)` each.

        Numbers that are not finite in one of them are left out.
        """
        old, new = old.reshape(len(old), -1), new.reshape(len(new), -1)
        for i, label in enumerate(labels):
            self.labels.setdefault(label, OutputCounts()).compare(old[:, i : i + 1], new[:, i : i + 1])
        if old.shape[1] > 1:
            differ = old.argmax(axis=1) != new.argmax(axis=1)
            self.disagree = (self.disagree or 0) + int(np.count_nonzero(differ))
        differences = np.abs(old.astype(np.float64) - new.astype(np.float64))
        differences = differences[np.isfinite(differences)]
        if not differences.size:
            return
        self.max_abs = max(self.max_abs, float(differences.max()))
        self.sum_abs += float(differences.sum())
        self.numbers += differences.size
        different = differences[differences > 0]
        if not different.size:
            return
        buckets = np.floor(np.log(different) / math.log(_BASE)).astype(int)
        lowest = int(buckets.min())
        counts = np.bincount(buckets - lowest)  # buckets of float64 are few: less work than sorting all of them
        for i in np.flatnonzero(counts).tolist():
            self.buckets[lowest + i] += int(counts[i])

    def differences(self) -> dict[float, int]:
        """Return how many numbers have which absolute difference, to 10 %."""
        numbers = {math.pow(_BASE, bucket + 0.5): n for bucket, n in self.buckets.items()}
        return numbers | {0.0: self.numbers - self.buckets.total()}

    def quantile(self, q: float) -> float:
        """Return the absolute difference that a share `q` of all numbers does not exceed, to 10 %."""
        rank = q * self.numbers
        below = self.numbers - self.buckets.total()  # differences of 0
        if rank <= below:
            return 0.0
        for bucket in sorted(self.buckets):
            below += self.buckets[bucket]
            if rank <= below:
                return min(self.max_abs, math.pow(_BASE, bucket + 0.5))
        return self.max_abs


@dataclass(slots=True)
class TrialCounts:
    """What was counted of a trial.

    Attributes:
        steps: Compared timesteps that were committed.
        lost: Streams that left the trial in `shadow`, because the candidate failed.
        fell_back: Streams that left it in `ramp`, and continue with the old version.
        non_finite: Timesteps with a non-finite prediction or state of the candidate.
        run_s: Seconds of model runs, of the old and of the new version.
        outputs: The differences by output.
        errors: The sums of the errors against the truth, `(7,)` float64, by output and label; see `forecast_errors`.
    """

    steps: int = 0
    lost: int = 0
    fell_back: int = 0
    non_finite: int = 0
    run_s: tuple[float, float] = (0.0, 0.0)
    outputs: dict[str, OutputCounts] = field(default_factory=dict)
    errors: dict[str, dict[str, Array]] = field(default_factory=dict)

    def compare(self, output: str, old: Array, new: Array, labels: Sequence[str] = ()) -> None:
        """Count the predictions of an output; see `OutputCounts.compare`."""
        self.outputs.setdefault(output, OutputCounts()).compare(old, new, labels)

    def add_errors(self, output: str, labels: Sequence[str], sums: Array) -> None:
        """Add to the sums of the errors of an output, `(labels, 7)`."""
        known = self.errors.setdefault(output, {})
        for label, row in zip(labels, sums, strict=True):
            known[label] = known[label] + row if label in known else row


async def add_counts(
    store: StateStore, model: str, trial: int, counts: TrialCounts, *, worker: str, number: int, deadline: float
) -> None:
    """Add a worker's counts to those of a trial; an addition that is sent twice is made once.

    Args:
        store: The store.
        model: The model's name.
        trial: `Trial.revision`.
        counts: What was counted since the addition before.
        worker: A name that no other worker has; random, new at each start.
        number: The number of this addition, greater than those of the worker before; the same when it is sent again.
        deadline: On the running loop's clock.

    Raises:
        ServiceError: As for `StateStore.run`; then send the same addition again.
    """
    additions = [part for addition in _additions(counts) for part in addition]
    arguments: list[Argument] = [1, keys.trial_key(model, trial), worker, number, _TTL_MS, *additions]
    await store.run(SCRIPT, arguments, deadline=deadline)


async def read_counts(store: StateStore, model: str, trial: int, *, deadline: float) -> TrialCounts:
    """Return what all workers have counted of a trial.

    Raises:
        StoreUnavailableError: No reply before the deadline.
    """
    flat = await store.execute(deadline, "HGETALL", keys.trial_key(model, trial))
    return _counts_of({name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)})


def _additions(counts: TrialCounts) -> Iterator[tuple[str, str, str]]:
    """Yield how, field and value of each count that is not zero."""
    for name in ("steps", "lost", "fell_back", "non_finite"):
        if n := getattr(counts, name):
            yield "n", name, str(n)
    for name, seconds in zip(("run_s:old", "run_s:new"), counts.run_s, strict=True):
        if seconds:
            yield "x", name, repr(seconds)
    for output, found in counts.outputs.items():
        yield from _additions_of(output, found)
        for i, (label, of_label) in enumerate(found.labels.items()):
            yield from _additions_of(_of_label(output, i, label), of_label)
    for output, labels in counts.errors.items():
        for i, (label, sums) in enumerate(labels.items()):
            for column in np.flatnonzero(sums).tolist():
                yield "x", f"error:{column}:{_of_label(output, i, label)}", repr(float(sums[column]))


def _additions_of(output: str, found: OutputCounts) -> Iterator[tuple[str, str, str]]:
    yield "max", f"max_abs:{output}", repr(found.max_abs)
    yield "x", f"sum_abs:{output}", repr(found.sum_abs)
    yield "n", f"numbers:{output}", str(found.numbers)
    if found.disagree is not None:
        yield "n", f"disagree:{output}", str(found.disagree)
    for bucket, n in found.buckets.items():
        yield "n", f"bucket:{bucket}:{output}", str(n)


def _of_label(output: str, i: int, label: str) -> str:
    """Return how fields name a number of an output; by name they are in the order of the numbers."""
    return f"{output}\0{i:05}\0{label}"


def _counts_of(fields: Mapping[str, str]) -> TrialCounts:
    counts = TrialCounts(
        steps=int(fields.get("steps", 0)),
        lost=int(fields.get("lost", 0)),
        fell_back=int(fields.get("fell_back", 0)),
        non_finite=int(fields.get("non_finite", 0)),
        run_s=(float(fields.get("run_s:old", 0)), float(fields.get("run_s:new", 0))),
    )
    found: dict[str, OutputCounts] = {}
    for name, value in sorted(fields.items(), key=lambda field: field[0].split("\0")[1:2]):
        what, _, output = name.partition(":")
        if what == "max_abs":
            found[output] = OutputCounts(
                max_abs=float(value),
                sum_abs=float(fields[f"sum_abs:{output}"]),
                numbers=int(fields[f"numbers:{output}"]),
                disagree=int(fields[f"disagree:{output}"]) if f"disagree:{output}" in fields else None,
            )
        elif what == "error":
            column, _, place = output.partition(":")
            output, _, label = place.split("\0", 2)
            sums = counts.errors.setdefault(output, {}).setdefault(label, np.zeros(SUMS))
            sums[int(column)] = float(value)
    for name, value in fields.items():
        what, _, rest = name.partition(":")
        if what == "bucket":
            bucket, _, output = rest.partition(":")
            found[output].buckets[int(bucket)] = int(value)
    for place, of_place in found.items():
        output, *of_label = place.split("\0", 2)
        if of_label:
            counts.outputs[output].labels[of_label[1]] = of_place
        else:
            counts.outputs[output] = of_place
    return counts
