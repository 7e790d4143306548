"""`write_savepoint`: states that were computed elsewhere, as a savepoint that `stepwell load` reads."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from stepwell.addons.savepoints.file import encode_header, encode_page
from stepwell.ids import bad_stream_id
from stepwell.store.record import Kind, Record, blake2b_128
from stepwell_client.wire.ids import is_stream_id
from stepwell_export.runtime.step_model import StepModel

_PAGE_STREAMS: Final = 1000


class ComputedState(NamedTuple):
    """The state of a stream after some timesteps.

    Attributes:
        stream: The stream's id.
        step: The number of timesteps.
        state: The state, packed.
    """

    stream: str
    step: int
    state: bytes


def write_savepoint(path: Path, model: Path, states: Iterable[ComputedState], name: str | None = None) -> int:
    """Write states as a savepoint, whole or not at all, and return their number.

    The same states give the same records, so that a file that is loaded twice changes nothing the second time.

    Args:
        path: The file.
        model: The file of the step graph that computed them.
        states: The states, one of each stream.
        name: The model's name in the service; None: that of the model file.

    Raises:
        OSError: The file cannot be written.
        ServiceError: `bad_request`: a stream's name is not a valid id.
        StepwellError: The model file is no step graph.
    """
    count, fingerprint = 0, StepModel(model).fingerprint
    header = encode_header(name or model.stem, "", datetime.now(UTC).isoformat(timespec="seconds"))
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        part = Path(file.name)
        try:
            for page in _pages(states):
                count += len(page)
                records = [(each.stream, _record(each, fingerprint)) for each in page]
                file.write(encode_page(header, records, str(count), ()))
                header = b""
            file.write(encode_page(header, (), None, ()))
        except BaseException:
            part.unlink()
            raise
    part.replace(path)
    return count


def _pages(states: Iterable[ComputedState]) -> Iterator[list[ComputedState]]:
    left = iter(states)
    while page := list(islice(left, _PAGE_STREAMS)):
        yield page


def _record(computed: ComputedState, fingerprint: bytes) -> bytes:
    """Return the record of a stream whose state was put."""
    if not is_stream_id(computed.stream):
        raise bad_stream_id(computed.stream)
    history_hash = blake2b_128(fingerprint, computed.step.to_bytes(8, "little"), computed.state)
    now = time.time_ns() // 1_000_000
    epoch = int.from_bytes(history_hash[:8], "little")
    return Record(
        epoch, computed.step, 0, Kind.PUT_STATE, history_hash, history_hash, fingerprint, now, now, b"", computed.state
    ).encode()
