"""Rollouts as server-sent events."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from stepwell.addons.rollouts.events import RolloutEvents
from stepwell.addons.rollouts.requests import RolloutRequest
from stepwell.types import StreamKey
from tests.addons.rollouts.harness import rollouts_of
from tests.api.running import Service
from tests.api.test_streams import MSGPACK, code_of

EVENTS = {"accept": "text/event-stream"}


def events_of(text: str) -> list[tuple[str, Any]]:
    """The events of a response, with their data; comments are left out."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            events.append((fields["event"], json.loads(fields["data"])))
    return events


def streamed(service: Service, model: str, stream: str, horizon: int, **body: Any) -> list[tuple[str, Any]]:
    answer = service.http.post(
        service.path(model, stream, "rollout"), json={"horizon": horizon, **body}, headers=EVENTS
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    return events_of(answer.text)


def plain(service: Service, model: str, stream: str, horizon: int, **body: Any) -> dict[str, Any]:
    answer = service.http.post(service.path(model, stream, "rollout"), json={"horizon": horizon, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def joined(events: list[tuple[str, Any]]) -> dict[str, Any]:
    """The plain response that events without an axis for samples stand for."""
    *timesteps, (last, done) = events
    assert [name for name, _ in timesteps] == ["timestep"] * len(timesteps)
    assert last == "done"
    assert "outputs" not in done
    made = [timestep for _, timestep in timesteps]
    columns = {
        member: {name: [timestep[member][name] for timestep in made] for name in made[0][member]}
        for member in ("outputs", "next")
    }
    assert columns["next"] == done["next"]
    return {**done, **columns}


def test_the_events_of_a_rollout_are_the_plain_response(rolling: Service, stream: str) -> None:
    rolling.step("wave", stream, [0.3])

    events = streamed(rolling, "wave", stream, 20, inputs=[0.5])
    assert joined(events) == plain(rolling, "wave", stream, 20, inputs=[0.5])
    assert events[0][1].keys() == {"outputs", "next"}


def test_a_drawn_rollout_has_its_seed_in_done(rolling: Service, stream: str) -> None:
    events = streamed(rolling, "letters", stream, 10, inputs=1, feedback={"x": {"output": "next", "sample": True}})

    seed = events[-1][1]["seed"]
    body = {"inputs": 1, "feedback": {"x": {"output": "next", "sample": True}}, "seed": seed}
    assert joined(events) == plain(rolling, "letters", stream, 10, **body)


def test_with_samples_a_timestep_has_their_axis_first(rolling: Service, stream: str) -> None:
    body = {"inputs": [0.5], "samples": 3, "feedback": {"x": {"output": "y", "std": 0.1}}, "seed": 7}
    *timesteps, (_, done) = streamed(rolling, "wave", stream, 4, **body)
    whole = plain(rolling, "wave", stream, 4, **body)

    for t, (_, timestep) in enumerate(timesteps):
        assert timestep["outputs"]["y"] == [sample[t] for sample in whole["outputs"]["y"]]
        assert timestep["next"]["x"] == [sample[t] for sample in whole["next"]["x"]]
    assert done["next"] == whole["next"]


def test_a_committed_rollout_is_streamed_again_by_its_seq(rolling: Service, stream: str) -> None:
    body = {"inputs": [3], "feedback": {"x": "y"}, "commit": True, "seq": 1}
    first = joined(streamed(rolling, "fold", stream, 5, **body))
    again = joined(streamed(rolling, "fold", stream, 5, **body))

    assert (first.pop("created"), again.pop("replayed")) == (True, True)
    assert first == again
    assert rolling.http.get(rolling.path("fold", stream)).json()["step"] == 5


def test_a_rollout_that_is_refused_is_a_plain_problem(rolling: Service, stream: str) -> None:
    path = rolling.path("fold", stream, "rollout")
    body = {"horizon": 3, "inputs": [1], "feedback": {"x": "y"}, "commit": True, "seq": 9}

    for changed, status, code in (
        ({}, 404, "stream_not_found"),
        ({"feedback": {"x": "none"}}, 422, "bad_input"),
        ({"horizon": 0}, 400, "bad_request"),
        ({"horizon": 10_000}, 413, "too_large"),
    ):
        answer = rolling.http.post(path, json=body | changed, headers=EVENTS)
        assert (answer.status_code, code_of(answer)) == (status, code)


def test_a_rollout_that_fails_after_its_first_timestep_ends_with_a_problem(rolling: Service, stream: str) -> None:
    events = streamed(rolling, "nan_at", stream, 20, inputs=[1], feedback={"x": "y"})

    assert [name for name, _ in events] == ["timestep"] * (len(events) - 1) + ["problem"]
    assert 1 < len(events) < 20
    problem = events[-1][1]
    assert (problem["code"], problem["status"], problem["applied"]) == ("non_finite_state", 422, "no")


def test_a_committed_rollout_that_fails_is_a_plain_problem(rolling: Service, stream: str) -> None:
    body = {"horizon": 20, "inputs": [1], "feedback": {"x": "y"}, "commit": True}
    answer = rolling.http.post(rolling.path("nan_at", stream, "rollout"), json=body, headers=EVENTS)

    assert code_of(answer) == "non_finite_state"
    assert rolling.http.get(rolling.path("nan_at", stream)).status_code == 404


def test_events_are_json_also_for_a_body_in_msgpack(rolling: Service, stream: str) -> None:
    body = msgspec.msgpack.encode({"horizon": 2, "inputs": [0.5]})
    answer = rolling.http.post(rolling.path("wave", stream, "rollout"), content=body, headers={**MSGPACK, **EVENTS})

    assert joined(events_of(answer.text)) == plain(rolling, "wave", stream, 2, inputs=[0.5])


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "application/json"),
        ("application/json, text/event-stream", "application/json"),
        ("text/event-stream, application/json", "text/event-stream"),
        ("application/json;q=0.5, text/event-stream", "text/event-stream"),
        ("text/event-stream;q=0", "application/json"),
        ("TEXT/EVENT-STREAM", "text/event-stream"),
    ],
)
def test_events_are_sent_to_those_who_prefer_them(rolling: Service, stream: str, accept: str, media: str) -> None:
    path = rolling.path("wave", stream, "rollout")
    answer = rolling.http.post(path, json={"horizon": 1, "inputs": [0.5]}, headers={"accept": accept})

    assert answer.headers["content-type"].partition(";")[0] == media


