"""`IdempotencyEntry`: the response to a request with an idempotency key, as the store holds it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from zlib_ng.zlib_ng import crc32

from stepwell.errors import CorruptRecordError, RecordVersionError

_MAGIC = b"SK1\0"
_MAGIC_2 = b"SK2\0"  # of a response with `version`
_MAGIC_3 = b"SK3\0"  # of a response with `versions`
_MAGICS = (_MAGIC, _MAGIC_2, _MAGIC_3)
_COUNT = struct.Struct("<I")
_HEADER = struct.Struct("<4sI16sQQ16sI8s")


@dataclass(frozen=True, slots=True)
class IdempotencyEntry:
    """The stored response to a request with an idempotency key: a value of its own, with its own time to live.

    Its bytes start with `SK1` and a zero, where 1 is the format version, and a CRC-32 of the bytes that follow. An
    entry with `shows_version` has format version 2; one with `versions` has format version 3, and between header and
    outputs 4 bytes with their number and 4 for each.

    Attributes:
        op_id: Op id of the request that used the key, 16 bytes.
        epoch: The stream's epoch in which it was applied.
        step: The stream's step after it.
        history_hash: The stream's history hash after it, 16 bytes.
        length: Timesteps it applied.
        outputs: Its predictions that a replay needs, packed rows.
        fingerprint: Fingerprint of the step graph that computed them, 8 bytes.
        shows_version: The response has `version`.
        versions: The version that computed each of the outputs, 0 if that is not known, if they are several.
    """

    op_id: bytes
    epoch: int
    step: int
    history_hash: bytes
    length: int
    outputs: bytes
    fingerprint: bytes = bytes(8)
    shows_version: bool = False
    versions: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes for the store."""
        n = len(self.versions)
        versions = struct.pack(f"<{1 + n}I", n, *self.versions) if n else b""
        body = self._packed(0)[8:] + versions + self.outputs
        return self._packed(_checksum(self._magic, body))[:8] + body

    @property
    def _magic(self) -> bytes:
        return _MAGIC_3 if self.versions else _MAGICS[self.shows_version]

    def _packed(self, crc: int) -> bytes:
        parts = (self.op_id, self.epoch, self.step, self.history_hash, self.length, self.fingerprint)
        return _HEADER.pack(self._magic, crc, *parts)

    @classmethod
    def decode(cls, raw: bytes) -> IdempotencyEntry:
        """Decode an entry; every field is checked. If it cannot be decoded, whether its request was applied is unknown.

        Raises:
            CorruptRecordError: The bytes are not an entry of ours, are truncated, or do not match their checksum.
            RecordVersionError: An entry of another format version.
        """
        is_known = raw[:4] in _MAGICS
        if len(raw) >= 4 and not is_known and raw[:2] + raw[3:4] == _MAGIC[:2] + _MAGIC[3:]:
            raise RecordVersionError(
                f"The entry of the idempotency key has format version {raw[2:3]!r}; this release reads b'1' to b'3'.",
                applied="unknown",
            )
        if len(raw) < _HEADER.size or not is_known:
            raise _corrupt(f"has {len(raw)} bytes and does not start like an entry")
        _, crc, op_id, epoch, step, history_hash, length, fingerprint = _HEADER.unpack_from(raw)
        if _checksum(raw[:4], memoryview(raw)[8:]) != crc:
            raise _corrupt("has a checksum that does not match its bytes")
        versions: tuple[int, ...] = ()
        outputs_at = _HEADER.size
        if raw[:4] == _MAGIC_3:
            [n] = _COUNT.unpack_from(raw, outputs_at)
            versions = struct.unpack_from(f"<{n}I", raw, outputs_at + _COUNT.size)
            outputs_at += _COUNT.size + 4 * n
        shows_version = raw[:4] != _MAGIC
        return cls(op_id, epoch, step, history_hash, length, raw[outputs_at:], fingerprint, shows_version, versions)


def _checksum(magic: bytes, body: bytes | memoryview) -> int:
    return crc32(body, crc32(magic)) if magic == _MAGIC_3 else crc32(body)


def _corrupt(what: str) -> CorruptRecordError:
    return CorruptRecordError(
        f"The entry of the idempotency key {what}.",
        fix="Read the stream's step, then continue with a new key.",
        applied="unknown",
    )
