"""A running service, as a terminal talks to it over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer

from model_export.errors import StepwellError
from service.ids import is_stream_id

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(envvar="STEPWELL_URL", help="Where the service is.")]
Key = Annotated[str | None, typer.Option(envvar="STEPWELL_KEY", help="API key; safer in the environment than here.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
Stream = Annotated[str, typer.Argument(metavar="STREAM", help="The stream's id.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_PAGE = 1000  # the most that the service gives
_TIMEOUT_S = 30.0


class StreamsError(StepwellError):
    """The service is not there, or refused."""

    code = "streams_failed"


class HttpApi:
    """A running service, as a terminal talks to it."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            self._http = httpx.Client(base_url=self._url, headers=headers, timeout=_TIMEOUT_S)
        except (httpx.InvalidURL, ValueError) as exc:
            raise typer.BadParameter(f"{url!r} is no address: {exc}.", param_hint="--url") from exc

    def __enter__(self) -> HttpApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> Any:
        """Return what is at a path; raises as `call` does."""
        return self.call("GET", path, params=query)

    def streams(self, model: str, prefix: str) -> Iterator[dict[str, Any]]:
        """Give every stream of a model once; pages are fetched as they are asked for."""
        cursor, seen = None, set[str]()  # a store that grows meanwhile may list a stream again
        while True:
            page = self.get(
                f"/v1/models/{quote(model, safe='')}/streams",
                limit=_PAGE,
                **({"prefix": prefix} if prefix else {}),
                **({} if cursor is None else {"cursor": cursor}),
            )
            for one in page["streams"]:
                if one["stream"] not in seen:
                    seen.add(one["stream"])
                    yield one
            cursor = page["cursor"]
            if cursor is None:
                return

    def call(self, method: str, path: str, **more: Any) -> Any:
        """Return the body of a good answer.

        Raises:
            StreamsError: There is no answer, or a refusal.
        """
        try:
            answer = self._http.request(method, path, **more)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise self._not_there(str(exc) or type(exc).__name__) from exc
        try:
            body = answer.json() if answer.content else None
        except ValueError as exc:
            raise self._not_there(f"{answer.status_code} {answer.reason_phrase} came from something else") from exc
        if answer.is_success:
            return body
        problem = body if isinstance(body, dict) else {}
        code = problem.get("code", answer.reason_phrase)
        raise StreamsError(
            f"{problem.get('detail') or 'The service refused without a reason.'} ({answer.status_code} {code})",
            fix=_FIXES.get(answer.status_code, ""),
        )

    def _not_there(self, found: str) -> StreamsError:
        return StreamsError(
            f"No Stepwell answers at {self._url}: {found}.",
            fix="Start it with `stepwell serve`, or name where it is with --url or STEPWELL_URL.",
        )


def confirm(question: str, *, yes: bool) -> None:
    """Ask on standard error, so that what is answered can be piped on; end with exit code 1 at a no."""
    if not yes:
        typer.confirm(question, abort=True, err=True)


def idempotency_header() -> dict[str, str]:
    """Return a header that makes the request one that is done once, also where preconditions are required."""
    return {"Idempotency-Key": str(uuid.uuid4())}


def path_of(model: str, stream: str, what: str = "") -> str:
    """Return the path of a stream, or of what belongs to it.

    Raises:
        typer.BadParameter: No stream can have this id.
    """
    if not is_stream_id(stream):
        raise typer.BadParameter(f"{stream!r} is no stream id: 1 to 128 of A-Z a-z 0-9 . _ : @ -.", param_hint="STREAM")
    return f"/v1/models/{quote(model, safe='')}/streams/{quote(stream, safe='')}" + (f"/{what}" if what else "")


_FIXES = {
    401: "Give a key with --key, or in the environment as STEPWELL_KEY.",
    403: "Use a key that has this scope.",
    404: "See what there is with `stepwell streams ls`.",
    409: "Look at it again with `stepwell streams show`, then decide.",
    503: "Try again in a moment.",
}
