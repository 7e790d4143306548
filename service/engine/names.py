"""What requests are called, so that each retry of one has the same name, by whichever door it comes."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import struct
from collections.abc import Sequence
from typing import Any

from model_export.manifest import Manifest
from service.engine.types import Timestep, Timesteps
from service.store.record import digest16

_PLACE = struct.Struct("<IQ").pack


class UniqueNames:
    """Names of 16 bytes that nobody else gives out: 8 random ones of its own, then a counter.

    Asking the kernel for 16 random bytes per request would cost as much as running the model for it.
    """

    def __init__(self) -> None:
        self._own = secrets.token_bytes(8)
        self._count = itertools.count()

    def __call__(self) -> bytes:
        """Return the next name."""
        return self._own + next(self._count).to_bytes(8, "little")


class RequestNames:
    """Names the requests to one model.

    A name is a hash over canonical bytes (inputs' names, dtypes, shapes and values; `seq`, `after` and key), so a
    retry in msgpack of a request in JSON is the same request. Without `seq`, `after` and key there is nothing to
    tell a retry by: it gets a new name.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._inputs = sorted(manifest.inputs, key=lambda spec: spec.name)
        self._begun: dict[tuple[bool, bool, bool], Any] = {}  # hash of what all requests of a kind have in common
        self._numbered = self._begin((False, True, False))  # what nearly all are
        self._new_name = UniqueNames()

    def numbered(self, length: int, seqs: Sequence[int], packed: Sequence[tuple[bytes, ...]]) -> list[bytes]:
        """Return the names of requests that go on with a stream and tell their place by `seq` alone.

        Args:
            length: T of each.
            seqs: One per request.
            packed: Each one's bytes of each input, in the order of the inputs' names.
        """
        begun, names = self._numbered.copy, list[bytes]()
        for seq, inputs in zip(seqs, packed, strict=True):
            h = begun()
            h.update(_PLACE(length, seq) + (inputs[0] if len(inputs) == 1 else b"".join(inputs)))
            names.append(h.digest())
        return names

    def of_all(self, asked: Timesteps) -> list[bytes]:
        """Return the name of each of several requests."""
        if asked.idempotency_key is not None or any(asked.afters):
            return [self.of(timestep) for timestep in asked.each()]
        numbered = [seq for seq in asked.seqs if seq is not None]
        if len(numbered) < len(asked.seqs):
            return [self.of(timestep) for timestep in asked.each()]
        return self.numbered(asked.length, numbered, asked.packed)

    def of(self, timestep: Timestep) -> bytes:
        """Return the name of a request, 16 bytes."""
        seq, after, key = timestep.seq, timestep.after, timestep.idempotency_key
        if key is None and after is None:
            if seq is None:
                return self._new_name()
            if timestep.life == "on":
                return self.numbered(timestep.length, [seq], [timestep.inputs])[0]
        given = key is not None, seq is not None, after is not None
        h = (self._begun.get(given) or self._begin(given)).copy()
        # Where each part ends is known from what is given and from the length: no two requests make the same bytes.
        parts = [_PLACE(timestep.length, seq or 0), *timestep.inputs]
        if after is not None:
            parts.append(after)
        if key is not None:
            parts.append(digest16(key.encode()))
        if timestep.life != "on":
            parts.append(timestep.life.encode())
        h.update(b"".join(parts))
        return h.digest()  # type: ignore[no-any-return]

    def _begin(self, given: tuple[bool, bool, bool]) -> Any:
        parts = [bytes(given)]
        for spec in self._inputs:
            parts += (spec.name.encode(), spec.dtype.encode(), repr(spec.row_shape).encode())
        begun = self._begun[given] = hashlib.blake2b(digest16(*parts), digest_size=16)
        return begun
