"""What requests are called, so that each retry of one has the same name, by whichever door it comes."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import struct
from collections.abc import Sequence
from typing import Any

from model_export.manifest import Manifest
from service.engine.types import Timestep
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

    Attributes:
        inputs: The model's inputs in the order in which their values are hashed.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.inputs = sorted(manifest.inputs, key=lambda spec: spec.name)
        self._names = [spec.name for spec in self.inputs]
        self._begun: dict[tuple[bool, bool, bool], Any] = {}  # hash of what all requests of a kind have in common
        self._numbered = self._begin((False, True, False))  # what nearly all are
        self._new_name = UniqueNames()

    def data(self, timestep: Timestep) -> list[bytes]:
        """Return the bytes of each input."""
        arrays, names = timestep.inputs, self._names
        if len(names) == 1:
            return [arrays[names[0]].tobytes()]
        return [arrays[name].tobytes() for name in names]

    def of(self, timestep: Timestep) -> tuple[list[bytes], bytes]:
        """Return the bytes of each input, and the name of the request, 16 bytes."""
        data = self.data(timestep)
        seq = timestep.seq
        if timestep.idempotency_key is None and timestep.after is None:
            if seq is None:
                return data, self._new_name()
            if timestep.life == "on":  # the way of nearly all
                h = self._numbered.copy()
                h.update(_PLACE(timestep.length, seq) + b"".join(data))
                return data, h.digest()
        return data, self._op_id(timestep, data)

    def _op_id(self, timestep: Timestep, data: Sequence[bytes]) -> bytes:
        seq, after, key = timestep.seq, timestep.after, timestep.idempotency_key
        given = key is not None, seq is not None, after is not None
        h = (self._begun.get(given) or self._begin(given)).copy()
        # Where each part ends is known from what is given and from the length: no two requests make the same bytes.
        parts = [_PLACE(timestep.length, seq or 0), *data]
        if after is not None:
            parts.append(after)
        if key is not None:
            parts.append(digest16(key.encode()))
        if timestep.life != "on":
            parts.append(timestep.life.encode())
        h.update(b"".join(parts))
        return h.digest()  # type: ignore[no-any-return]  # hashlib's objects have no type of their own

    def _begin(self, given: tuple[bool, bool, bool]) -> Any:
        parts = [bytes(given)]
        for spec in self.inputs:
            parts += (spec.name.encode(), spec.dtype.encode(), repr(spec.row_shape).encode())
        begun = self._begun[given] = hashlib.blake2b(digest16(*parts), digest_size=16)
        return begun
