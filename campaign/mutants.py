"""Mutants of the protocol: single broken lines in copies of the packages, and the tests that must fail on them.

The product has no switches for this: a mutant is a text in one file and its replacement.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.programs.start import Program, WarmProcess, can_fork_here

ROOT = Path(__file__).resolve().parent.parent
_FOLDERS = ("service", "model_export", "clients/python")
_TESTED = (*_FOLDERS, "tests", "campaign")
_NOT_NEEDED = ("cacheprovider", "xdist", "schemathesis", "pytest_cov")  # slow to load and not needed
LOADED = (
    *("pytest", "pytest_asyncio.plugin", "pytest_timeout", "_hypothesis_pytestplugin", "anyio.pytest_plugin"),
    *("hypothesis.stateful", "hypothesis.extra.numpy", "numpy", "onnx.compose", "onnx.helper", "onnxruntime"),
    *("fastapi", "httpx2", "msgspec", "prometheus_client", "pydantic", "redis.asyncio", "typer.testing"),
    *("uvicorn", "websockets.sync.client"),
)
"""Imported once for all mutants: what their tests import of other packages, and nothing of the packages under test."""
_IGNORED = shutil.ignore_patterns("*.npz")  # byte code is copied: it is valid for each file that is as it was


class MutantError(Exception):
    """A mutant cannot be created, because its text does not occur exactly once in the file."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken line.

    Attributes:
        name: Description of the fault.
        file: The file, relative to the repository's root.
        original: The original text, which occurs once in the file.
        replacement: The text that replaces it.
        tests: The smallest tests that fail on it, as pytest arguments.
    """

    name: str
    file: str
    original: str
    replacement: str
    tests: tuple[str, ...]


_DECIDE = ("tests/engine/protocol/test_decide.py",)
_SOURCES = ("tests/engine/protocol/test_positions.py",)
_AGAIN = "tests/exactly_once/test_sources.py::"
_COLUMNS_AS_ROWS = (
    "tests/engine/stepping/test_columnar_sources.py::test_a_timestep_in_columns_gets_the_answer_that_it_gets_row_by_row"
)
_ENGINE = "tests/engine/test_engine.py::"
_LAWS = "tests/store/test_laws.py::"
_TOGETHER = "tests/engine/stepping/test_columnar_pipeline.py::"
_SINGLE = "tests/engine/stepping/test_single_timestep.py::"
_PAIRS = "tests/addons/releases/test_pairs.py::"
_LIVES = "tests/engine/stepping/test_lifecycle.py::"
_LEASE = "tests/addons/between_workers/test_store_lease.py::"
_OPERATIONS = "tests/addons/releases/test_operations.py::"
_LOST = "tests/addons/releases/test_lost_documents.py::"
_VERSIONS = "tests/addons/releases/test_versions_of_sources.py::"

NO_COMPARE_AND_SET = Mutant(
    "no compare-and-set",
    "service/stepwell/store/scripts/commit.lua",
    "if current == expected or by_epoch then",
    "if current ~= '!' then",
    (f"{_LAWS}test_a_conflict_returns_the_stored_record",),
)
NO_OPERATION_IDS = Mutant(
    "no operation ids",
    "service/stepwell/engine/protocol/op_ids.py",
    "new_hash, op_ids = self._sequenced.copy, list[bytes]()",
    "return [self._new_op_id() for _ in seqs]",
    ("tests/engine/protocol/test_op_ids.py",),
)
ONE_HALF_ONLY = Mutant(
    "an abort gives a half that missed timesteps",
    "service/stepwell/addons/releases/paired.py",
    "next_states = {OLD + name: array for name, array in old_next.items()}",
    "next_states = {OLD + name: array for name, array in old_states.items()}",
    (f"{_PAIRS}test_in_a_ramp_the_candidate_responds_and_an_abort_gives_back_a_state_that_has_seen_all",),
)

MUTANTS = (
    NO_COMPARE_AND_SET,
    NO_OPERATION_IDS,
    Mutant(
        "a larger share does not contain the smaller one",
        "service/stepwell/addons/releases/document.py",
        'f"{salt}\\0{record}".encode()',
        'f"{salt}\\0{record}{percent}".encode()',
        ("tests/addons/releases/test_document.py::test_a_stream_in_a_share_is_in_every_larger_share",),
    ),
    ONE_HALF_ONLY,
    Mutant(
        "a retry after a promotion is computed again",
        "service/stepwell/engine/stepping/record_loader.py",
        "elif decide(record, row.intent(None)) is not Decision.APPLY:",
        "elif decide(record, row.intent(None)) is not Decision.APPLY and record is None:",
        (
            "tests/addons/releases/test_transports.py::test_a_retry_after_a_promotion_gets_its_first_answer_with_its_version",
        ),
    ),
    Mutant(
        "a worker with an older release moves streams back",
        "service/stepwell/addons/releases/plan.py",
        "while standing.moved_by <= self.document.revision and len(moves) < _MAX_MOVES:",
        "while len(moves) < _MAX_MOVES:",
        ("tests/addons/releases/test_plan.py::test_a_worker_with_an_older_document_moves_nothing",),
    ),
    Mutant(
        "a version that is about to run a part of a batch may be closed",
        "service/stepwell/engine/stepping/pipeline.py",
        "        self.in_use += len(batch)\n        return self, batch",
        "        return self, batch",
        ("tests/engine/stepping/test_batcher.py::test_a_request_for_streams_of_two_replaced_models_steps_both",),
    ),
    Mutant(
        "a stream is released while its row waits for another version",
        "service/stepwell/engine/stepping/batcher.py",
        "names = [name for i, name in enumerate(names) if i not in moved]",
        "pass",
        ("tests/addons/releases/test_batches.py::test_a_pair_whose_release_has_ended_is_not_kept_in_memory",),
    ),
    Mutant(
        "records that have to move stay cached",
        "service/stepwell/engine/stepping/batcher.py",
        "version.cache.clear()  # by",
        "pass  # by",
        (f"{_PAIRS}test_after_a_promotion_the_candidate_goes_on_from_where_it_joined",),
    ),
    Mutant(
        "a retry is treated as a new request",
        "service/stepwell/engine/protocol/decide.py",
        "if record.op_id == intent.op_id:",
        "if False:",
        _DECIDE,
    ),
    Mutant(
        "timesteps of a source that were applied before are applied again",
        "service/stepwell/engine/protocol/decide.py",
        "if skipped and skipped == intent.length:",
        "if False:",
        _SOURCES,
    ),
    Mutant(
        "the answers of skipped timesteps are dropped by the operation that applies the rest",
        "service/stepwell/engine/stepping/queued.py",
        "return (*self.kept_at, *source.at[self.skipped :])",
        "return source.at[self.skipped :]",
        (f"{_AGAIN}test_answers_survive_any_number_of_crashes",),
    ),
    Mutant(
        "a step without a source drops the positions of sources that the cache has",
        "service/stepwell/engine/stepping/committer.py",
        "row.cached_sources = sources_in(before[j])",
        "pass",
        (
            "tests/engine/stepping/test_columnar_sources.py::test_any_mix_of_columns_and_rows_applies_each_timestep_once",
        ),
    ),
    Mutant(
        "a single timestep of a source that was applied before is applied again",
        "service/stepwell/engine/stepping/batch.py",
        "return None if is_replaced or passed_timesteps(sources, source) else after",
        "return None if is_replaced else after",
        (_COLUMNS_AS_ROWS,),
    ),
    Mutant(
        "a row in columns that was applied before is applied again",
        "service/stepwell/store/record_arrays.py",
        "is_same & (positions >= at[:, None])",
        "is_same & (positions > at[:, None])",
        (_COLUMNS_AS_ROWS,),
    ),
    Mutant(
        "`after` is ignored",
        "service/stepwell/engine/protocol/decide.py",
        "if intent.after is not None and intent.after != record.history_hash:",
        "if False:",
        _DECIDE,
    ),
    Mutant(
        "`after` is not checked against the cached record",
        "service/stepwell/engine/protocol/decide.py",
        "and (after is None or after == history_hash)",
        "and True",
        _DECIDE,
    ),
    Mutant(
        "a gap in `seq` is accepted",
        "service/stepwell/engine/protocol/decide.py",
        "if seq is None or seq == step + 1:",
        "if seq is None or seq >= step + 1:",
        _DECIDE,
    ),
    Mutant(
        "an idempotency key replays for any request",
        "service/stepwell/engine/protocol/decide.py",
        "if entry.op_id != intent.op_id:",
        "if False:",
        _DECIDE,
    ),
    Mutant(
        "the cache decides without the store",
        "service/stepwell/engine/stepping/record_loader.py",
        "applies &= slots != EMPTY_SLOT",
        "applies = slots != EMPTY_SLOT",
        (f"{_ENGINE}test_a_retry_gets_the_first_answer",),
    ),
    Mutant(
        "the cache decides without the store, in columns",
        "service/stepwell/engine/stepping/record_loader.py",
        "applies &= slots != EMPTY_SLOT",
        "applies = slots != EMPTY_SLOT",
        (f"{_TOGETHER}test_any_mix_of_transports_and_workers_folds_every_stream",),
    ),
    Mutant(
        "rows that do not certainly apply are applied undecided",
        "service/stepwell/engine/stepping/record_loader.py",
        "to_run = [i for i, row in zip(unusual, decided, strict=True) if self._applies(row)]",
        "to_run = [i for i, row in zip(unusual, decided, strict=True) if not row.answered]",
        (f"{_TOGETHER}test_a_bulk_request_with_a_key_or_for_new_streams_alone_is_applied_once",),
    ),
    Mutant(
        "a loaded record that is at another position is continued",
        "service/stepwell/engine/stepping/record_loader.py",
        "applies = batch.apply_to([i for i, _ in found], read_headers([value for _, value in found])).tolist()",
        "applies = [True] * len(found)",
        (f"{_TOGETHER}test_new_replayed_and_refused_rows_are_processed_in_columns",),
    ),
    Mutant(
        "a retry in columns is treated as a new request",
        "service/stepwell/engine/stepping/batch.py",
        "return StepIntent(self.op_ids[i], self.length",
        "return StepIntent(bytes(16), self.length",
        (f"{_TOGETHER}test_any_mix_of_transports_and_workers_folds_every_stream",),
    ),
    Mutant(
        "a retry in columns is answered with fewer predictions than it requests",
        "service/stepwell/engine/stepping/record_loader.py",
        "(Kind.STEP, fingerprint, nbytes)",
        "(Kind.STEP, fingerprint, len(record.outputs))",
        (f"{_TOGETHER}test_a_replay_in_columns_is_the_replay_of_each_row",),
    ),
    Mutant(
        "a retry in columns does not show that another version has responded",
        "service/stepwell/engine/stepping/record_loader.py",
        "(record.flags, record.fingerprint, len(record.outputs))",
        "(Kind.STEP, fingerprint, len(record.outputs))",
        (f"{_TOGETHER}test_a_replay_of_another_version_is_the_same_in_columns_as_of_each_row",),
    ),
    Mutant(
        "a timestep that has expired begins a stream",
        "service/stepwell/engine/stepping/batch.py",
        "return i not in self.rows and begins_stream(",
        "return begins_stream(",
        _DECIDE,
    ),
    Mutant(
        "a new stream begins with the state that the cache has",
        "service/stepwell/engine/stepping/record_loader.py",
        "states[rows], records.expiry_set_at[rows] = self._cache.states(new), -np.inf",
        "records.expiry_set_at[rows] = -np.inf",
        (f"{_TOGETHER}test_a_stream_that_was_deleted_elsewhere_begins_anew_although_its_record_is_cached",),
    ),
    Mutant(
        "a new stream may overwrite one that another worker has created",
        "service/stepwell/engine/stepping/committer.py",
        'b"" if j in created else guard',
        "guard",
        (_COLUMNS_AS_ROWS,),
    ),
    Mutant(
        "a row that is later than the first timestep begins a missing stream",
        "service/stepwell/engine/protocol/decide.py",
        "(seq is None or seq <= 1)",
        "True",
        _DECIDE,
    ),
    Mutant(
        "`after` is ignored in columns",
        "service/stepwell/engine/stepping/batch.py",
        "applies &= same if not n_without",
        "applies |= same if not n_without",
        (f"{_TOGETHER}test_after_is_checked_for_each_row",),
    ),
    Mutant(
        "columns count as applied without the store's result",
        "service/stepwell/engine/stepping/committer.py",
        "if results.not_applied:",
        "if False:",
        (f"{_TOGETHER}test_a_stream_that_another_worker_stepped_is_rejected_alone",),
    ),
    Mutant(
        "a single timestep continues from any cached record",
        "service/stepwell/engine/protocol/decide.py",
        "return (seq is None or seq == step + 1) and",
        "return True and",
        (f"{_SINGLE}test_a_single_timestep_is_applied_only_as_the_next_one",),
    ),
    Mutant(
        "columns do not wait for their streams",
        "service/stepwell/engine/stepping/batch_queue.py",
        "return self._waiting_after.keys().isdisjoint(names)",
        "return True",
        (f"{_TOGETHER}test_a_bulk_request_waits_for_earlier_steps_of_one_of_its_streams",),
    ),
    Mutant(
        "the operation id does not include the position",
        "service/stepwell/engine/protocol/op_ids.py",
        'h.update(_POSITION(length, seq) + b"".join(inputs))',
        'h.update(_POSITION(length, 0) + b"".join(inputs))',
        ("tests/engine/protocol/test_op_ids.py",),
    ),
    Mutant(
        "the operation id of a row with one input does not include the position",
        "service/stepwell/engine/protocol/op_ids.py",
        "h.update(_POSITION(length, seq) + inputs_of_one)",
        "h.update(_POSITION(length, 0) + inputs_of_one)",
        ("tests/engine/protocol/test_op_ids.py",),
    ),
    Mutant(
        "the history hash does not include the history",
        "service/stepwell/store/record.py",
        "h.update(history_hash + op_id)",
        "h.update(op_id)",
        ("tests/store/test_record.py::test_the_chain_depends_on_every_part_of_a_history",),
    ),
    Mutant(
        "the checksum is not compared",
        "service/stepwell/store/record.py",
        "crc32(bytes(4), crc32(view[:_CRC_AT]))) != crc:",
        "crc32(bytes(4), crc32(view[:_CRC_AT]))) < 0:",
        ("tests/store/test_record.py::test_each_flipped_bit_is_detected",),
    ),
    Mutant(
        "the guard in arrays has another position",
        "service/stepwell/store/record_arrays.py",
        "_GUARD_AT: Final = slice(8, 64)",
        "_GUARD_AT: Final = slice(16, 72)",
        ("tests/store/test_record_arrays.py::test_the_guards_of_a_batch_equal_those_of_its_records",),
    ),
    Mutant(
        "a reset ignores `after`",
        "service/stepwell/engine/streams/resets.py",
        'intent = StepIntent(op_id, 0, None, after, "auto", None)',
        'intent = StepIntent(op_id, 0, None, None, "auto", None)',
        (f"{_ENGINE}test_a_late_copy_of_a_reset_wipes_nothing",),
    ),
    Mutant(
        "a fork starts without its state",
        "service/stepwell/addons/copies/derived_states.py",
        "return NewState(kind, record.step, fingerprint, state, outputs, ",
        "return NewState(kind, record.step, fingerprint, bytes(len(state)), outputs, ",
        (
            "tests/addons/copies/test_stream_copies.py::test_a_reset_to_a_snapshot_rejects_steps_of_the_previous_history",
        ),
    ),
    Mutant(
        "a retried fork is not recognized",
        "service/stepwell/addons/copies/stream_copies.py",
        "if existing is not None and existing.op_id == op_id:",
        "if False:",
        ("tests/api/test_copies.py::test_a_retried_fork_gets_its_first_answer",),
    ),
    Mutant(
        "a fork ignores `after`",
        "service/stepwell/addons/copies/stream_copies.py",
        "if after is not None and source.history_hash != after:",
        "if False:",
        ("tests/api/test_copies.py::test_a_fork_of_another_history_or_of_a_missing_stream_is_rejected",),
    ),
    Mutant(
        "the idempotency key of a snapshot is not stored",
        "service/stepwell/addons/copies/snapshots.lua",
        "call('SET', KEYS[3], ARGV[5], 'PX', ARGV[6])",
        "",
        ("tests/api/test_copies.py::test_a_retried_snapshot_keeps_its_first_state",),
    ),
    Mutant(
        "two rollouts at one position have the same operation id",
        "service/stepwell/addons/rollouts/service.py",
        "request.horizon,",
        "0,",
        ("tests/addons/rollouts/test_api.py::test_a_retried_committed_rollout_gets_its_first_answer",),
    ),
    Mutant(
        "a rollout learns from its own predictions",
        "service/stepwell/addons/rollouts/worker.py",
        "learn=False",
        "learn=True",
        ("tests/exactly_once/test_learned.py",),
    ),
    Mutant(
        "a replay is decoded with another version than wrote it",
        "service/stepwell/engine/stepping/replies.py",
        "other_version = stored.fingerprint != self._served.fingerprint",
        "other_version = False",
        (f"{_ENGINE}test_a_retry_whose_version_is_gone_is_told_that_it_was_applied",),
    ),
    Mutant(
        "an idempotency key is not stored",
        "service/stepwell/store/scripts/commit.lua",
        "call('SET', KEYS[entry], ARGV[2 * entry + 5], 'PX', entry_ttl)",
        "",
        (f"{_LAWS}test_an_idempotency_key_replays_after_later_steps",),
    ),
    Mutant(
        "a restarted stream keeps its state",
        "service/stepwell/engine/stepping/record_loader.py",
        "records.states[:] = np.frombuffer(self._model.initial_state, np.uint8)",
        "pass",
        (f"{_LIVES}test_a_start_uses_the_initial_state",),
    ),
    Mutant(
        "a start and a continuation have the same operation id",
        "service/stepwell/engine/protocol/op_ids.py",
        'if timestep.lifecycle != "on":',
        "if False:",
        (f"{_LIVES}test_the_key_of_a_start_cannot_be_used_for_a_continuation",),
    ),
    Mutant(
        "the end entry replays for any request",
        "service/stepwell/engine/stepping/queued.py",
        "(self.record is None and entry.op_id == self.op_id)",
        "self.record is None",
        (f"{_LIVES}test_an_end_without_seq_or_key_is_rejected_the_second_time",),
    ),
    Mutant(
        "the end entry replays after a restart",
        "service/stepwell/engine/stepping/queued.py",
        "(self.record is None and entry.op_id == self.op_id)",
        "entry.op_id == self.op_id",
        (f"{_LIVES}test_a_late_end_is_rejected_by_the_next_incarnation",),
    ),
    Mutant(
        "the end entry is treated as an idempotency entry",
        "service/stepwell/store/scripts/commit.lua",
        "local replays = entry and not (deletes and string.sub(KEYS[entry], -4) == ':end')",
        "local replays = entry",
        (f"{_LAWS}test_a_deleted_stream_is_not_deleted_again",),
    ),
    Mutant(
        "a lost reply is reported as not applied",
        "service/stepwell/store/transport/retry.py",
        "lost = maybe_done or isinstance(reply, NoReplyError)",
        "lost = False",
        (f"{_LAWS}test_a_store_that_does_not_reply_leaves_the_outcome_unknown",),
    ),
    Mutant(
        "a record without bytes counts as a missing stream",
        "service/stepwell/store/scripts/commit.lua",
        "(current == '' and call('GET', key))",
        "false",
        (f"{_LAWS}test_what_is_no_record_counts_as_no_missing_stream",),
    ),
    Mutant(
        "a lease is taken and released, whoever has it",
        "service/stepwell/addons/between_workers/lease.py",
        "if holder == ARGV[1] or (holder == '' and ARGV[3] ~= '1') then",
        "if holder ~= '-' then",
        (f"{_LEASE}test_work_is_cancelled_when_another_process_has_the_lease_whose_lease_stays",),
    ),
    Mutant(
        "work outlives its lease",
        "service/stepwell/addons/between_workers/lease.py",
        "while self.is_held or self._is_checked:",
        "while True:",
        (f"{_LEASE}test_work_is_cancelled_when_the_lease_cannot_be_renewed",),
    ),
    Mutant(
        "a lease is not renewed while work is done",
        "service/stepwell/addons/between_workers/lease.py",
        "await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)",
        "await asyncio.wait({working})",
        (f"{_LEASE}test_work_is_cancelled_when_the_lease_cannot_be_renewed",),
    ),
    Mutant(
        "a promotion of before moves a stream that was put on its version by hand",
        "service/stepwell/addons/releases/placing.py",
        "moved_by = max(moved >> 1, 0 if plan is None else plan.document.revision)",
        "moved_by = moved >> 1",
        (f"{_OPERATIONS}test_a_stream_that_is_put_on_a_version_by_hand_stays_there_after_a_promotion",),
    ),
    Mutant(
        "revisions of releases begin again",
        "service/stepwell/addons/releases/service.py",
        "before = replace(before, revision=last)",
        "pass",
        (f"{_LOST}test_streams_that_a_lost_release_has_moved_move_by_the_next_one",),
    ),
    Mutant(
        "an older release replaces a newer one",
        "service/stepwell/addons/releases/lookup.py",
        "if is_older and changes is not None and changes != self._changes[model]:",
        "if False:",
        (f"{_LOST}test_a_document_that_was_read_before_a_newer_one_was_written_does_not_replace_it",),
    ),
    Mutant(
        "a replica translates states by its own file",
        "service/stepwell/addons/releases/translations.py",
        "if content is None or digest not in {None, _digest(content)}:",
        "if content is None:",
        ("tests/addons/releases/test_translations.py::test_a_replica_whose_file_is_another_one_has_no_translation",),
    ),
    Mutant(
        "a record does not show which version has answered",
        "service/stepwell/engine/stepping/committer.py",
        'header["flags"] |= np.uint32(version_flags(version))',
        "pass",
        (f"{_VERSIONS}test_a_record_whose_answers_are_of_one_version_is_read_by_the_release_before",),
    ),
    Mutant(
        "a record of columns does not show which version has answered",
        "service/stepwell/engine/stepping/committer.py",
        'headers["flags"][part] |= np.uint32(version_flags(self._served.version))',
        "pass",
        (f"{_VERSIONS}test_a_retry_after_a_sweep_has_the_version_of_its_first_response",),
    ),
    Mutant(
        "a record of one timestep does not show which version has answered",
        "service/stepwell/store/record.py",
        "flags = Kind.STEP | version_flags(version) if version else Kind.STEP",
        "flags = Kind.STEP",
        (f"{_VERSIONS}test_a_retry_after_a_sweep_has_the_version_of_its_first_response",),
    ),
    Mutant(
        "the versions of skipped timesteps are dropped",
        "service/stepwell/engine/stepping/queued.py",
        "return (*self.kept_versions, *(by_timestep or (version,) * self.applied.length))",
        "return (version,) * (len(self.kept_versions) + self.applied.length)",
        (f"{_VERSIONS}test_a_chunk_of_several_versions_has_the_version_of_each_timestep",),
    ),
    Mutant(
        "a candidate that becomes warm in a chunk has answered all of it",
        "service/stepwell/engine/stepping/replies.py",
        "if len({*row}) > 1 else ()",
        "if False else ()",
        (f"{_VERSIONS}test_a_candidate_that_becomes_warm_in_a_chunk_responds_to_its_end",),
    ),
    Mutant(
        "the id of a source is not written before its first record",
        "service/stepwell/store/source_ids.py",
        "if one and written_at(one, -math.inf) <= latest",
        "if False",
        ("tests/api/test_sources.py::test_the_status_of_a_stream_has_the_ids_and_positions_of_its_sources",),
    ),
    Mutant(
        "recorded data is identified without its values",
        "service/stepwell/addons/recorded/rows_hash.py",
        "parts += [_row_bytes(rows.inputs[name]) for name in sorted(rows.inputs)]",
        "pass",
        ("tests/addons/recorded/test_reader.py::test_other_rows_have_another_identity",),
    ),
    Mutant(
        "recorded data that has grown is other data",
        "service/stepwell/addons/backfill/history.py",
        "same = data.source_ids_of_beginnings(counts) | {data.source_id}",
        "same = {data.source_id}",
        ("tests/addons/backfill/test_command.py::test_grown_data_goes_on_where_it_grew",),
    ),
    Mutant(
        "a connector's file is its path",
        "service/stepwell/addons/connect/brokers/jsonl_files.py",
        'self._source = self._source or f"{self._log}@{hashlib.blake2b(body, digest_size=8).hexdigest()}"',
        "self._source = self._log",
        ("tests/addons/connect/test_files.py::test_another_file_at_the_same_path_is_applied",),
    ),
    Mutant(
        "a stream's id is a number",
        "service/stepwell/addons/text_values.py",
        "return check_stream_id(id_text_of(value))",
        "return check_stream_id(str(number_of(value) or value))",
        ("tests/addons/test_text_values.py::test_a_streams_id_is_the_text_as_it_stands",),
    ),
    Mutant(
        "a connector goes on behind an operation that was found again before all is settled",
        "service/stepwell/addons/connect/timed_connector.py",
        " or ready.stream in again",
        "",
        ("tests/addons/connect/test_time_crashes.py",),
    ),
    Mutant(
        "a connector's ticks of the record are filled through a gap",
        "service/stepwell/addons/event_time/clock.py",
        "if messages is None and number > known.newest + self._gap:",
        "if messages is None and number > known.newest + self._gap and number > known.record:",
        ("tests/addons/event_time/test_clock.py",),
    ),
    Mutant(
        "all predictions of a connector's chunk have one version",
        "service/stepwell/addons/connect/connector.py",
        '"version": applied.version_of(number, place),',
        '"version": applied.version_of(0, 0),',
        ("tests/addons/releases/test_versions_of_connectors.py",),
    ),
    Mutant(
        "a snapshot of a stream that was deleted is stored",
        "service/stepwell/addons/copies/snapshots.lua",
        "if redis.pcall('GETRANGE', KEYS[2], 8, 15) ~= ARGV[7] then",
        "if redis.pcall('GETRANGE', KEYS[2], 8, 15) == '' then",
        ("tests/addons/copies/test_stream_copies.py::test_a_snapshot_is_of_the_stream_that_was_created_meanwhile",),
    ),
    Mutant(
        "a reset of all streams creates deleted ones again",
        "service/stepwell/engine/streams/resets.py",
        "if loaded.raw is None and only_existing:",
        "if False:",
        ("tests/addons/reset_all/test_reset_all.py",),
    ),
    Mutant(
        "a batch has the deadline of its oldest timestep",
        "service/stepwell/engine/stepping/pipeline.py",
        "deadline = youngest + self._timeout",
        "deadline = oldest + self._timeout",
        ("tests/engine/stepping/test_deadlines.py",),
    ),
    Mutant(
        "a new watch does not wait for the commits that have begun without it",
        "service/stepwell/store/state_store.py",
        "group = self.commits_under_way.newest",
        "group = type(self.commits_under_way.newest)()",
        ("tests/addons/watch/test_commits_under_way.py",),
    ),
)

BROKEN = {
    "compare-and-set": NO_COMPARE_AND_SET,
    "operation-ids": NO_OPERATION_IDS,
    "both-halves": ONE_HALF_ONLY,
}
"""The builds on which a campaign must fail, by the missing mechanism."""

NEEDS_RELEASES = "both-halves"
"""The one of them that only a campaign with releases can find."""


def broken_copy(mutant: Mutant, folder: Path, folders: tuple[str, ...] = _FOLDERS) -> Path:
    """Copy folders with packages into another one, break one line, and return the folder.

    The copies of all other files are links to the originals: nothing may write into them.

    Raises:
        MutantError: The text does not occur exactly once.
    """
    check_originals([mutant])
    for each in folders:
        shutil.copytree(ROOT / each, folder / each, ignore=_IGNORED, copy_function=_link)
    path = folder / mutant.file
    text = path.read_text().replace(mutant.original, mutant.replacement)
    path.unlink()  # the original has the same bytes on disk
    path.write_text(text)
    for old in path.parent.glob(f"__pycache__/{path.stem}.*"):
        old.unlink()  # it would count as valid if the broken file had the same size and second
    return folder


def _link(source: str, target: str) -> None:
    """Link a file; copy it if the target is on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def check_originals(mutants: Iterable[Mutant]) -> None:
    """Check that the original text of each mutant occurs exactly once.

    Raises:
        MutantError: One does not.
    """
    for mutant in mutants:
        times = (ROOT / mutant.file).read_text().count(mutant.original)
        if times != 1:
            raise MutantError(
                f"{mutant.file} has {mutant.original!r} {times} times; expected once. "
                f"Update the mutant {mutant.name!r} in campaign/mutants.py."
            )


