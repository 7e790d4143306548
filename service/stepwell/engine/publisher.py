"""`Publisher`: the hook of commits; what it returns for a batch is published by the call that commits the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from stepwell.store.commits import Notification
    from stepwell.types import Timestep
    from stepwell_export.runtime.manifest import Array, TensorSpec

_NOT_NOTED: Final = contextlib.nullcontext()


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

    Between a call of `has_interest` or `notifications` and the start of the commit there is no `await`.
    """

    def has_interest(self, model: str) -> bool:
        """Whether any commit of a model may need a notification; called once or twice for each batch."""
        return False

    def notifications(self, batch: PendingCommits) -> list[Notification]:
        """Return what the store publishes with the commits of a batch that are applied."""
        return []

    def commit_under_way(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for one commit: it is left when the store has replied. It is entered at once."""
        return _NOT_NOTED
