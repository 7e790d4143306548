"""A page on which one stream of a voice detector runs in the browser or on the server.

    python examples/voice_page/serve.py --models models --service http://127.0.0.1:8000

With `--page examples/denoise_page` it is the page of a denoiser, which needs no files of models and no onnxruntime-web.

The service has the model `voice`, of `stepwell export recipe:silero=silero_vad.onnx -o models/voice.onnx --pcm16`;
onnxruntime-web is where `npm install onnxruntime-web@1` has put it. The service lets no page of another address read
its responses, so this server has the page, the files, and what the service answers under `/v1/`.
"""

from __future__ import annotations

import argparse
import shutil
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
PASSED = ("accept", "authorization", "content-type", "idempotency-key")
"""Headers of requests that are passed on to the service."""


class Server(ThreadingHTTPServer):
    """Serves the page, and passes on what is for the service."""

    def __init__(self, port: int, service: str, models: Path, runtime: Path, page: Path = HERE) -> None:
        self.service = urlsplit(service)
        client = HERE.parents[1] / "clients/typescript/src"
        self.folders = {"models": models, "ort": runtime, "client": client, "": page}
        super().__init__(("127.0.0.1", port), Handler)


class Handler(SimpleHTTPRequestHandler):
    """Answers a request with a file, or with what the service answers."""

    server: Server

    def translate_path(self, path: str) -> str:
        first, _, rest = urlsplit(path).path.lstrip("/").partition("/")
        folder = self.server.folders.get(first if rest else "")
        self.directory = str(folder or self.server.folders[""])
        return super().translate_path(rest if rest and folder else first)

    def do_GET(self) -> None:
        self.pass_on() if self.path.startswith("/v1/") else super().do_GET()

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: self.headers[name] for name in PASSED if name in self.headers}
        service = HTTPConnection(self.server.service.hostname or "", self.server.service.port, timeout=60)
        service.request(self.command, self.path, body, headers)
        answer = service.getresponse()
        self.send_response(answer.status)
        self.send_header("content-type", answer.headers.get("content-type", "application/json"))
        self.end_headers()
        shutil.copyfileobj(answer, self.wfile)
        service.close()

    do_POST = do_PUT = do_DELETE = pass_on  # noqa: N815  # names of the base class

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the base class
        """Log nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", default="http://127.0.0.1:8000")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--runtime", type=Path, default=Path("node_modules/onnxruntime-web/dist"))
    parser.add_argument("--page", type=Path, default=HERE)
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    with Server(options.port, options.service, options.models, options.runtime, options.page) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
