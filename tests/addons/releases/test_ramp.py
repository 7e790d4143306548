"""A ramp over many streams under load: shares, no way back for a stream that is in, and retries across its end."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stepwell.addons.releases.document import MAX_EARLIER
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.addons.releases.builds import lstm_with_a_wrong_weight
from tests.addons.releases.fleet import MODEL, NEW_FACTOR, Fleet, fleet, folded, over_both, two_folds, wait_until
from tests.graphs import lstm, write_model
from tests.servers import Server

N_STREAMS = 400
NAMES = [f"s{i}" for i in range(N_STREAMS)]


def versions(releases: Fleet) -> list[int]:
    """Return the version that responded to each stream last."""
    http, path = releases.replica.http, releases.replica.path
    return [http.get(path(releases.model, name)).json()["version"] for name in NAMES]


def test_a_raised_share_takes_no_stream_back_and_an_abort_gives_every_stream_its_old_state(
    redis_server: Server, tmp_path: Path
) -> None:
    steps = 0

    def step_all(releases: Fleet, n: int = 2) -> list[list[int]]:
        nonlocal steps
        answers = []
        for _ in range(n):
            steps += 1
            answer = releases.bulk(NAMES, [[(steps * 7 + i) % 50] for i in range(N_STREAMS)], seq=[steps] * N_STREAMS)
            assert not answer["errors"]
            answers.append([y for [y] in answer["outputs"]["y"]])
        return answers

    with two_folds(redis_server.url, tmp_path, max_batch_size=64) as releases:
        step_all(releases)
        shares: list[set[str]] = []
        for percent in (5, 50):
            releases.put(candidate=2, mode="ramp", percent=percent)
            step_all(releases)
            shares.append({name for name, version in zip(NAMES, versions(releases), strict=True) if version == 2})
        releases.end("abort")
        after = step_all(releases, 3)

    xs = [[(t * 7 + i) % 50 for t in range(1, steps + 1)] for i in range(N_STREAMS)]
    assert [[row[i] for row in after] for i in range(N_STREAMS)] == [folded(x)[-3:] for x in xs]
    assert shares[0] <= shares[1]
    for share, percent in zip(shares, (5, 50), strict=True):
        expected = N_STREAMS * percent / 100
        assert abs(len(share) - expected) <= 4 * math.sqrt(expected * (1 - percent / 100))


Found = dict[str, list[set[tuple[int, int | None, str]]]]


def stepped_during(releases: Fleet, names: Sequence[str], n_steps: int, hows: Sequence[str]) -> Found:
    """Return the different responses to each timestep, each sent three times, while releases are started and ended."""
    found: Found = {name: [] for name in names}

    def run(name: str) -> None:
        for t in range(1, n_steps + 1):
            answers = [releases.step(name, [t], seq=t) for _ in range(3)]
            found[name].append({(a["outputs"]["y"][0], a.get("version"), a["state_id"]) for a in answers})

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    current, chance = 1, random.Random(5)
    # A stream whose client has ended sleeps; its pair is settled as long as the document has its trial.
    for n in range(MAX_EARLIER):
        releases.put(candidate=3 - current, mode=chance.choice(["shadow", "ramp"]), percent=100)
        how = chance.choice(hows)
        releases.end(how)
        current = 3 - current if how == "promote" else current
        part = n * len(names) * n_steps // MAX_EARLIER
        wait_until(lambda part=part: sum(map(len, found.values())) >= part, within_s=120)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    return found


@over_both
def test_every_retry_gets_its_first_answer_across_promotions_and_aborts(releases: Fleet) -> None:
    names, n_steps = NAMES[:8], 60
    found = stepped_during(releases, names, n_steps, ["promote", "abort"])

    assert [[len(answers) for answers in found[name]] for name in names] == [[1] * n_steps] * len(names)
    assert any(version is not None for name in names for [(_, version, _)] in found[name])


def test_after_a_storm_of_aborts_every_stream_goes_on_with_a_state_that_has_seen_all(releases: Fleet) -> None:
    names, n_steps = NAMES[:8], 60
    found = stepped_during(releases, names, n_steps, ["abort"])
    last = [releases.step(name, [n_steps + 1]) for name in names]

    xs = range(1, n_steps + 2)
    old = folded(xs)
    # by timestep: what the candidate answers if it took over at any timestep before
    new = [{0} for _ in xs]
    for start, state in enumerate([0, *old[:-1]]):
        for t, y in enumerate(folded(xs[start:], start=state, factor=NEW_FACTOR), start):
            new[t].add(y)
    for name in names:
        assert all(y == old[t] or y in new[t] for t, [(y, _, _)] in enumerate(found[name]))
    assert [answer["outputs"]["y"] for answer in last] == [old[-1:]] * len(names)


def test_a_candidate_with_one_wrong_weight_is_aborted_within_500_timesteps(
    redis_server: Server, tmp_path: Path
) -> None:
    names, n_rounds = NAMES[:50], 9
    xs = np.random.default_rng(2).normal(size=(n_rounds + 1, len(names), 4)).astype(np.float32)
    model = StepModel(write_model(tmp_path / "alone", MODEL, lstm))
    with fleet(redis_server.url, tmp_path / "models", lstm, lstm_with_a_wrong_weight) as releases:
        releases.put(candidate=2, mode="shadow", percent=100, gate={"min_compared": 400, "max_abs": {"y": 0.001}})
        answers = [releases.bulk(names, x.tolist())["outputs"]["y"] for x in xs[:n_rounds]]
        wait_until(lambda: releases.release()["ended"] is not None)
        ended = releases.release()
        answers.append(releases.bulk(names, xs[n_rounds].tolist())["outputs"]["y"])

    assert (ended["ended"]["how"], "'y'" in ended["ended"]["why"]) == ("aborted", True)
    assert 400 <= ended["compared"]["steps"] <= 500
    assert np.array_equal(np.array(answers, np.float32), alone(model, xs))


def alone(model: StepModel, xs: Array) -> Array:
    """Return the predictions of a model, `(T, rows, 2)`, for `(T, rows, 4)` inputs."""
    states, rows = model.initial_states(xs.shape[1]), []
    for x in xs:
        outputs, states = model.step({"x": x}, states)
        rows.append(outputs["y"])
    return np.stack(rows)


@pytest.mark.parametrize("change", ["start", "abort", "promote"])
def test_messages_of_a_feed_keep_their_order_across_a_change(redis_server: Server, tmp_path: Path, change: str) -> None:
    """None of them has a `seq`: one that is applied out of order changes every prediction after it."""
    n_sent, ramp = 400, {"candidate": 2, "mode": "ramp", "percent": 100}
    # On a busy machine, timesteps that would wait for a part of the usual timeout are rejected.
    fleet_of_two = two_folds(redis_server.url, tmp_path, request_timeout_s=300)
    with fleet_of_two as releases, releases.replica.feed(MODEL, "s") as feed:
        if change != "start":
            releases.put(**ramp)

        def send() -> None:
            for x in range(n_sent):
                feed.send(json.dumps({"inputs": [x]}))

        sender = threading.Thread(target=send)
        sender.start()
        answers = [json.loads(feed.recv(20)) for _ in range(30)]
        if change == "start":
            releases.put(**ramp)
        else:
            releases.end(change)
        answers += [json.loads(feed.recv(20)) for _ in range(n_sent - len(answers))]
        sender.join()

    xs = range(n_sent)
    old, new = folded(xs), folded(xs, factor=NEW_FACTOR)
    expected = new
    changed = [i for i, answer in enumerate(answers) if "version" in answer]
    if change == "start":
        expected = [*old[: changed[0]], *folded(xs[changed[0] :], start=old[changed[0] - 1], factor=NEW_FACTOR)]
    elif change == "abort":
        expected = [*new[: changed[0]], *old[changed[0] :]]
    assert [answer["step"] for answer in answers] == list(range(1, n_sent + 1))
    assert [answer["outputs"]["y"][0] for answer in answers] == expected
    assert len(changed) == (change != "promote")