def environment(folder: Path) -> dict[str, str]:
    """Return the environment variables that make Python import the packages of a folder first."""
    return {"PYTHONPATH": os.pathsep.join(map(str, (folder, *(folder / each for each in _FOLDERS))))}


def survives(mutant: Mutant, folder: Path, tests: tuple[str, ...] = (), *, warm: WarmProcess | None = None) -> str:
    """Run the tests of a mutant; return their output if they pass, or an empty string if they fail, as they should.

    Args:
        mutant: The broken line.
        folder: For the copy; it is not there yet.
        tests: Other tests than those of the mutant, as pytest arguments.
        warm: A process that has imported pytest and what the packages need, to fork from; None: a new interpreter.

    Raises:
        MutantError: The mutant cannot be created, or its tests cannot be run.
    """
    broken_copy(mutant, folder, _TESTED)
    shutil.copy(ROOT / "pyproject.toml", folder)
    words = ["-q", "-x", "--hypothesis-seed=0", "--hypothesis-profile=any-failure"]
    words += [part for plugin in _NOT_NEEDED for part in ("-p", f"no:{plugin}")]
    words += tests or mutant.tests
    env = {**os.environ, **environment(folder)}
    log = folder / "log"
    with log.open("wb") as out, Path(os.devnull).open("rb") as nothing:
        process: Program
        if warm is None:
            command = [sys.executable, "-P", "-m", "pytest", *words]
            process = subprocess.Popen(command, cwd=folder, env=env, stdin=nothing, stdout=out, stderr=out)
        else:
            process = warm.fork(words, env=env, streams=(nothing, out, out), folder=folder, path=[folder])
        code = process.wait()
    printed = log.read_text()
    if code not in (0, 1):
        raise MutantError(f"the tests of {mutant.name!r} cannot be run:\n{printed[-2000:]}")
    return printed if code == 0 else ""


def survivors(folder: Path, *, at_once: int = 2, tests: tuple[str, ...] = ()) -> dict[str, str]:
    """Run every mutant; return those that no test caught, with the output of the tests.

    Raises:
        MutantError: A mutant cannot be created, or its tests cannot be run.
    """
    check_originals(MUTANTS)
    with ThreadPoolExecutor(at_once) as pool, contextlib.ExitStack() as stack:
        warm = None
        if can_fork_here():
            warm = stack.enter_context(contextlib.closing(WarmProcess("pytest", LOADED)))
        printed = pool.map(lambda each: survives(each[1], folder / str(each[0]), tests, warm=warm), enumerate(MUTANTS))
        return {mutant.name: text for mutant, text in zip(MUTANTS, printed, strict=True) if text}
