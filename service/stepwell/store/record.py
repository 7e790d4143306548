r"""`Record`: one stream as the store holds it: packed bytes, never pickle.

Little-endian. Bytes 8..63 are the guard: two records with equal guards are the same state of the same history,
so a commit whose expected guard matches cannot overwrite a write that it has not read.

    offset size field
         0    4 magic `SW1\0`; the third byte is the format version
         4    4 header length
         8    8 epoch: random, generated at create, reset and fork       ┐
        16    8 step: timesteps since then                               │
        24    4 length: timesteps of the newest operation, 0 for a reset │ guard
        28    4 flags: kind of the newest operation, `HAD_KEY`,          │
                `CHANGED_VERSION`, and the version (`version_flags`)     │
        32   16 op id of the newest operation                            │
        48   16 history hash, sent to clients as `state_id`              ┘
        64    8 model fingerprint
        72    4 output bytes
        76    4 state bytes
        80    4 moved: twice the revision of the release that moved the stream last (0: none), plus 1 if the
                stream has left that trial
        84    4 CRC-32 of the whole record, with this field zero
        88    8 updated at, milliseconds (information only)
        96    8 created at, milliseconds (information only)
       104    . outputs of the newest operation, then state

A record that holds positions of sources has format version 2, magic `SW2\0`. Its header length covers what stands
between the fixed fields and the outputs:

       104    4 n, number of sources, 1 to 4
       108    4 k, number of answers whose positions are kept
       112 16 n for each source, the one used last first: digest of its id (8), position (8)
         .  8 k for each answer of the newest operation: its position of the first source

If several versions have computed these answers, the record has format version 3, magic `SW3\0`, and also:

         .  4 k for each of these answers: the version that computed it, 0 if that is not known

A record without positions is written in format 1, so a stream that uses no source is stored as it always was.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from msgspec import Struct
from zlib_ng.zlib_ng import crc32

from stepwell.errors import CorruptRecordError, RecordVersionError

MAGIC = b"SW1\0"
MAGIC_2 = b"SW2\0"
_MAGIC_3 = b"SW3\0"
_MAGICS = (MAGIC, MAGIC_2, _MAGIC_3)
MAX_SOURCES = 4
_HEADER = struct.Struct("<4sIQQII16s16s8sIIIIQQ")
_CRC = struct.Struct("<I")
_SOURCE_COUNTS = struct.Struct("<II")
_SOURCE = struct.Struct("<8sQ")
EPOCH_AT = slice(8, 16)
_STEP_AT = slice(16, 24)
_MOVED_AT = slice(80, 84)
_CRC_AT = 84
HEADER_BYTES = _HEADER.size
HEAD_BYTES = HEADER_BYTES + _SOURCE_COUNTS.size + MAX_SOURCES * _SOURCE.size
"""First bytes of a record that have its header and all its positions of sources."""
_FORMAT_1 = struct.pack("<4sI", MAGIC, HEADER_BYTES)
NO_HISTORY = bytes(16)
HAD_KEY = 0x100
CHANGED_VERSION = 0x200
_VERSION_SHIFT = 10
_MAX_VERSION = (1 << 32 - _VERSION_SHIFT) - 1


def version_flags(version: int, *, changed: bool = False) -> int:
    """Return the flags of a step with the version that responded, 0 in place of one above 4,194,303.

    A sweep moves the stream on without a step, and a retry still repeats the version.

    Args:
        version: The version.
        changed: It is another one than that of the step before.
    """
    return CHANGED_VERSION * changed | (version if version <= _MAX_VERSION else 0) << _VERSION_SHIFT


def version_of(flags: int) -> int:
    """Return the version in the flags of `version_flags`; 0: it is not there."""
    return flags >> _VERSION_SHIFT


_GUARD = struct.Struct("<QQII16s16s")
GUARD_BYTES = _GUARD.size
GUARD_AT = slice(8, 8 + GUARD_BYTES)
_OP_ID_AT = slice(32, 48)
_HISTORY_HASH_AT = slice(48, 64)


class Kind(IntEnum):
    """The kind of the newest operation; the low byte of the flags."""

    STEP = 1
    RESET = 2
    FORK = 3
    RESET_TO_SNAPSHOT = 4
    PUT_STATE = 5
    ROLLOUT = 6  # a committed rollout
    MOVE = 7  # to another version, by hand


class SourcePosition(NamedTuple):
    """How far a stream has consumed one source.

    Attributes:
        digest: Digest of the source's id, 8 bytes.
        at: Position of the newest timestep applied from it.
    """

    digest: bytes
    at: int


class Record(Struct, frozen=True, gc=False):
    """A stream's state, with everything that is needed to replay the response to its newest operation.

    Attributes:
        epoch: Random 64-bit number, new at each create, reset and fork.
        step: Timesteps since creation or reset.
        length: Timesteps of the newest operation; 0 for a reset.
        flags: `Kind`; `HAD_KEY` if the operation had an idempotency key; `version_flags` of a step with a source, or
            to which another version responded than to the operation before.
        op_id: Op id of the newest operation, 16 bytes.
        history_hash: Hash of the whole history, 16 bytes.
        fingerprint: Fingerprint of the step graph that wrote the state, 8 bytes.
        updated_ms: Milliseconds since the Unix epoch.
        created_ms: Milliseconds since the Unix epoch.
        outputs: The predictions of the newest operation that a replay needs, packed rows.
        state: One packed state row.
        sources: The positions of the sources used last, the newest use first; at most `MAX_SOURCES`.
        answered_at: Positions of the newest operation's last timesteps, of the first source: one for each prediction
            in `outputs` (with none stored, of the last timestep); empty if that operation had no source.
        moved: Twice the revision of the release that moved the stream last, 0 if none did; plus 1 if the stream has
            left that release's trial.
        answer_versions: The version that computed each answer of `answered_at`, 0 if that is not known; empty: that in
            the flags has computed all of them.
    """

    epoch: int
    step: int
    length: int
    flags: int
    op_id: bytes
    history_hash: bytes
    fingerprint: bytes
    updated_ms: int
    created_ms: int
    outputs: bytes
    state: bytes
    sources: tuple[SourcePosition, ...] = ()
    answered_at: tuple[int, ...] = ()
    moved: int = 0
    answer_versions: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes for the store, in the lowest format that can hold it."""
        position = self.epoch, self.step, self.length, self.flags, self.op_id, self.history_hash, self.fingerprint
        sources = _encode_sources(self.sources, self.answered_at, self.answer_versions) if self.sources else b""
        magic = (_MAGIC_3 if self.answer_versions else MAGIC_2) if sources else MAGIC
        times = self.updated_ms, self.created_ms
        return _encode(magic, position, times, self.outputs, self.state, sources, self.moved)

    @property
    def guard(self) -> bytes:
        """The 56 bytes that the store compares."""
        return _GUARD.pack(self.epoch, self.step, self.length, self.flags, self.op_id, self.history_hash)

    @property
    def nbytes(self) -> int:
        """Length of `encode()`."""
        if not self.sources:
            return HEADER_BYTES + len(self.outputs) + len(self.state)
        header = _header_bytes(len(self.sources), len(self.answered_at)) + 4 * len(self.answer_versions)
        return header + len(self.outputs) + len(self.state)

    @property
    def versions(self) -> tuple[int, ...]:
        """The version that computed each answer of `answered_at`, 0 if that is not known."""
        return self.answer_versions or (version_of(self.flags),) * len(self.answered_at)


