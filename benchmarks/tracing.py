"""What traces cost: the service without them, with none of its requests sampled, and with 1 % of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.load import Load
from benchmarks.servers import STEP, Target, stepwell
from benchmarks.workload import Workload

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
_WITH_PARENT = STEP.replace("Content-Type", f"traceparent: {_PARENT}{{flag}}\r\nContent-Type", 1)


def tracing_targets(workload: Workload, receiver: str) -> list[Target]:
    """Return the targets; ratios refer to the first.

    Args:
        workload: The model and its inputs.
        receiver: URL of the OTLP receiver.
    """
    on = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver}
    of_all = {"OTEL_TRACES_SAMPLER": "traceidratio"}
    plain, unsampled = Load(STEP, '"y":['), Load(_WITH_PARENT.replace("{flag}", "0"), '"y":[')
    return [
        Target("without traces", stepwell(workload), plain),
        Target("none sampled", stepwell(workload, env=on), plain),
        Target("1 % sampled", stepwell(workload, env={**on, **of_all, "OTEL_TRACES_SAMPLER_ARG": "0.01"}), plain),
        Target("without traces, with traceparent", stepwell(workload), unsampled),
        Target("none sampled, with traceparent", stepwell(workload, env=on), unsampled),
    ]


@contextlib.contextmanager
def receiver() -> Iterator[str]:
    """Receive spans, and drop them, on a free port until the block ends; the result is its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join()
