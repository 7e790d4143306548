"""What requests are called, so that each retry of one has the same name, by whichever door it comes."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import struct
from collections.abc import Sequence
from typing import Any

from model_export.manifest import Manifest
from service.store.record import blake2b_128
from service.types import BulkTimesteps, Timestep

_POSITION = struct.Struct("<IQ").pack


class OpIdGenerator:
    """Names of 16 bytes that nobody else gives out: 8 random ones of its own, then a counter.

    Asking the kernel for 16 random bytes per request would cost as much as running the model for it.
    """

    def __init__(self) -> None:
        self._own = secrets.token_bytes(8)
        self._count = itertools.count()

    def __call__(self) -> bytes:
        """Return the next name."""
        return self._own + next(self._count).to_bytes(8, "little")


class OpIdHasher:
    """Names the requests to one model.

    A name is a hash over canonical bytes (inputs' names, dtypes, shapes and values; `seq`, `after` and key), so a
    retry in msgpack of a request in JSON is the same request. Without `seq`, `after` and key there is nothing to
    tell a retry by: it gets a new name.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._inputs = sorted(manifest.inputs, key=lambda spec: spec.name)
        self._hashers: dict[tuple[bool, bool, bool], Any] = {}  # hash of what all requests of a kind have in common
        self._numbered = self._start_hash((False, True, False))  # what nearly all are
        self._new_name = OpIdGenerator()

    def for_rows(
        self,
        length: int,
        seqs: Sequence[int | None],
        afters: Sequence[bytes | None],
        packed: Sequence[tuple[bytes, ...]],
    ) -> list[bytes]:
        """Return the names of requests without an idempotency key that continue their streams.

        Args:
            length: T of each.
            seqs: One per request.
            afters: One per request.
            packed: Each request's bytes of each input, in the order of the inputs' names.
        """
        begun, names = self._numbered.copy, list[bytes]()
        for seq, after, inputs in zip(seqs, afters, packed, strict=True):
            if after is None:
                if seq is None:
                    names.append(self._new_name())
                    continue
                h = begun()
                h.update(_POSITION(length, seq) + (inputs[0] if len(inputs) == 1 else b"".join(inputs)))
            else:
                given = False, seq is not None, True
                h = (self._hashers.get(given) or self._start_hash(given)).copy()
                h.update(b"".join((_POSITION(length, seq or 0), *inputs, after)))
            names.append(h.digest())
        return names

    def for_bulk(self, asked: BulkTimesteps) -> list[bytes]:
        """Return the name of each of several requests."""
        if asked.idempotency_key is not None:
            return [self.for_timestep(timestep) for timestep in asked.rows()]
        return self.for_rows(asked.length, asked.seqs, asked.afters, asked.packed)

    def for_timestep(self, timestep: Timestep) -> bytes:
        """Return the name of a request, 16 bytes."""
        seq, after, key = timestep.seq, timestep.after, timestep.idempotency_key
        if key is None and after is None and seq is None:
            return self._new_name()
        if key is None and timestep.lifecycle == "on":
            return self.for_rows(timestep.length, [seq], [after], [timestep.inputs])[0]
        given = key is not None, seq is not None, after is not None
        h = (self._hashers.get(given) or self._start_hash(given)).copy()
        # Where each part ends is known from what is given and from the length: no two requests make the same bytes.
        parts = [_POSITION(timestep.length, seq or 0), *timestep.inputs]
        if after is not None:
            parts.append(after)
        if key is not None:
            parts.append(blake2b_128(key.encode()))
        if timestep.lifecycle != "on":
            parts.append(timestep.lifecycle.encode())
        h.update(b"".join(parts))
        return h.digest()  # type: ignore[no-any-return]

    def _start_hash(self, given: tuple[bool, bool, bool]) -> Any:
        parts = [bytes(given)]
        for spec in self._inputs:
            parts += (spec.name.encode(), spec.dtype.encode(), repr(spec.row_shape).encode())
        begun = self._hashers[given] = hashlib.blake2b(blake2b_128(*parts), digest_size=16)
        return begun
