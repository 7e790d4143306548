"""Releases end to end: pairs on two replicas, over HTTP and over feeds."""

from __future__ import annotations

from tests.addons.releases.fleet import NEW_FACTOR, Fleet, folded, over_both, wait_until

XS = range(12)
OLD = folded(XS)
NEW = folded(XS[4:], start=OLD[3], factor=NEW_FACTOR)


def answers_of_a_trial(releases: Fleet, mode: str, how: str) -> tuple[list[int], dict[int, int]]:
    """Step a stream through `XS`, 4 to 7 during a trial; return predictions, and by index the versions named."""
    answers = [releases.step("s", [x], seq=x + 1) for x in XS[:4]]
    releases.put(candidate=2, mode=mode, percent=100)
    answers += [releases.step("s", [x], seq=x + 1) for x in XS[4:8]]
    releases.end(how)
    answers += [releases.step("s", [x], seq=x + 1) for x in XS[8:]]
    named = {i: answer["version"] for i, answer in enumerate(answers) if "version" in answer}
    return [answer["outputs"]["y"][0] for answer in answers], named


@over_both
def test_in_shadow_the_old_version_responds_and_after_an_abort_it_goes_on(releases: Fleet) -> None:
    assert answers_of_a_trial(releases, "shadow", "abort") == (OLD, {})


@over_both
def test_after_a_promotion_the_candidate_goes_on_from_where_it_joined(releases: Fleet) -> None:
    assert answers_of_a_trial(releases, "shadow", "promote") == ([*OLD[:8], *NEW[4:]], {8: 2})


@over_both
def test_in_a_ramp_the_candidate_responds_and_an_abort_gives_back_a_state_that_has_seen_all(releases: Fleet) -> None:
    assert answers_of_a_trial(releases, "ramp", "abort") == ([*OLD[:4], *NEW[:4], *OLD[8:]], {4: 2, 8: 1})


@over_both
def test_every_committed_timestep_of_a_trial_is_compared_once_over_all_replicas(releases: Fleet) -> None:
    releases.put(candidate=2, mode="shadow", percent=100)
    for x in range(6):
        releases.step("s", [x], seq=x + 1)
        releases.step("s", [x], seq=x + 1)  # sent again
    wait_until(lambda: releases.release()["compared"]["steps"] == 6)

    compared = releases.release()["compared"]
    answers = zip(folded(range(6)), folded(range(6), factor=NEW_FACTOR), strict=True)
    assert compared["outputs"]["y"]["max_abs"] == max(float(abs(float(a) - float(b))) for a, b in answers)
    assert (compared["lost"], compared["fell_back"], compared["non_finite"]) == (0, 0, 0)


@over_both
def test_a_broken_limit_of_the_gate_aborts_the_release_once_with_its_reason(releases: Fleet) -> None:
    releases.put(candidate=2, mode="ramp", percent=100, gate={"min_compared": 5, "max_abs": {"y": 10}})
    xs = list(range(5))
    answers = [releases.step("s", [x], seq=i + 1) for i, x in enumerate(xs)]
    wait_until(lambda: releases.release()["ended"] is not None)
    ended = releases.release()
    engines = [one.app.state.context.engine for one in releases.replicas]
    wait_until(lambda: all(engine.placing.documents.current(releases.model).running is None for engine in engines))
    last = releases.step("s", [5], seq=6)

    assert (ended["ended"]["how"], "'y'" in ended["ended"]["why"]) == ("aborted", True)
    assert ended["revision"] == 3
    assert [answer["outputs"]["y"][0] for answer in answers] == folded(xs, factor=NEW_FACTOR)
    assert (last["outputs"]["y"], last["version"]) == (folded(range(6))[-1:], 1)
