"""Predictions of a connector have the version that made them, whatever was promoted while it ran."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.addons.connect.connectors import connector, lines_of, n_lines, run_once, wait_for
from tests.addons.releases.fleet import NEW_FACTOR, OLD_FACTOR, Fleet, folded, two_folds
from tests.servers import Server

STREAMS = ("a", "b")


def append(path: Path, xs: Sequence[int]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"stream": stream, "x": x}) + "\n" for x in xs for stream in STREAMS)


def promote(releases: Fleet) -> None:
    releases.put(candidate=2, mode="switch", percent=0)
    releases.end("promote")


def words(releases: Fleet, folder: Path, out: str) -> list[str]:
    url = f"http://127.0.0.1:{releases.replicas[0].port}"
    flags = ["--model", releases.model, "--stream", "stream", "--url", url]
    return [f"file://{folder}/in.jsonl", *flags, "--to", f"file://{folder}/{out}"]


def by_version(predictions: Sequence[dict[str, Any]], stream: str) -> list[tuple[int, int]]:
    return [(one["version"], one["outputs"]["y"][0]) for one in predictions if one["stream"] == stream]


def expected(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, int]]:
    """Return the version and the prediction of each timestep of a stream that moved between them."""
    before = folded(old)
    after = folded(new, start=before[-1], factor=NEW_FACTOR)
    return [(1, y) for y in before] + [(2, y) for y in after]


def test_a_promotion_while_a_connector_runs_shows_in_the_versions_of_its_predictions(
    redis_server: Server, tmp_path: Path
) -> None:
    """Also of a stream that has moved at an earlier timestep, and a connector that was started before."""
    assert OLD_FACTOR != NEW_FACTOR
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    append(source, [1, 2, 3])
    with (
        two_folds(redis_server.url, tmp_path) as releases,
        connector(tmp_path, *words(releases, tmp_path, "out.jsonl")) as one,
    ):
        wait_for(lambda: n_lines(out) == 6, what=one.text)
        promote(releases)
        append(source, [4, 5])
        wait_for(lambda: n_lines(out) == 10, what=one.text)
        append(source, [6])
        wait_for(lambda: n_lines(out) == 12, what=one.text)

    for stream in STREAMS:
        assert by_version(lines_of(out), stream) == expected([1, 2, 3], [4, 5, 6])


def test_predictions_that_are_handed_over_after_a_promotion_have_the_version_that_made_them(
    releases: Fleet, tmp_path: Path
) -> None:
    """A connector that was killed before it wrote them reads their messages again, with newer ones behind them."""
    append(tmp_path / "in.jsonl", [1, 2, 3])
    run_once(tmp_path, *words(releases, tmp_path, "lost.jsonl"))
    promote(releases)
    append(tmp_path / "in.jsonl", [4, 5])
    run_once(tmp_path, *words(releases, tmp_path, "out.jsonl"))

    for stream in STREAMS:
        assert by_version(lines_of(tmp_path / "out.jsonl"), stream) == expected([1, 2, 3], [4, 5])
