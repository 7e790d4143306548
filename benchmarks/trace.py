"""The way of one timestep: modules and functions of ours between a warm stream's request and its response.

    python -m benchmarks.trace [DIR]

A service with a profile function in all of its threads steps one stream by single requests, as JSON over HTTP. What is
called from the first byte of a request to the next one is counted; the smallest count is that of a request without
other work beside it. DIR is another checkout, whose service runs instead.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from benchmarks.servers import free_port, terminated
from stepwell.addons.demo.recordings import MODELS

REQUESTS = 300
_TIMEOUT_S = 120.0
_SERVE = """
import atexit, json, os, sys, threading
from stepwell import main
calls, counts = set(), []
def trace(frame, event, arg):
    if event == "call" and "/stepwell" in (name := frame.f_code.co_filename):
        if frame.f_code.co_name == "data_received" and "fast_http" in name:
            counts.append(sorted(calls))
            del counts[:-200]
            calls.clear()
        calls.add((name, frame.f_code.co_qualname))
def save():
    sys.setprofile(None)
    with open(os.environ["TRACE_FILE"], "w") as out:
        json.dump(counts, out)
atexit.register(save)
threading.setprofile(trace)
sys.setprofile(trace)
main()
"""


def count(tree: Path) -> list[tuple[str, str]]:
    """Return the file and name of each function of ours that one request calls in the service of a checkout."""
    with tempfile.TemporaryDirectory(prefix="trace-") as name:
        folder, port = Path(name), free_port()
        model = folder / "models" / "bench" / "1" / "model.onnx"
        model.parent.mkdir(parents=True)
        model.write_bytes((MODELS / "activity.onnx").read_bytes())
        command = [sys.executable, "-P", "-c", _SERVE, "serve", "--models", str(folder / "models")]
        command += ["--port", str(port), "--data-dir", str(folder / "data")]
        code = ":".join(str(tree / part) for part in ("service", "model_export", "clients/python"))
        env = {k: v for k, v in os.environ.items() if not k.startswith("STEPWELL_")}
        env |= {"PYTHONPATH": code, "TRACE_FILE": str(folder / "calls.json")}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=folder, start_new_session=True)
        with terminated(process):
            _step(port, process)
            process.terminate()
            process.wait(_TIMEOUT_S)
        found = json.loads((folder / "calls.json").read_text())
    smallest = min((calls for calls in found if any("/engine/stepping/" in file for file, _ in calls)), key=len)
    return [(os.path.relpath(file, tree), name) for file, name in smallest]


def _step(port: int, process: subprocess.Popen[bytes]) -> None:
    """Step one stream by successive requests, once the service is ready."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not _is_ready(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the service did not start")
        time.sleep(0.1)  # noqa: TID251 - another process gives no event
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    connection.request("GET", "/v1/models/bench")
    shape = json.loads(connection.getresponse().read())["inputs"][0]["shape"]
    zeros: object = 0.0
    for size in reversed(shape):
        zeros = [zeros] * size
    sock = connection.sock
    for seq in range(1, REQUESTS + 1):
        body = json.dumps({"inputs": zeros, "seq": seq})
        head = f"POST /v1/models/bench/streams/s/step HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        sock.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())  # in one piece
        answer = sock.recv(1 << 16)
        if b" 200 " not in answer[:20]:
            raise RuntimeError(f"the request was refused: {answer.decode()}")


def _is_ready(port: int) -> bool:
    with suppress(OSError):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    return False


def main() -> None:
    """Print the counts, and the functions by module."""
    tree = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    calls = count(tree)
    modules = Counter(file for file, _ in calls)
    for file, functions in sorted(modules.items()):
        print(f"{functions:4} {file}")
    print(f"{len(modules)} modules, {len(calls)} functions")


if __name__ == "__main__":
    main()
