"""The checker follows a stream through releases, and detects a wrong half, a lost timestep and a version not named."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from campaign.checker import MODEL, TENANT, check
from campaign.operations import Operation
from campaign.releases.folds import Folds, after, after_move, after_reset
from campaign.releases.log import FACTORS, LoggedTrial, Mode, ReleaseLog
from stepwell.store.keys import record_key
from tests.graphs import fold_reference

XS = list(range(1, 13))
START, END = 4, 8  # the trial runs for the timesteps with these indices
RECORD = record_key(TENANT, MODEL, "s")


def log(mode: Mode, how: str | None = "abort", *, percent: float = 100) -> ReleaseLog:
    """Return the log of one trial, from just before timestep `START` until just before `END`."""
    trial = LoggedTrial(1, 2, "salt", True, percent, {mode: START - 0.1})
    if how is not None:
        trial.how, trial.ended, trial.known = how, END - 0.2, END - 0.1  # type: ignore[assignment]
    return ReleaseLog([trial])


def operations(ys: Sequence[int], versions: dict[int, int]) -> list[Operation]:
    """Return a step per second; `versions` has the version that a step names, by its index."""
    return [
        Operation((x,), i + 1, (y,), i, i + 0.5, versions.get(i)) for i, (x, y) in enumerate(zip(XS, ys, strict=True))
    ]


OLD = fold_reference(XS, factor=FACTORS[1])
NEW = [*OLD[:START], *fold_reference(XS[START:], start=OLD[START - 1], factor=FACTORS[2])]
RAMPED = [*OLD[:START], *NEW[START:END], *OLD[END:]]
SWITCHED_BACK = [*NEW[:END], *fold_reference(XS[END:], start=NEW[END - 1], factor=FACTORS[1])]


def kinds(found: Sequence[Operation], releases: ReleaseLog) -> list[str]:
    return [violation.kind for violation in check("s", found, len(XS), log=releases).violations]


@pytest.mark.parametrize(
    ("ys", "versions", "releases"),
    [
        (OLD, {}, log("shadow")),
        ([*OLD[:END], *NEW[END:]], {END: 2}, log("shadow", "promote")),
        (RAMPED, {START: 2, END: 1}, log("ramp")),
        (NEW, {START: 2}, log("ramp", "promote")),
        (NEW, {START: 2}, log("switch")),
        (OLD, {}, log("ramp", percent=0)),
    ],
)
def test_a_stream_that_follows_the_release_has_no_violations(
    ys: Sequence[int], versions: dict[int, int], releases: ReleaseLog
) -> None:
    assert kinds(operations(ys, versions), releases) == []


@pytest.mark.parametrize(
    ("ys", "versions", "releases"),
    [
        pytest.param(NEW, {START: 2}, log("shadow"), id="the candidate answers in shadow"),
        pytest.param(RAMPED, {START: 2, END: 1}, log("ramp", None), id="the old half answers without an abort"),
        pytest.param(SWITCHED_BACK, {START: 2, END: 1}, log("ramp"), id="the old half has not seen all timesteps"),
        pytest.param(NEW, {START: 2}, log("ramp", percent=0), id="a stream outside the share takes part"),
        pytest.param(RAMPED, {START: 2}, log("ramp"), id="a version is not named"),
        pytest.param(OLD, {3: 1}, log("shadow"), id="a version is named that answered before, too"),
        pytest.param([*OLD[:END], *NEW[END:]], {END: 2}, log("shadow"), id="an aborted candidate answers"),
    ],
)
def test_a_stream_that_does_not_follow_the_release_is_detected(
    ys: Sequence[int], versions: dict[int, int], releases: ReleaseLog
) -> None:
    assert kinds(operations(ys, versions), releases) == ["wrong"]


def test_a_timestep_that_one_half_missed_is_detected() -> None:
    for at in range(len(XS)):
        missed = fold_reference([*XS[:at], *XS[at + 1 :]], factor=FACTORS[1])
        ys = [*RAMPED[:END], *missed[END - 1 :]]

        assert "wrong" in kinds(operations(ys, {START: 2, END: 1}), log("ramp")), at


def test_a_pair_is_not_left_once_every_worker_follows_the_end() -> None:
    pair = Folds((5, 7), 0, 2)
    step = Operation((1,), 9, (fold_reference([1], start=7, factor=FACTORS[2])[-1],), 8, 8.5)

    assert after([pair], step, log("ramp"), RECORD)
    assert not after([pair], step, log("ramp"), RECORD, is_settled=True)


def test_a_sweep_moves_a_stream_without_an_answer() -> None:
    swept = dataclasses.replace(log("ramp"), sweeps=[END - 0.05])
    pair = Folds((5, 7), 0, 2)
    step = Operation((1,), 9, (fold_reference([1], start=5, factor=FACTORS[1])[-1],), 8, 8.5)

    assert after([pair], step, swept, RECORD)
    assert not after([pair], step, log("ramp"), RECORD)


def test_a_stream_that_sleeps_long_after_a_sweep_has_moved_it_is_where_the_sweep_left_it() -> None:
    """The candidate was aborted long before the stream's next answer, but a `switch` moves a stream for good."""
    swept = dataclasses.replace(log("switch"), sweeps=[START])
    [y] = fold_reference([1], start=5, factor=FACTORS[2])
    step = Operation((1,), 2, (y,), 100, 100.5)
    before = [Folds((5, None), 0, 1)]

    assert {folds.values for folds in after(before, step, swept, RECORD)} == {(None, y)}
    assert not after(before, step, log("switch"), RECORD)


@pytest.mark.parametrize(("mode", "follows"), [("switch", True), ("ramp", False)])
def test_a_stream_that_is_moved_back_by_hand_after_a_switch_follows_the_promotion(mode: Mode, *, follows: bool) -> None:
    """It was moved to the candidate by the trial, so a promotion without a switch had moved it for good."""
    releases = log(mode, "promote")
    moved = after_move([Folds((None, 5), 1, 2)], 1, Operation((), 7, (), 6, 6.5), releases, RECORD)
    [y] = fold_reference([1], start=5, factor=FACTORS[2])

    assert bool(after(moved, Operation((1,), 8, (y,), 9, 9.5, 2), releases, RECORD)) == follows


def test_a_move_by_hand_takes_the_half_of_its_version_and_a_reset_the_initial_state() -> None:
    move = Operation((), 8, (), 6, 6.5)
    moved = after_move([Folds((5, 7), 0, 2)], 1, move, log("ramp"), RECORD)

    assert {folds.values for folds in moved} == {(5, None)}
    assert {folds.values for folds in after_reset(6, log("ramp"))} == {(0, None), (None, 0)}