def is_header(raw: object) -> bool:
    """Whether a value is as long as a record's header at least, and has its magic; nothing else is checked."""
    return isinstance(raw, bytes) and len(raw) >= HEADER_BYTES and raw.startswith(_MAGICS)


def sources_of(head: bytes) -> tuple[SourcePosition, ...]:
    """Return the positions of sources in the first `HEAD_BYTES` of a record; none if they cannot be read."""
    if head[:4] == MAGIC or len(head) < HEADER_BYTES + _SOURCE_COUNTS.size:
        return ()
    n, _ = _SOURCE_COUNTS.unpack_from(head, HEADER_BYTES)
    first, end = HEADER_BYTES + _SOURCE_COUNTS.size, HEADER_BYTES + _SOURCE_COUNTS.size + n * _SOURCE.size
    if n > MAX_SOURCES or end > len(head):
        return ()
    return tuple([SourcePosition(*fields) for fields in _SOURCE.iter_unpack(head[first:end])])


def step_of(raw: bytes) -> int:
    """Return the step in the header of a record."""
    return int.from_bytes(raw[_STEP_AT], "little")


def op_id_of(raw: bytes) -> bytes:
    """Return the op id in the header of a record, 16 bytes."""
    return raw[_OP_ID_AT]


def history_hash_of(raw: bytes) -> bytes:
    """Return the history hash in the header of a record, 16 bytes."""
    return raw[_HISTORY_HASH_AT]


