"""Rollouts over HTTP: the feedback loop of a client, in one request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from websockets.sync.client import connect

from stepwell.addons.rollouts.sampling import normals, sample_indices, uniforms
from stepwell_client.wire.ids import encode_state_id
from stepwell_export.runtime.feedback import Draw
from tests.api.running import Service, running_service
from tests.api.test_streams import MSGPACK, code_of
from tests.graphs import fold_reference, slow, wave, write_models
from tests.servers import Server


def rollout(service: Service, model: str, stream: str, horizon: int, *, key: str = "", **body: Any) -> Any:
    headers = {"idempotency-key": key} if key else {}
    return service.http.post(service.path(model, stream, "rollout"), json={"horizon": horizon, **body}, headers=headers)


def client_loop(
    service: Service, model: str, stream: str, x: Any, horizon: int, follow: Any
) -> tuple[list[Any], list[Any]]:
    """Step a stream, computing each input from the previous prediction with `follow(outputs, t)`."""
    outputs, fed = [], []
    for t in range(1, horizon + 1):
        outputs.append(service.step(model, stream, x).json()["outputs"])
        x = follow(outputs[-1], t)
        fed.append(x)
    return outputs, fed


def columns(outputs: list[Any]) -> dict[str, list[Any]]:
    return {name: [one[name] for one in outputs] for name in outputs[0]}


def position(service: Service, model: str, stream: str) -> tuple[int, str]:
    found = service.http.get(service.path(model, stream)).json()
    return found["step"], found["state_id"]


def prime(service: Service, model: str, stream: str) -> None:
    for x in ([0.3], [-0.2], [0.9]):
        service.step(model, stream, x)


# ------------------------------------------------------------------- the loop


def test_a_rollout_equals_the_client_loop_bit_for_bit(rolling: Service, stream: str) -> None:
    prime(rolling, "wave", stream)
    before = position(rolling, "wave", stream)
    found = rollout(rolling, "wave", stream, 30, inputs=[0.5]).json()
    after = position(rolling, "wave", stream)
    outputs, fed = client_loop(rolling, "wave", stream, [0.5], 30, lambda y, _: y["y"])

    assert before == after == (3, found["state_id"])
    assert found["outputs"] == columns(outputs)
    assert found["next"] == {"x": fed}
    assert found["step"] == 33


def test_a_rollout_without_inputs_continues_from_the_last_prediction(rolling: Service, stream: str) -> None:
    prime(rolling, "wave", stream)
    y = rolling.step("wave", stream, [0.1]).json()["outputs"]["y"]

    assert rollout(rolling, "wave", stream, 5).json() == rollout(rolling, "wave", stream, 5, inputs=y).json()


@pytest.mark.parametrize("how", ["reset", "none", "state"])
def test_a_rollout_without_inputs_is_rejected_if_no_prediction_is_kept(rolling: Service, stream: str, how: str) -> None:
    prime(rolling, "wave", stream)
    http, path = rolling.http, rolling.path
    if how == "reset":
        http.post(path("wave", stream, "reset"))
    elif how == "none":
        http.post(path("wave", stream, "steps"), json={"inputs": [[1.0], [2.0]], "return": "none"})
    else:
        http.put(path("wave", stream, "state"), json={"states": {"h": [0, 0, 0, 0]}})
    answer, missing = rollout(rolling, "wave", stream, 5), rollout(rolling, "wave", f"{stream}-none", 5)

    assert (answer.status_code, code_of(answer)) == (400, "bad_request")
    assert "inputs" in answer.json()["detail"]
    assert (missing.status_code, code_of(missing)) == (404, "stream_not_found")


def test_forks_and_snapshots_keep_the_last_prediction(rolling: Service, stream: str) -> None:
    prime(rolling, "wave", stream)
    rolling.http.put(rolling.path("wave", stream, "snapshots/s"))
    rolling.http.post(rolling.path("wave", stream, "fork"), json={"to": f"{stream}-b"})
    expected = rollout(rolling, "wave", stream, 5).json()["outputs"]
    rolling.step("wave", stream, [7.0])
    rolling.http.post(rolling.path("wave", stream, "reset"), json={"to": {"snapshot": "s"}})

    assert rollout(rolling, "wave", stream, 5).json()["outputs"] == expected
    assert rollout(rolling, "wave", f"{stream}-b", 5).json()["outputs"] == expected


def test_a_rollout_of_a_missing_stream_uses_the_initial_state(rolling: Service, stream: str) -> None:
    found = rollout(rolling, "wave", stream, 4, inputs=[0.5]).json()
    outputs, _ = client_loop(rolling, "wave", f"{stream}-b", [0.5], 4, lambda y, _: y["y"])

    assert (found["outputs"], found["step"]) == (columns(outputs), 4)
    assert "state_id" not in found
    assert rolling.http.get(rolling.path("wave", stream)).status_code == 404


def test_the_request_can_override_the_feedback_of_the_manifest(rolling: Service, stream: str) -> None:
    prime(rolling, "wave", stream)
    rule = {"x": {"output": "spread", "scale": 2, "offset": -0.5}}
    found = rollout(rolling, "wave", stream, 6, inputs=[0.5], feedback=rule).json()
    outputs, fed = client_loop(
        rolling, "wave", stream, [0.5], 6, lambda y, _: [float(np.float32(np.float32(y["spread"][0]) * 2.0 - 0.5))]
    )

    assert (found["outputs"], found["next"]["x"]) == (columns(outputs), fed)


def test_an_input_without_a_feedback_rule_stays_constant(rolling: Service, stream: str) -> None:
    found = rollout(rolling, "two_inputs", stream, 3, inputs={"a": [1, 2], "b": 3}, feedback={"a": "total"}).json()

    assert found["outputs"] == {"total": [[4, 5], [11, 13], [25, 29]], "last": [3, 3, 3]}
    assert found["next"] == {"a": [[4, 5], [11, 13], [25, 29]]}


def test_a_rollout_accepts_and_returns_msgpack(rolling: Service, stream: str) -> None:
    body = {"horizon": 3, "inputs": {"x": {"d": "float32", "s": [1], "b": np.float32(0.5).tobytes()}}}
    packed = rolling.http.post(
        rolling.path("wave", stream, "rollout"), content=msgspec.msgpack.encode(body), headers=MSGPACK
    )
    alone = rolling.http.post(
        rolling.path("wave", stream, "rollout"),
        content=msgspec.msgpack.encode({**body, "inputs": body["inputs"]["x"]}),  # type: ignore[index]
        headers=MSGPACK,
    )
    plain = rollout(rolling, "wave", stream, 3, inputs=[0.5]).json()["outputs"]["y"]

    y = msgspec.msgpack.decode(packed.content)["outputs"]["y"]
    assert (y["d"], y["s"], y["b"]) == ("float32", [3, 1], np.array(plain, np.float32).tobytes())
    assert alone.content == packed.content


# ------------------------------------------------------------------- sampling


def sampled_client_loop(
    service: Service, stream: str, x: int, horizon: int, seed: int, how: Draw, sample: int = 0
) -> list[int]:
    numbers = uniforms(seed, sample, 0, horizon + 1)

    def follow(outputs: Any, t: int) -> int:
        return int(sample_indices(np.array(outputs["next"], np.float32)[None], numbers[t : t + 1], how)[0])

    return client_loop(service, "letters", stream, x, horizon, follow)[1]


@pytest.mark.parametrize(
    "how", [Draw(), Draw(0.3), Draw(1.5, top_k=3), Draw(top_p=0.7), Draw(0)], ids=lambda how: repr(how)[5:-1]
)
def test_sampled_letters_equal_those_of_the_client_loop_with_the_same_seed(
    rolling: Service, stream: str, how: Draw
) -> None:
    given = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    said: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    found = rollout(rolling, "letters", stream, 60, inputs=2, seed=11, **said).json()
    in_rule = rollout(
        rolling, "letters", stream, 60, inputs=2, seed=11, feedback={"x": {"output": "next", **said}}
    ).json()

    assert found["next"]["x"] == sampled_client_loop(rolling, stream, 2, 60, 11, how)
    assert found == in_rule
    assert found.get("seed") == (None if how.temperature == 0 else 11)


def test_a_returned_seed_reproduces_the_rollout(rolling: Service, stream: str) -> None:
    first, second = (rollout(rolling, "letters", stream, 40, inputs=0).json() for _ in range(2))
    again = rollout(rolling, "letters", stream, 40, inputs=0, seed=first["seed"]).json()

    assert first["seed"] != second["seed"]
    assert first["next"] != second["next"]
    assert again == first


def test_samples_have_their_own_axis_and_do_not_depend_on_their_number(rolling: Service, stream: str) -> None:
    many = rollout(rolling, "letters", stream, 12, inputs=1, samples=20, seed=5).json()
    few = rollout(rolling, "letters", stream, 8, inputs=1, samples=3, seed=5).json()
    one = rollout(rolling, "letters", stream, 12, inputs=1, seed=5).json()
    client_loop = sampled_client_loop(rolling, stream, 1, 12, 5, Draw(), sample=7)

    assert np.shape(many["outputs"]["next"]) == (20, 12, 5)
    assert [row[:8] for row in many["next"]["x"][:3]] == few["next"]["x"]
    assert many["next"]["x"][0] == one["next"]["x"]
    assert many["next"]["x"][7] == client_loop
    assert len({tuple(row) for row in many["next"]["x"]}) > 10


def test_noise_has_the_spread_that_the_model_predicts(rolling: Service, stream: str) -> None:
    rule = {"x": {"output": "y", "std": "spread"}}
    found = rollout(rolling, "wave", stream, 5, inputs=[0.5], feedback=rule, seed=3, samples=2).json()
    numbers = uniforms(3, 1, 0, 2 * 6).reshape(6, 2)

    def follow(outputs: Any, t: int) -> list[float]:
        chance = normals(numbers[t, :1], numbers[t, 1:])
        found: list[float] = (np.float32(outputs["y"]) + np.float32(outputs["spread"]) * chance).astype("f4").tolist()
        return found

    outputs, fed = client_loop(rolling, "wave", stream, [0.5], 5, follow)
    assert found["next"]["x"][1] == fed
    assert found["outputs"]["y"][1] == columns(outputs)["y"]


def test_concurrent_rollouts_answer_as_each_alone(rolling: Service, stream: str) -> None:
    """With different streams, horizons, rules and seeds, in one batch per timestep."""

    requests = [
        (f"{stream}-{n}", 10 + 17 * n % 90, {"inputs": n % 5, "seed": n, "temperature": n / 4}) for n in range(12)
    ]

    def ask(one: tuple[str, int, dict[str, Any]]) -> Any:
        return rollout(rolling, "letters", one[0], one[1], **one[2]).json()

    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(ask, requests))

    assert together == [ask(one) for one in requests]


# ------------------------------------------------------------------- committed


def test_a_committed_rollout_counts_as_its_timesteps(rolling: Service, stream: str) -> None:
    prime(rolling, "wave", stream)
    looked = rollout(rolling, "wave", stream, 7, inputs=[0.5]).json()
    found = rollout(rolling, "wave", stream, 7, inputs=[0.5], commit=True, seq=4).json()
    other = f"{stream}-b"
    prime(rolling, "wave", other)
    client_loop(rolling, "wave", other, [0.5], 7, lambda y, _: y["y"])

    assert (found["outputs"], found["step"]) == (looked["outputs"], 10)
    assert position(rolling, "wave", stream) == (10, found["state_id"])
    assert (
        rolling.step("wave", stream, [0.1], seq=11).json()["outputs"]
        == rolling.step("wave", other, [0.1]).json()["outputs"]
    )


@pytest.mark.parametrize("named", ["seq", "after", "key"])
def test_a_retried_committed_rollout_gets_its_first_answer(rolling: Service, stream: str, named: str) -> None:
    """Including samples: without a seed in the request, the seed is derived from the operation id."""
    rolling.step("letters", stream, 3)
    _, history = position(rolling, "letters", stream)
    ways: dict[str, dict[str, Any]] = {"seq": {"seq": 2}, "after": {"after": history}, "key": {"key": "k"}}
    more = ways[named]
    first = rollout(rolling, "letters", stream, 20, commit=True, **more).json()
    again = rollout(rolling, "letters", stream, 20, commit=True, **more).json()
    other = rollout(rolling, "letters", stream, 21, commit=True, **more)

    assert again == {**first, "replayed": True}
    assert position(rolling, "letters", stream)[0] == 21
    assert code_of(other) == {"seq": "seq_conflict", "after": "state_changed", "key": "idempotency_key_reused"}[named]


def test_an_idempotency_key_replays_a_rollout_after_later_steps(rolling: Service, stream: str) -> None:
    first = rollout(rolling, "letters", stream, 9, inputs=1, commit=True, key="k").json()
    rolling.step("letters", stream, 0)
    again = rollout(rolling, "letters", stream, 9, inputs=1, commit=True, key="k").json()

    assert first.pop("created") is True
    assert again == {**first, "replayed": True}
    assert position(rolling, "letters", stream)[0] == 10


def test_integers_are_fed_back_exactly(rolling: Service, stream: str) -> None:
    rolling.step("fold", stream, [4])
    found = rollout(rolling, "fold", stream, 3, inputs=[5], feedback={"x": "y"}, commit=True).json()
    xs = [4, 5]
    for _ in range(3):
        xs.append(fold_reference(xs)[-1])

    assert found["next"]["x"] == [[x] for x in xs[2:]]
    assert rolling.step("fold", stream, [1], seq=5).json()["outputs"]["y"] == fold_reference([*xs[:-1], 1])[-1:]


def test_a_committed_rollout_is_published_to_watchers(rolling: Service, stream: str) -> None:

    with connect(f"ws://127.0.0.1:{rolling.port}/v1/watch") as watch:
        watch.send(msgspec.json.encode({"watch": [{"model": "wave", "stream": stream}], "inputs": True}).decode())
        assert msgspec.json.decode(watch.recv(60)) == {"watching": 1}
        rollout(rolling, "wave", stream, 3, inputs=[0.5])
        found = rollout(rolling, "wave", stream, 3, inputs=[0.5], commit=True).json()
        seen = msgspec.json.decode(watch.recv(60))

    assert (seen["step"], seen["state_id"], seen["outputs"]) == (3, found["state_id"], found["outputs"])
    assert seen["inputs"]["x"] == [[0.5], *found["next"]["x"][:-1]]


# ------------------------------------------------------------------- rejections


INVALID: dict[str, list[dict[str, Any]]] = {
    "bad_request": [
        *({}, {"horizon": 0}, {"horizon": 2.0}, {"horizon": 2, "nothing": 1}, {"horizon": 2, "seq": 0}),
        *({"horizon": 2, "samples": 0}, {"horizon": 2, "samples": 2, "commit": True}, {"horizon": 2, "commit": 1}),
        *({"horizon": 2, "seed": -1}, {"horizon": 2, "seed": True}, {"horizon": 2, "temperature": "hot"}),
        *({"horizon": 2, "top_k": 0}, {"horizon": 2, "feedback": "y"}, {"horizon": 2, "feedback": {"x": 1}}),
    ],
    "bad_input": [
        *({"horizon": 2, "feedback": one} for one in ({"x": "z"}, {"z": "y"}, {})),
        *({"horizon": 2, "inputs": {"z": [1]}}, {"horizon": 2, "inputs": [1, 2]}),
    ],
    "too_large": [{"horizon": 201}, {"horizon": 2, "samples": 21}],
}


@pytest.mark.parametrize("code", INVALID)
def test_an_invalid_rollout_is_rejected_and_moves_nothing(rolling: Service, stream: str, code: str) -> None:
    prime(rolling, "wave", stream)
    before = position(rolling, "wave", stream)
    answers = [rolling.http.post(rolling.path("wave", stream, "rollout"), json=body) for body in INVALID[code]]

    assert [code_of(answer) for answer in answers] == [code] * len(answers)
    assert position(rolling, "wave", stream) == before


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"seq": 9}, "seq_gap"),
        ({"seq": 1}, "seq_passed"),
        ({"after": encode_state_id(bytes(16))}, "state_changed"),
        ({"create": "must"}, "stream_exists"),
    ],
)
def test_a_rollout_at_a_wrong_position_is_rejected_as_a_step_is(
    rolling: Service, stream: str, more: Any, code: str
) -> None:
    prime(rolling, "wave", stream)
    answers = [rollout(rolling, "wave", stream, 3, commit=commit, **more) for commit in (False, True)]

    assert [(answer.status_code, code_of(answer)) for answer in answers] == [(409, code)] * 2


def test_a_model_without_a_feedback_rule_needs_one_in_the_request(rolling: Service, stream: str) -> None:
    answer = rollout(rolling, "fold", stream, 3, inputs=[1])

    assert (answer.status_code, code_of(answer)) == (422, "bad_input")
    assert "--feedback" in answer.json()["detail"]
    assert rolling.http.get("/v1/models/wave").json()["feedback"] == {"x": "y"}
    assert rolling.http.get("/v1/models/fold").json()["feedback"] == {}


def test_an_input_without_a_source_must_be_sent(rolling: Service, stream: str) -> None:
    answer = rollout(rolling, "two_inputs", stream, 3, inputs={"a": [1, 2]}, feedback={"a": "total"})

    assert (answer.status_code, code_of(answer)) == (422, "bad_input")
    assert "'b'" in answer.json()["detail"]


def test_a_rollout_with_a_non_finite_prediction_is_rejected_as_a_whole(rolling: Service, stream: str) -> None:
    rolling.step("nan_at", stream, [1.0])
    before = position(rolling, "nan_at", stream)
    answer = rollout(rolling, "nan_at", stream, 5, feedback={"x": "y"}, commit=True)
    grows = rollout(rolling, "total", stream, 200, inputs=[1.0, 1.0], feedback={"x": "y"})

    assert (answer.status_code, code_of(answer)) == (422, "non_finite_state")
    assert "timestep 3" in answer.json()["detail"]
    assert code_of(grows) in ("non_finite_state", "non_finite")
    assert position(rolling, "nan_at", stream) == before


def test_a_rollout_that_the_model_cannot_run_fails_alone(rolling: Service, stream: str) -> None:
    """An index outside the vocabulary, among valid rollouts."""

    with ThreadPoolExecutor(9) as threads:
        found = list(threads.map(lambda n: rollout(rolling, "letters", f"{stream}-{n}", 50, inputs=n), range(9)))

    assert [answer.status_code for answer in found] == [200] * 5 + [422] * 4
    assert code_of(found[-1]) == "bad_input"


def test_a_rollout_whose_predictions_exceed_the_response_limit_is_too_large(
    shared_redis: Server, tmp_path: Path, stream: str
) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, wave), max_body_bytes=1000) as small:
        fits, beyond = (rollout(small, "wave", stream, n, inputs=[0.5]) for n in (125, 126))

    assert (fits.status_code, beyond.status_code) == (200, 413)
    assert code_of(beyond) == "too_large"


def test_a_rollout_that_takes_too_long_times_out(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    with running_service(
        shared_redis.url, write_models(tmp_path, slow), request_timeout_s=0.5, run_timeout_s=30
    ) as hasty:
        by_time = rollout(hasty, "slow", stream, 4000, inputs=[200_000], feedback={"x": {"output": "y"}})
        alive = hasty.http.get("/healthz")
    with running_service(shared_redis.url, write_models(tmp_path, slow), run_timeout_s=0.3) as strict:
        by_run = rollout(strict, "slow", stream, 2, inputs=[10**12], feedback={"x": "y"})

    assert [(a.status_code, code_of(a)) for a in (by_time, by_run)] == [(503, "model_timeout")] * 2
    assert by_run.json()["applied"] == "no"
    assert alive.status_code == 200


def test_the_limits_of_rollouts_are_among_those_of_the_service(rolling: Service) -> None:
    limits = rolling.http.get("/v1/info").json()["limits"]

    assert (limits["max_horizon"], limits["max_samples"]) == (200, 20)
