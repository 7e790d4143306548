"""`stepwell size`: its arithmetic, and that its costs are those of the saved benchmarks and of a real store."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import typer

from stepwell.addons.sizing import command
from stepwell.addons.sizing.arithmetic import CONSTANTS, MIN_PRIMARIES, MIN_REPLICAS, Load, Sending, allocated, size
from stepwell_export.runtime.errors import FileError
from tests.commands.program import invoke
from tests.graphs import fold, write_model
from tests.processes import service_process
from tests.servers import Server

REPOSITORY = Path(__file__).parents[3]
GIB = 2**30
_, EXAMPLES, _ = (REPOSITORY / "docs/sizing.md").read_text().split("sizes -->")
LOAD = Load(streams=1_000_000, rate=10_000, state_bytes=512, output_bytes=4, run_us=1.0)

app = typer.Typer()
app.command()(command.size)


def saved(name: str) -> dict[str, dict[str, Any]]:
    """Return the lines of a saved benchmark, by name."""
    lines = json.loads((REPOSITORY / f"docs/benchmarks/{name}.json").read_text())["lines"]
    return {line["name"]: line for line in lines}


def without_store(line: dict[str, Any]) -> float:
    cpu, store = line["cpu_us"], line["store_us"]
    assert isinstance(cpu, float)
    assert isinstance(store, float)
    return cpu - store


def test_a_million_streams_fit_into_one_redis() -> None:
    needed = size(LOAD, max_primary_bytes=16 * GIB)

    assert (needed.primaries, needed.replicas) == (1, MIN_REPLICAS)
    assert needed.data_bytes == 1_000_000 * (640 + CONSTANTS["key_bytes"].value)
    assert 0.75 * needed.maxmemory_bytes >= needed.data_bytes


def test_a_hundred_million_streams_fit_into_a_cluster() -> None:
    needed = size(replace(LOAD, streams=100_000_000, rate=100_000), max_primary_bytes=16 * GIB)

    assert needed.primaries > MIN_PRIMARIES
    assert needed.bound == "memory"
    assert needed.maxmemory_bytes <= 16 * GIB
    assert 0.75 * needed.maxmemory_bytes * needed.primaries >= needed.data_bytes
    assert needed.primary_share <= 0.5


def test_many_steps_need_more_primaries_than_their_memory() -> None:
    needed = size(replace(LOAD, rate=1_000_000), max_primary_bytes=16 * GIB)

    assert needed.bound == "cpu"
    assert needed.primary_share <= 0.5
    assert needed.replicas * 0.5 >= needed.step_us  # of a million steps a second


def test_a_cluster_has_three_primaries_at_least() -> None:
    needed = size(replace(LOAD, rate=90_000), max_primary_bytes=16 * GIB)

    assert needed.primaries == MIN_PRIMARIES


@pytest.mark.parametrize("more", [{"streams": 2_000_000}, {"rate": 20_000.0}, {"state_bytes": 1024}, {"run_us": 50.0}])
def test_more_load_never_needs_less(more: dict[str, Any]) -> None:
    before, after = (size(load, max_primary_bytes=GIB) for load in (LOAD, replace(LOAD, **more)))

    assert after.replicas >= before.replicas
    assert after.primaries >= before.primaries
    assert after.primaries * after.maxmemory_bytes >= before.primaries * before.maxmemory_bytes


def test_columns_need_fewer_replicas_than_requests() -> None:
    load = replace(LOAD, rate=500_000)
    by_http, by_columns = (
        size(replace(load, sending=sending), max_primary_bytes=16 * GIB) for sending in (Sending.HTTP, Sending.COLUMNS)
    )

    assert by_columns.replicas < by_http.replicas


def test_the_costs_of_a_worker_are_those_of_the_saved_benchmarks() -> None:
    feeds, streams = saved("websocket"), saved("streams")
    shares = json.loads((REPOSITORY / "docs/benchmarks/profile.json").read_text())["shares"]
    http = without_store(saved("http")["Stepwell, embedded store"]) * (1 - shares["onnxruntime"])
    read = without_store(streams["1,000,000 streams"]) - without_store(streams["1,000 streams"])
    store_read = streams["1,000,000 streams"]["store_us"] - streams["1,000 streams"]["store_us"]
    measured = {
        "step_us_http": http,
        "step_us_websocket": without_store(feeds["JSON, 16 messages on their way"]),
        "step_us_columns": without_store(feeds["msgpack, 256 streams a frame"]),
        "read_us": read,
        "store_read_us": store_read,
    }

    assert {name: CONSTANTS[name].value for name in measured} == pytest.approx(measured, rel=0.05)


def test_every_cost_has_a_source() -> None:
    assert all(one.source for one in CONSTANTS.values())


@pytest.mark.parametrize(("n_bytes", "taken"), [(1, 16), (100, 112), (123, 128), (124, 160), (616, 640), (4200, 5120)])
def test_the_allocator_rounds_up(n_bytes: int, taken: int) -> None:
    assert allocated(n_bytes) == taken


def test_streams_take_the_memory_that_was_computed_or_less(redis_server: Server, tmp_path: Path) -> None:
    """Valkey takes some 60 bytes less for a key than Redis, whose cost is computed."""
    folder = write_model(tmp_path / "models", "fold", fold).parent
    n_streams = 8_000
    with (
        service_process(folder, tmp_path / "one", "--redis", redis_server.url) as service,
        redis_server.client() as client,
        httpx2.Client(base_url=service.url, timeout=60, trust_env=False) as http,
    ):
        before = client.info("memory")["used_memory"]
        for start in range(0, n_streams, 1000):
            names = [f"stream-{n:07}" for n in range(start, start + 1000)]
            http.post("/v1/models/fold/step", json={"streams": names, "inputs": [[1]] * 1000}).raise_for_status()
        taken = (client.info("memory")["used_memory"] - before) / n_streams
    load = Load(streams=n_streams, rate=1, state_bytes=8, output_bytes=8, run_us=1)

    computed = size(load, max_primary_bytes=GIB).stream_bytes
    assert computed / 1.5 < taken < computed


def test_the_command_prints_what_is_needed(tmp_path: Path) -> None:
    model = write_model(tmp_path, "fold", fold)
    words = ["--streams", "1000000", "--rate", "20000", "--model", str(model)]

    printed = invoke(app, words)
    document = json.loads(invoke(app, [*words, "--json"]).stdout)

    assert "1,000,000 with records of 120 bytes" in printed.stdout
    assert document["load"]["state_bytes"] == document["load"]["output_bytes"] == 8
    assert document["load"]["run_us"] > 0
    assert document["size"]["replicas"] == 2
    assert document["constants"].keys() == CONSTANTS.keys()


def test_the_examples_of_the_page_are_what_the_command_computes() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| (\w+) \| (\d+) \| ([^|]+) \| ([^|]+) \|", EXAMPLES, re.MULTILINE)
    model = REPOSITORY / "service/stepwell/addons/demo/models/activity.onnx"
    for streams, rate, transport, replicas, store, maxmemory in rows:
        words = ["--streams", streams.replace(",", ""), "--rate", rate.replace(",", ""), "--transport", transport]
        words += ["--model", str(model), "--run-us", "0.5", "--json"]
        needed = json.loads(invoke(app, words).stdout)["size"]
        number, unit = maxmemory.split()

        assert needed["replicas"] == int(replicas)
        assert store == ("one Redis" if needed["primaries"] == 1 else f"Cluster of {needed['primaries']}")
        assert needed["maxmemory_bytes"] == float(number) * {"MiB": 2**20, "GiB": GIB}[unit]
    assert len(rows) == 6


def test_a_missing_model_is_reported() -> None:
    result = invoke(app, ["--streams", "1", "--rate", "1", "--model", "missing.onnx"])

    assert isinstance(result.exception, FileError)
