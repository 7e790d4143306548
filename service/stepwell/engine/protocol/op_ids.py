"""Op ids of requests: each retry of a request has the same op id, whatever its transport."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import struct
from collections.abc import Sequence
from typing import Any

from stepwell.store.record import blake2b_128
from stepwell.types import BatchSources, BulkTimesteps, Timestep
from stepwell_export.runtime.manifest import Manifest

_POSITION = struct.Struct("<IQ").pack


class OpIdHasher:
    """Computes the op ids of requests to one model.

    An op id is a hash of canonical bytes (names, dtypes, shapes and values of the inputs; `seq`, `after`, idempotency
    key and source), so a request in JSON and its retry in msgpack have the same op id. A request without `seq`,
    `after`, key and source has nothing that identifies a retry: it gets a new op id.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._inputs = sorted(manifest.inputs, key=lambda spec: spec.name)
        self._hashers: dict[tuple[bool, bool, bool], Any] = {}  # the common prefix of all requests with the same fields
        self._sequenced = self._start_hash((False, True, False))  # the most frequent ones: with `seq` only
        self._unnumbered = self._start_hash((False, False, False))  # those with `source` only
        self._new_prefix, self._new_count = secrets.token_bytes(8), itertools.count()

    def for_rows(
        self,
        length: int,
        seqs: Sequence[int | None],
        afters: Sequence[bytes | None],
        packed: Sequence[tuple[bytes, ...]],
        sources: BatchSources | None = None,
    ) -> list[bytes]:
        """Return the op ids of requests without an idempotency key that continue their streams.

        Args:
            length: T of each request.
            seqs: One per request.
            afters: One per request.
            packed: Each request's bytes of each input, sorted by input name.
            sources: The source of each request; None: they have none.
        """
        if sources is not None:
            return self._for_rows_with_sources(length, seqs, afters, packed, sources)
        new_hash, op_ids = self._sequenced.copy, list[bytes]()
        if len(self._inputs) == 1 and None not in seqs and afters.count(None) == len(packed):  # most batches
            for seq, (inputs_of_one,) in zip(seqs, packed, strict=True):
                h = new_hash()
                h.update(_POSITION(length, seq) + inputs_of_one)
                op_ids.append(h.digest())
            return op_ids
        for seq, after, inputs in zip(seqs, afters, packed, strict=True):
            if after is None:
                if seq is None:
                    op_ids.append(self._new_op_id())
                    continue
                h = new_hash()
                h.update(_POSITION(length, seq) + b"".join(inputs))
            else:
                given = False, seq is not None, True
                h = (self._hashers.get(given) or self._start_hash(given)).copy()
                h.update(b"".join((_POSITION(length, seq or 0), *inputs, after)))
            op_ids.append(h.digest())
        return op_ids

    def _for_rows_with_sources(
        self,
        length: int,
        seqs: Sequence[int | None],
        afters: Sequence[bytes | None],
        packed: Sequence[tuple[bytes, ...]],
        sources: BatchSources,
    ) -> list[bytes]:
        op_ids = list[bytes]()
        if seqs.count(None) == afters.count(None) == len(packed):  # most; all that is hashed is joined in one array
            new_hash = self._unnumbered.copy
            for covered in sources.encode_behind(_POSITION(length, 0), packed):
                h = new_hash()
                h.update(covered)
                op_ids.append(h.digest())
            return op_ids
        for seq, after, inputs, source in zip(seqs, afters, packed, sources.rows(), strict=True):
            given = False, seq is not None, after is not None
            h = (self._hashers.get(given) or self._start_hash(given)).copy()
            h.update(b"".join((_POSITION(length, seq or 0), *inputs, after or b"", source.encode())))
            op_ids.append(h.digest())
        return op_ids

    def for_bulk(self, bulk: BulkTimesteps) -> list[bytes]:
        """Return the op id of each request of a bulk request."""
        if bulk.idempotency_key is not None:
            return [self.for_timestep(timestep) for timestep in bulk.rows()]
        return self.for_rows(bulk.length, bulk.seqs, bulk.afters, bulk.packed, bulk.sources)

    def for_timestep(self, timestep: Timestep) -> bytes:
        """Return the op id of a request, 16 bytes."""
        seq, after, key, source = timestep.seq, timestep.after, timestep.idempotency_key, timestep.source
        if key is None and after is None and seq is None and source is None:
            return self._new_op_id()
        if key is None and source is None and timestep.lifecycle == "on":
            return self.for_rows(timestep.length, [seq], [after], [timestep.inputs])[0]
        given = key is not None, seq is not None, after is not None
        h = (self._hashers.get(given) or self._start_hash(given)).copy()
        # `given` and the length determine where each part ends, so different requests have different bytes.
        parts = [_POSITION(timestep.length, seq or 0), *timestep.inputs]
        if after is not None:
            parts.append(after)
        if key is not None:
            parts.append(blake2b_128(key.encode()))
        if timestep.lifecycle != "on":
            parts.append(timestep.lifecycle.encode())
        if source is not None:
            parts.append(source.encode())
        h.update(b"".join(parts))
        return h.digest()  # type: ignore[no-any-return]

    def _new_op_id(self) -> bytes:
        """Return a unique op id: random bytes would cost as much to read as the model to run."""
        return self._new_prefix + next(self._new_count).to_bytes(8, "little")

    def _start_hash(self, given: tuple[bool, bool, bool]) -> Any:
        parts = [bytes(given)]
        for spec in self._inputs:
            parts += (spec.name.encode(), spec.dtype.encode(), repr(spec.row_shape).encode())
        prefix = self._hashers[given] = hashlib.blake2b(blake2b_128(*parts), digest_size=16)
        return prefix
