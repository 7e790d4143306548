"""`Publisher`: the hook of commits; what it returns for a batch is published by the call that commits the batch."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from stepwell.store.commits import Notification
    from stepwell.types import Timestep
    from stepwell_export.runtime.manifest import Array, TensorSpec


class CandidateOutputs(NamedTuple):
    """What the candidate of a release computed for one stream.

    Attributes:
        version: Its version.
        outputs: Its predictions, `(T', *row)` by name.
    """

    version: int
    outputs: Mapping[str, Array]


class PendingCommits(NamedTuple):
    """What is about to be committed, of one model; each list has an element for each row.

    Attributes:
        timesteps: The requests.
        inputs: The model's inputs, in the order of a timestep's `inputs`.
        outputs: The returned predictions, `(rows, T', *row)` per output.
        steps: Each stream's step after its commit.
        state_ids: Each stream's state id after its commit.
        versions: The model version that responded to each.
        candidates: What the candidate of a release computed for each; empty: there is none.
    """

    timesteps: Sequence[Timestep]
    inputs: Sequence[TensorSpec]
    outputs: Mapping[str, Array]
    steps: Sequence[int]
    state_ids: Sequence[bytes]
    versions: Sequence[int]
    candidates: Sequence[CandidateOutputs | None] = ()


class Publisher:
    """Publishes nothing; a subclass, of an add-on, decides what is published with commits.

    Between a look-up in `watched` or a call of `notifications` and the start of the commit there is no `await`.

    Attributes:
        watched: The models of which a commit may need a notification; read for each batch.
    """

    watched: Container[str] = frozenset()

    def notifications(self, batch: PendingCommits) -> list[Notification]:
        """Return what the store publishes with the commits of a batch that are applied."""
        return []
