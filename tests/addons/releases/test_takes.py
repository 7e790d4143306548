"""How the candidate's state is made: kept, translated, or reset and warmed."""

from __future__ import annotations

from pathlib import Path

from tests.addons.releases.builds import seen, wide_fold, widening, widening_below
from tests.addons.releases.fleet import NEW_FACTOR, OLD_FACTOR, fleet, folded, wait_until
from tests.graphs import Built, fold
from tests.servers import Server


def old_fold() -> Built:
    return fold(OLD_FACTOR)


def test_the_candidate_responds_only_after_its_warm_steps_also_inside_a_chunk(
    redis_server: Server, tmp_path: Path
) -> None:
    with fleet(redis_server.url, tmp_path, old_fold, seen) as releases:
        before = releases.step("s", [0])
        releases.put(candidate=2, mode="ramp", percent=100, take="reset", warm_steps=4)
        chunks = [releases.chunk("s", [[x], [x + 1], [x + 2]]) for x in (1, 4, 7)]
        releases.end("abort")
        after = releases.step("s", [10])

    old = folded(range(11))
    answers = [y for chunk in chunks for [y] in chunk["outputs"]["y"]]
    assert before["outputs"]["y"] == old[:1]
    assert answers == [*old[1:5], 5, 6, 7, 8, 9]
    assert [chunk.get("version") for chunk in chunks] == [None, 2, None]
    assert (after["outputs"]["y"], after["version"]) == (old[10:], 1)


def test_a_wider_state_is_translated_exactly(redis_server: Server, tmp_path: Path) -> None:
    (tmp_path / "fold" / "2").mkdir(parents=True)
    (tmp_path / "fold" / "2" / "translate-from-1.onnx").write_bytes(widening())
    with fleet(redis_server.url, tmp_path, old_fold, lambda: wide_fold(NEW_FACTOR)) as releases:
        before = [releases.step("s", [x]) for x in range(3)]
        releases.put(candidate=2, mode="ramp", percent=100, take="translate")
        answers = [releases.step("s", [x]) for x in range(3, 6)]
        state = releases.replica.http.get(releases.replica.path("fold", "s", "state")).json()
        releases.end("promote")
        answers += [releases.step("s", [x]) for x in range(6, 9)]

    start = before[-1]["outputs"]["y"][0]
    expected = folded(range(3, 9), start=start, factor=NEW_FACTOR)
    assert [answer["outputs"]["y"][0] for answer in answers] == expected
    assert state["states"] == {"g": [expected[2], 3]}


def test_switch_moves_streams_without_a_pair(redis_server: Server, tmp_path: Path) -> None:
    with fleet(redis_server.url, tmp_path, old_fold, lambda: fold(NEW_FACTOR)) as releases:
        before = releases.step("s", [0])
        releases.put(candidate=2, mode="switch", percent=100)
        moved = [releases.step("s", [x]) for x in (1, 2)]
        new = releases.step("new", [7])
        releases.end("abort")
        stays = releases.step("s", [3])
        wait_until(lambda: releases.release()["current"] == 1)
        newer = releases.step("newer", [7])

    expected = folded([1, 2, 3], start=before["outputs"]["y"][0], factor=NEW_FACTOR)
    assert [answer["outputs"]["y"][0] for answer in [*moved, stays]] == expected
    assert [answer.get("version") for answer in [*moved, stays]] == [2, None, None]
    assert new["outputs"]["y"] == folded([7], factor=NEW_FACTOR)
    assert newer["outputs"]["y"] == folded([7])


def test_a_stream_whose_state_cannot_be_translated_stays_with_its_version(redis_server: Server, tmp_path: Path) -> None:
    (tmp_path / "fold" / "2").mkdir(parents=True)
    (tmp_path / "fold" / "2" / "translate-from-1.onnx").write_bytes(widening_below(5))
    with fleet(redis_server.url, tmp_path, old_fold, lambda: wide_fold(NEW_FACTOR)) as releases:
        before = [releases.bulk(["small", "large"], [[0], [9]], seq=[1, 1])]
        releases.put(candidate=2, mode="ramp", percent=100, take="translate")
        answers = [releases.bulk(["small", "large"], [[1], [1]], seq=[t, t]) for t in (2, 3)]
        wait_until(lambda: releases.release()["compared"]["fell_back"] == 1)

    assert before[0]["outputs"]["y"] == [folded([0]), folded([9])]
    small = folded([1, 1], start=folded([0])[0], factor=NEW_FACTOR)
    assert [answer["outputs"]["y"] for answer in answers] == [
        [[new], [old]] for new, old in zip(small, folded([9, 1, 1])[1:], strict=True)
    ]
    assert [answer.get("version") for answer in answers] == [[2, None], None]