def test_a_client_that_goes_away_ends_a_run_that_is_not_committed(rolling: Service, stream: str) -> None:
    """Each timestep of this model takes twice as long as the one before; 40 would take hours."""
    admission = rolling.app.state.context.engine.admission
    body = {"horizon": 40, "inputs": [1], "feedback": {"x": "y"}}
    with rolling.http.stream("POST", rolling.path("slow", stream, "rollout"), json=body, headers=EVENTS) as answer:
        lines = answer.iter_lines()  # named: without it the iterator would end at once, and close the connection
        first = next(lines)
        running = admission.rows

    async def ended() -> None:
        async with asyncio.timeout(30):
            while admission.rows:  # noqa: ASYNC110 - no event is published
                await asyncio.sleep(0.005)

    rolling.run_in_loop(ended)
    assert first == "event: timestep"
    assert running == 1


def test_a_comment_is_sent_while_no_timestep_is_made(rolling: Service, stream: str) -> None:
    """The response begins with a timestep; the next one takes longer than the comment's pause."""
    engine = rolling.app.state.context.engine
    rollout = RolloutRequest(StreamKey("default", "slow", stream), 2, {"x": np.array([100_000])}, feedback={"x": "y"})

    async def texts() -> list[bytes]:
        events = RolloutEvents(rollouts_of(engine), rollout, samples=False, comment_s=0.001)
        await events.wait_for_first()
        return [text async for text in events.texts()]

    assert b":\n\n" in rolling.run_in_loop(texts)
