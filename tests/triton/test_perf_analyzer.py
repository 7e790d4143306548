"""`perf_analyzer`, unmodified, compares every answer bit for bit with the expected one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest

from tests.addons.grpc_api.conftest import GrpcService
from tests.api.running import running_service
from tests.graphs import lstm, write_models
from tests.servers import Server
from tests.triton.offline import offline_predictions

FOUND = shutil.which("perf_analyzer", path=str(Path(sys.executable).parent)) or shutil.which("perf_analyzer")
STEPS = int(os.environ.get("STEPWELL_PERF_STEPS", "200"))  # timesteps per sequence; the whole: 1000
STREAMS = 16  # with more, it closes the sequences of further threads before they are answered


def write_data(file: Path, *, streams: int, steps: int, wrong: bool = False) -> None:
    """Write inputs and predictions of onnxruntime at batch size 1; `wrong` changes one value of each."""
    xs = np.random.default_rng(7).normal(size=(streams, steps, 4)).astype(np.float32)
    ys = np.array([offline_predictions(lstm, x) for x in xs])
    if wrong:
        ys[:, steps // 2, 0] += 1e-3
    data = {
        "data": [[{"x": x.tolist()} for x in stream] for stream in xs],
        "validation_data": [[{"y": y.tolist()} for y in stream] for stream in ys],
    }
    file.write_text(json.dumps(data))


def run_perf_analyzer(
    port: int, data: Path, *more: str, streams: int, steps: int, protocol: str = "http"
) -> subprocess.CompletedProcess[str]:
    """Run perf_analyzer, which sends each sequence once."""
    assert FOUND is not None
    command = [FOUND, "-m", "lstm", "-u", f"127.0.0.1:{port}", "-i", protocol, "--input-data", str(data)]
    command += ["--concurrency-range", str(streams), "--serial-sequences", "--request-count", str(streams * steps)]
    command += ["--sequence-length", str(steps), "--sequence-length-variation", "0", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


pytestmark = pytest.mark.skipif(FOUND is None, reason="perf_analyzer is not installed: STEPWELL_EXTRAS=perf")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["binary", "json"])
def test_every_answer_equals_onnxruntime_bit_for_bit(shared_redis: Server, tmp_path: Path, form: str) -> None:
    steps = STEPS if form == "binary" else STEPS // 4
    write_data(tmp_path / "data.json", streams=STREAMS, steps=steps)
    forms = [f"--{side}-tensor-format={form}" for side in ("input", "output")]
    with running_service(shared_redis.url, write_models(tmp_path / "models", lstm), lane=True, max_batch_size=1) as own:
        done = run_perf_analyzer(own.port, tmp_path / "data.json", *forms, streams=STREAMS, steps=steps)
        applied = own.http.get("/metrics").text

    assert "Throughput: " in done.stdout, done.stdout + done.stderr
    assert not done.stderr.strip()
    [steps_total] = re.findall(r'stepwell_steps_total{door="oip",model="lstm"} (\S+)', applied)
    assert float(steps_total) >= STREAMS * steps


@pytest.mark.timeout(600)
@pytest.mark.parametrize("calls", [[], ["--streaming"]], ids=["calls", "streaming"])
def test_every_answer_over_grpc_equals_onnxruntime_bit_for_bit(
    shared_redis: Server, tmp_path: Path, calls: list[str]
) -> None:
    pytest.importorskip("grpc_reflection", reason="gRPC is not installed: STEPWELL_EXTRAS=grpc")
    steps = STEPS if calls else STEPS // 4
    write_data(tmp_path / "data.json", streams=STREAMS, steps=steps)
    models = write_models(tmp_path / "models", lstm)
    flags = ("--redis", shared_redis.url, "--max-batch-size", "1", "--drain-s", "0")
    with GrpcService(models, tmp_path, *flags).running() as own:
        data = tmp_path / "data.json"
        done = run_perf_analyzer(own.grpc_port, data, *calls, streams=STREAMS, steps=steps, protocol="grpc")
        applied = httpx2.get(f"{own.url}/metrics", timeout=30).text

    assert "Throughput: " in done.stdout, done.stdout + done.stderr
    assert not done.stderr.strip()
    [steps_total] = re.findall(r'stepwell_steps_total{door="grpc",model="lstm"} (\S+)', applied)
    assert float(steps_total) >= STREAMS * steps


def test_a_wrong_value_is_detected(shared_redis: Server, tmp_path: Path) -> None:
    """Shows that the comparison works."""
    write_data(tmp_path / "data.json", streams=4, steps=20, wrong=True)
    with running_service(shared_redis.url, write_models(tmp_path / "models", lstm), lane=True, max_batch_size=1) as own:
        done = run_perf_analyzer(own.port, tmp_path / "data.json", streams=4, steps=20)

    assert "match expected output" in done.stdout + done.stderr
