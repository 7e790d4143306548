"""Deliberate breakages of the protocol, one line each, in copies of the packages, and the tests that have to see them.

The product has no switches for it: a mutant is a text to find in one file and what to put there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_TESTED = ("service", "model_export", "tests", "campaign")
_NOT_NEEDED = ("cacheprovider", "xdist", "schemathesis", "pytest_cov")  # they only take time to load
_IGNORED = shutil.ignore_patterns("__pycache__", "*.npz")


class MutantError(Exception):
    """A mutant cannot be made: its text is not in the file, or not once."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A breakage.

    Attributes:
        name: What is broken.
        file: Where, relative to the repository's root.
        found: The text that stands there, once.
        put: What is put in its place.
        tests: The smallest tests that fail on it, as pytest takes them.
    """

    name: str
    file: str
    found: str
    put: str
    tests: tuple[str, ...]


_DECIDE = ("tests/engine/test_decide.py",)
_ENGINE = "tests/engine/test_engine.py::"
_LAWS = "tests/store/test_laws.py::"
_TOGETHER = "tests/engine/test_together.py::"
_LIVES = "tests/engine/test_lives.py::"

NO_COMPARE_AND_SET = Mutant(
    "no compare-and-set",
    "service/store/commit.lua",
    "if current == expected then",
    "if type(current) ~= 'table' then",
    (f"{_LAWS}test_a_conflict_brings_the_truth",),
)
NO_OPERATION_IDS = Mutant(
    "no operation ids",
    "service/engine/names.py",
    "begun, names = self._numbered.copy, list[bytes]()",
    "return [self._new_name() for _ in seqs]",
    ("tests/engine/test_names.py",),
)

MUTANTS = (
    NO_COMPARE_AND_SET,
    NO_OPERATION_IDS,
    Mutant(
        "a retry is not told from a new request",
        "service/engine/decide.py",
        "if record.op_id == intent.op_id:",
        "if False:",
        _DECIDE,
    ),
    Mutant(
        "`after` is not looked at",
        "service/engine/decide.py",
        "if intent.after is not None and intent.after != record.chain:",
        "if False:",
        _DECIDE,
    ),
    Mutant(
        "`after` is believed of a cached view",
        "service/engine/decide.py",
        "and (ask.after is None or ask.after == chain)",
        "and True",
        _DECIDE,
    ),
    Mutant(
        "a gap is let through",
        "service/engine/decide.py",
        "if seq is None or seq == step + 1:",
        "if seq is None or seq >= step + 1:",
        _DECIDE,
    ),
    Mutant(
        "a key answers any request",
        "service/engine/decide.py",
        "if entry.op_id != intent.op_id:",
        "if False:",
        _DECIDE,
    ),
    Mutant(
        "the cache decides",
        "service/engine/rounds.py",
        "sure &= slots != MISSING",
        "sure = slots != MISSING",
        (f"{_ENGINE}test_a_retry_gets_the_first_answer",),
    ),
    Mutant(
        "the cache decides about columns",
        "service/engine/together.py",
        "sure &= slots != MISSING",
        "sure = slots != MISSING",
        (f"{_TOGETHER}test_any_mixture_of_doors_and_workers_folds_every_stream",),
    ),
    Mutant(
        "`after` is not looked at in columns",
        "service/engine/block.py",
        'sure &= heads["chain"] ==',
        'sure |= heads["chain"] ==',
        (f"{_TOGETHER}test_after_is_held_against_each_stream",),
    ),
    Mutant(
        "columns count as applied whatever the store says",
        "service/engine/together.py",
        "if answers.others:",
        "if False:",
        (f"{_TOGETHER}test_a_stream_that_another_worker_moved_is_refused_alone",),
    ),
    Mutant(
        "columns do not wait for their streams",
        "service/engine/batch_queue.py",
        "return self._behind.keys().isdisjoint(names)",
        "return True",
        (f"{_TOGETHER}test_columns_behind_a_timestep_of_one_of_their_streams_wait_for_it",),
    ),
    Mutant(
        "the position is not in an operation's name",
        "service/engine/names.py",
        "_PLACE(length, seq) +",
        "_PLACE(length, 0) +",
        ("tests/engine/test_names.py",),
    ),
    Mutant(
        "the chain forgets the history",
        "service/store/record.py",
        "h.update(chain + op_id)",
        "h.update(op_id)",
        ("tests/store/test_record.py",),
    ),
    Mutant(
        "a checksum is not compared",
        "service/store/record.py",
        "crc32(bytes(4), crc32(view[:_CRC_AT]))) != crc:",
        "crc32(bytes(4), crc32(view[:_CRC_AT]))) < 0:",
        ("tests/store/test_record.py",),
    ),
    Mutant(
        "the guard in arrays is another one",
        "service/store/record_rows.py",
        "_GUARD_AT: Final = slice(8, 64)",
        "_GUARD_AT: Final = slice(16, 72)",
        ("tests/store/test_record_rows.py",),
    ),
    Mutant(
        "a reset does not look at `after`",
        "service/engine/resets.py",
        'intent = Intent(op_id, 0, None, after, "auto", None)',
        'intent = Intent(op_id, 0, None, None, "auto", None)',
        (f"{_ENGINE}test_a_late_copy_of_a_reset_wipes_nothing",),
    ),
    Mutant(
        "a fork begins without its state",
        "service/engine/origins.py",
        "return Content(kind, record.step, fingerprint, record.state, outputs, origin=record.chain)",
        "return Content(kind, record.step, fingerprint, bytes(len(record.state)), outputs, origin=record.chain)",
        ("tests/engine/test_copies.py::test_a_reset_to_a_snapshot_ends_the_old_life",),
    ),
    Mutant(
        "a fork does not know itself again",
        "service/engine/copies.py",
        "if existing is not None and existing.op_id == op_id:",
        "if False:",
        ("tests/api/test_copies.py::test_a_fork_sent_again_is_answered_the_same",),
    ),
    Mutant(
        "a fork does not look at `after`",
        "service/engine/copies.py",
        "if after is not None and present.chain != after:",
        "if False:",
        ("tests/api/test_copies.py::test_a_fork_of_another_history_or_of_no_stream_is_refused",),
    ),
    Mutant(
        "the key of a snapshot is never remembered",
        "service/store/snapshots.lua",
        "call('SET', KEYS[2], ARGV[5], 'PX', ARGV[6])",
        "",
        ("tests/api/test_copies.py::test_a_snapshot_sent_again_is_still_of_its_own_moment",),
    ),
    Mutant(
        "two rollouts of one position are taken for each other",
        "service/engine/rollouts.py",
        "said = [ask.horizon,",
        "said = [0,",
        ("tests/api/test_rollout.py::test_a_committed_rollout_sent_again_is_answered_the_same",),
    ),
    Mutant(
        "a replay is read as another version than made it",
        "service/engine/rounds.py",
        "of_another = kept.fingerprint != self._served.fingerprint",
        "of_another = False",
        (f"{_ENGINE}test_a_retry_whose_version_is_gone_is_told_that_it_was_applied",),
    ),
    Mutant(
        "a key is never remembered",
        "service/store/commit.lua",
        "call('SET', KEYS[entry], ARGV[2 * entry + 5], 'PX', entry_ttl)",
        "",
        (f"{_LAWS}test_a_known_key_answers_whatever_the_stream_did_since",),
    ),
    Mutant(
        "a stream that begins anew keeps its state",
        "service/engine/rounds.py",
        "        if begins:\n",
        "        if False:\n",
        (f"{_LIVES}test_a_stream_that_begins_anew_starts_from_the_initial_state",),
    ),
    Mutant(
        "beginning and going on have one name",
        "service/engine/names.py",
        'if timestep.life != "on":',
        "if False:",
        (f"{_LIVES}test_a_key_that_began_a_stream_is_no_key_for_going_on",),
    ),
    Mutant(
        "last words answer any request",
        "service/engine/pending.py",
        "(self.view is None and entry.op_id == self.op_id)",
        "self.view is None",
        (f"{_LIVES}test_an_end_without_a_name_is_not_done_twice",),
    ),
    Mutant(
        "last words answer in the next life",
        "service/engine/pending.py",
        "(self.view is None and entry.op_id == self.op_id)",
        "entry.op_id == self.op_id",
        (f"{_LIVES}test_the_last_words_of_one_life_answer_nothing_in_the_next",),
    ),
    Mutant(
        "last words are taken for a key's answer",
        "service/store/commit.lua",
        "local answers = entry and not (forget and string.sub(KEYS[entry], -4) == ':end')",
        "local answers = entry",
        (f"{_LAWS}test_a_stream_that_was_forgotten_is_not_forgotten_again",),
    ),
    Mutant(
        "a lost reply is told as not applied",
        "service/store/settle.py",
        "lost = sent or isinstance(reply, NoReplyError)",
        "lost = False",
        (f"{_LAWS}test_a_store_that_does_not_answer_leaves_the_outcome_unknown",),
    ),
)

BROKEN = {"compare-and-set": NO_COMPARE_AND_SET, "operation-ids": NO_OPERATION_IDS}
"""The builds on which a whole campaign has to fail, by what they lack."""


def broken_copy(mutant: Mutant, folder: Path, packages: tuple[str, ...] = ("service", "model_export")) -> Path:
    """Copy packages into a folder, one line of them broken, and return the folder.

    Raises:
        MutantError: The line is not there any more.
    """
    demand_there([mutant])
    for package in packages:
        shutil.copytree(ROOT / package, folder / package, ignore=_IGNORED)
    path = folder / mutant.file
    path.write_text(path.read_text().replace(mutant.found, mutant.put))
    return folder


def demand_there(mutants: Iterable[Mutant]) -> None:
    """Check that each mutant's line stands where it did.

    Raises:
        MutantError: One does not.
    """
    for mutant in mutants:
        times = (ROOT / mutant.file).read_text().count(mutant.found)
        if times != 1:
            raise MutantError(
                f"{mutant.file} has {mutant.found!r} {times} times; expected once. "
                f"Write the mutant {mutant.name!r} in campaign/mutants.py anew."
            )


def environment(folder: Path) -> dict[str, str]:
    """Return what makes Python import the packages of a folder before all others."""
    return {"PYTHONPATH": str(folder)}


def survives(mutant: Mutant, folder: Path, tests: tuple[str, ...] = ()) -> str:
    """Run a mutant's tests on it; return what they printed where they pass, nothing where they fail as they should.

    Raises:
        MutantError: It cannot be made, or its tests cannot be run.
    """
    broken_copy(mutant, folder, _TESTED)
    shutil.copy(ROOT / "pyproject.toml", folder)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "--hypothesis-seed=0"]
    command += [part for plugin in _NOT_NEEDED for part in ("-p", f"no:{plugin}")]
    ran = subprocess.run(
        [*command, *(tests or mutant.tests)],
        cwd=folder,
        env={**os.environ, **environment(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode not in (0, 1):
        raise MutantError(f"the tests of {mutant.name!r} cannot be run:\n{ran.stdout[-2000:]}")
    return ran.stdout if ran.returncode == 0 else ""


def survivors(folder: Path, *, at_once: int = 2, tests: tuple[str, ...] = ()) -> dict[str, str]:
    """Run every mutant; return those that no test caught, with what the tests printed.

    Raises:
        MutantError: One cannot be made, or its tests cannot be run.
    """
    demand_there(MUTANTS)
    with ThreadPoolExecutor(at_once) as pool:
        printed = pool.map(lambda each: survives(each[1], folder / str(each[0]), tests), enumerate(MUTANTS))
        return {mutant.name: text for mutant, text in zip(MUTANTS, printed, strict=True) if text}