def encode_next(  # noqa: PLR0917 - the parts of a record
    header: bytes,
    op_id: bytes,
    updated_ms: int,
    outputs: bytes,
    state: bytes,
    sources: Sequence[SourcePosition] = (),
    answered_at: Sequence[int] = (),
    version: int = 0,
) -> tuple[bytes, int, bytes]:
    """Encode the record of a stream after one more timestep without an idempotency key.

    Args:
        header: The header of its record before the timestep, 104 bytes.
        op_id: Op id of the step, 16 bytes.
        updated_ms: Milliseconds since the Unix epoch.
        outputs: The prediction, packed.
        state: The state after the step, packed.
        sources: The positions of sources after it.
        answered_at: The position of the prediction, if the timestep has a source.
        version: The version that computed it, if the timestep has a source; else 0.

    Returns:
        The record's bytes, its step and its history hash.
    """
    _, _, epoch, step, _, _, _, history_hash, fingerprint, _, _, moved, _, _, created_ms = _HEADER.unpack(header)
    [history_hash] = extend_history((history_hash,), Kind.STEP, (op_id,), fingerprint)
    flags = Kind.STEP | version_flags(version) if version else Kind.STEP
    position = epoch, step + 1, 1, flags, op_id, history_hash, fingerprint
    section = _encode_sources(sources, answered_at) if sources else b""
    magic, times = MAGIC_2 if section else MAGIC, (updated_ms, created_ms)
    return _encode(magic, position, times, outputs, state, section, moved), step + 1, history_hash


def header_of(record: bytes) -> bytes:
    """Return the fixed fields of a record, 104 bytes, as those of format 1."""
    return _FORMAT_1 + record[len(_FORMAT_1) : HEADER_BYTES]


def _encode(  # noqa: PLR0917 - the parts of a record
    magic: bytes,
    position: tuple[int, int, int, int, bytes, bytes, bytes],
    times: tuple[int, int],
    outputs: bytes,
    state: bytes,
    sources: bytes = b"",
    moved: int = 0,
) -> bytes:
    """Return a record's bytes; `position` has the header's fields from `epoch` to `fingerprint`."""
    header = bytearray(
        _HEADER.pack(magic, HEADER_BYTES + len(sources), *position, len(outputs), len(state), moved, 0, *times)
    )
    header += sources
    _CRC.pack_into(header, _CRC_AT, crc32(state, crc32(outputs, crc32(header))))
    return b"".join((header, outputs, state))


def _encode_sources(
    sources: Sequence[SourcePosition], answered_at: Sequence[int], versions: Sequence[int] = ()
) -> bytes:
    parts = [_SOURCE_COUNTS.pack(len(sources), len(answered_at))]
    parts += [_SOURCE.pack(*source) for source in sources]
    parts.append(struct.pack(f"<{len(answered_at)}Q{len(versions)}I", *answered_at, *versions))
    return b"".join(parts)


