"""A schema registry with the documented API of Confluent's, on loopback; it keeps its schemas in memory."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit


class Registry:
    """The server.

    Attributes:
        schemas: By id, each schema as it is answered.
        serialized: By id, the descriptor that `?format=serialized` answers, in base64.
        subjects: By subject, the ids of its versions.
        user: Who has to log in, with the password; None: everybody is let in.
        is_open_at_first: Whether everybody may see the types of schemas.
        is_away: Whether it answers 503 to everything.
        asked: The paths that were asked for.
    """

    def __init__(self) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.serialized: dict[int, str] = {}
        self.subjects: dict[str, list[int]] = {}
        self.user: tuple[str, str] | None = None
        self.is_open_at_first = False
        self.is_away = False
        self.asked: list[str] = []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: Any) -> None:
                status, document = registry.answer(self.path, self.headers.get("Authorization", ""), body)
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Registry:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, schema: object, kind: str = "AVRO", serialized: bytes | None = None, **more: Any) -> int:
        """Add a schema, and return its id."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        number = len(self.schemas) + 1
        self.schemas[number] = {"schema": text, **({} if kind == "AVRO" else {"schemaType": kind}), **more}
        if serialized is not None:
            self.serialized[number] = base64.b64encode(serialized).decode()
        return number

    def answer(self, path: str, authorization: str, body: Any) -> tuple[int, Any]:
        self.asked.append(path)
        if self.is_away:
            return 503, {"error_code": 50301, "message": "the registry starts"}
        if self.user is not None and not (self.is_open_at_first and path == "/schemas/types"):
            expected = "Basic " + base64.b64encode(":".join(self.user).encode()).decode()
            if authorization != expected:
                return 401, {"error_code": 401, "message": "Unauthorized"}
        parts = urlsplit(path)
        if parts.path == "/schemas/types":
            return 200, ["AVRO", "JSON", "PROTOBUF"]
        if found := re.fullmatch(r"/schemas/ids/(\d+)", parts.path):
            return self._schema(int(found[1]), parts.query)
        if (found := re.fullmatch(r"/subjects/([^/]+)/versions/(\d+)", parts.path)) and body is None:
            return self._schema(self.subjects[unquote(found[1])][int(found[2]) - 1], parts.query)
        if (found := re.fullmatch(r"/subjects/([^/]+)/versions", parts.path)) and body is not None:
            number = self.add(body["schema"], body.get("schemaType", "AVRO"))
            self.subjects.setdefault(unquote(found[1]), []).append(number)
            return 200, {"id": number}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _schema(self, number: int, query: str) -> tuple[int, Any]:
        if number not in self.schemas:
            return 404, {"error_code": 40403, "message": "Schema not found"}
        found = dict(self.schemas[number])
        if "format=serialized" in query and number in self.serialized:
            found["schema"] = self.serialized[number]
        return 200, found