def _decode_sources(raw: bytes, header: int) -> tuple[tuple[SourcePosition, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the positions, and the versions, in a record of format 2 or 3 whose checksum matches."""
    n_sources, n_answers = _SOURCE_COUNTS.unpack_from(raw, HEADER_BYTES)
    n_versions = n_answers if raw[:4] == _MAGIC_3 else 0
    if not 1 <= n_sources <= MAX_SOURCES or header != _header_bytes(n_sources, n_answers) + 4 * n_versions:
        raise CorruptRecordError(
            f"The record's header has {header} bytes, {n_sources} sources and {n_answers} answers."
        )
    at = HEADER_BYTES + _SOURCE_COUNTS.size
    answers = at + n_sources * _SOURCE.size
    sources = tuple(SourcePosition(*fields) for fields in _SOURCE.iter_unpack(raw[at:answers]))
    versions = struct.unpack_from(f"<{n_versions}I", raw, answers + 8 * n_answers)
    return sources, struct.unpack_from(f"<{n_answers}Q", raw, answers), versions


def _header_bytes(n_sources: int, n_answers: int) -> int:
    return HEADER_BYTES + _SOURCE_COUNTS.size + n_sources * _SOURCE.size + 8 * n_answers


def decode(raw: bytes) -> Record:
    """Decode a record; every field is checked.

    Args:
        raw: The bytes from the store.

    Raises:
        CorruptRecordError: The bytes are not a record of ours, are truncated, or do not match their checksum.
        RecordVersionError: A record of another format version.
    """
    if len(raw) < HEADER_BYTES or raw[:2] != MAGIC[:2] or raw[3:4] != MAGIC[3:]:
        raise CorruptRecordError(f"The stored value has {len(raw)} bytes and does not start like a record.")
    if raw[:4] not in _MAGICS:
        raise RecordVersionError(f"The record has format version {raw[2:3]!r}; this release reads b'1' to b'3'.")
    (
        _magic, header, epoch, step, length, flags, op_id, history_hash, fingerprint,
        output_bytes, state_bytes, moved, crc, updated, created,
    ) = _HEADER.unpack_from(raw)  # fmt: skip
    has_sources = raw[:4] != MAGIC
    min_header = _header_bytes(1, 0) if has_sources else HEADER_BYTES
    is_valid = header >= min_header if has_sources else header == min_header
    if not is_valid or len(raw) != header + output_bytes + state_bytes:
        raise CorruptRecordError(
            f"The record has {len(raw)} bytes; expected {header} + {output_bytes} + {state_bytes}, from its header."
        )
    view = memoryview(raw)
    if crc32(view[_CRC_AT + 4 :], crc32(bytes(4), crc32(view[:_CRC_AT]))) != crc:
        raise CorruptRecordError("The record's checksum does not match its bytes.")
    sources, answered_at, versions = _decode_sources(raw, header) if has_sources else ((), (), ())
    body = header + output_bytes
    return Record(
        epoch, step, length, flags, op_id, history_hash, fingerprint, updated, created,
        raw[header:body], raw[body:], sources, answered_at, moved, versions,
    )  # fmt: skip


def with_epoch(raw: bytes, epoch: bytes) -> bytes:
    """Return a valid record with another epoch, and as if no release had moved its stream.

    Args:
        raw: A record that `decode` accepts.
        epoch: 8 bytes.
    """
    header = bytearray(raw[:HEADER_BYTES])
    header[EPOCH_AT] = epoch
    header[_MOVED_AT] = header[_CRC_AT : _CRC_AT + _CRC.size] = bytes(4)
    body = memoryview(raw)[HEADER_BYTES:]
    _CRC.pack_into(header, _CRC_AT, crc32(body, crc32(header)))
    return b"".join((header, body))


def blake2b_128(*parts: bytes) -> bytes:
    """Return the 16-byte BLAKE2b hash of the parts, each with its length, so that different lists of parts differ."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        h.update(len(part).to_bytes(4, "little"))
        h.update(part)
    return h.digest()


def extend_history(
    history_hashes: Sequence[bytes], kind: Kind, op_ids: Sequence[bytes], fingerprint: bytes
) -> list[bytes]:
    """Return the history hash of each stream after one more operation, 16 bytes each.

    The op id covers the operation's inputs. The epoch is not included on purpose: a client that resends inputs that the
    store has lost gets the same state ids as the first time.

    Args:
        history_hashes: The history hashes before the operation, 16 bytes each.
        kind: The kind of all the operations.
        op_ids: Their op ids, 16 bytes each.
        fingerprint: Fingerprint of the model that ran them.
    """
    prefix = hashlib.blake2b(kind.to_bytes(1, "little") + fingerprint, digest_size=16)
    extended = []
    for history_hash, op_id in zip(history_hashes, op_ids, strict=True):
        h = prefix.copy()
        h.update(history_hash + op_id)
        extended.append(h.digest())
    return extended
