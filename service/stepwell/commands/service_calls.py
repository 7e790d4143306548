"""HTTP access to a running service, for commands."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any
from urllib.parse import quote

import httpx2
import typer

from stepwell_client.wire.ids import API_KEY, is_stream_id
from stepwell_export.runtime.errors import StepwellError

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(envvar="STEPWELL_URL", help="The service's address.")]
OptionalUrl = Annotated[
    str | None, typer.Option(envvar="STEPWELL_URL", help=f"The service's address. Default: {DEFAULT_URL}.")
]
Key = Annotated[
    str | None, typer.Option(envvar="STEPWELL_KEY", help="API key; safer in the environment than on the command line.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
Stream = Annotated[str, typer.Argument(metavar="STREAM", help="The stream's id.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]

_PAGE = 1000  # the service's maximum page size
_TIMEOUT_S = 30.0
_ASKED_ALONE = 500  # streams; the list of all takes less time for more of them
_UNAVAILABLE = {429, 502, 503, 504}


class StreamsError(StepwellError):
    """The service does not respond, or rejected a request."""

    code = "streams_failed"


class ServiceUnavailableError(StreamsError):
    """No service responds, or not now; the same request may succeed later."""


class StreamNotReadableError(StreamsError):
    """There is no such stream, or its record is damaged."""


class HttpApi:
    """An HTTP client of a running service."""

    def __init__(self, url: str, key: str | None, fixes: Mapping[int | str, str] | None = None) -> None:
        """Create a client.

        Args:
            url: The service's address.
            key: The API key; None: none.
            fixes: What to do about an error, by its code or HTTP status; those that are not given are those of streams.
        """
        self._fixes = {**_FIXES, **(fixes or {})}
        self._url = url.rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise typer.BadParameter(
                f"{url!r} is not the address of a service: expected {DEFAULT_URL}, for example.", param_hint="--url"
            )
        if key is not None and not API_KEY.fullmatch(key):
            raise typer.BadParameter(
                "it is empty, or has a line end or characters other than ASCII.", param_hint="--key"
            )
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            self._http = httpx2.Client(base_url=self._url, headers=headers, timeout=_TIMEOUT_S)
        except (httpx2.InvalidURL, ValueError) as exc:
            raise typer.BadParameter(f"{url!r} is not a URL: {exc}.", param_hint="--url") from exc

    def __enter__(self) -> HttpApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> Any:
        """Return the body of a GET; raises as `call` does."""
        return self.call("GET", path, params=query)

    def statuses(self, model: str, streams: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return `step` and `sources` of those of some streams that exist, by id.

        Raises:
            StreamsError: As `call` does; a stream without a record that can be read is left out.
        """
        if len(streams) > _ASKED_ALONE:
            listed = self.streams(model, "", sources="true")
            return {each["stream"]: each for each in listed if each["stream"] in streams and each["step"] is not None}
        found = {}
        for stream in streams:
            try:
                found[stream] = self.get(path_of(model, stream))
            except StreamNotReadableError:
                continue
        return found

    def streams(self, model: str, prefix: str, **query: str) -> Iterator[dict[str, Any]]:
        """Yield every stream of a model once; pages are fetched on demand."""
        cursor, seen = None, set[str]()  # a store that grows meanwhile may list a stream twice
        while True:
            page = self.get(
                model_path(model, "streams"),
                limit=_PAGE,
                **query,
                **({"prefix": prefix} if prefix else {}),
                **({} if cursor is None else {"cursor": cursor}),
            )
            for stream in page["streams"]:
                if stream["stream"] not in seen:
                    seen.add(stream["stream"])
                    yield stream
            cursor = page["cursor"]
            if cursor is None:
                return

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Return the body of a successful response.

        Raises:
            StreamsError: No response arrived, or the request was rejected.
            typer.BadParameter: JSON cannot represent a number of the body.
        """
        try:
            response = self._http.request(method, path, **options)
        except (httpx2.ReadError, httpx2.ReadTimeout, httpx2.RemoteProtocolError) as exc:
            if method == "GET":
                raise self._unreachable(str(exc) or type(exc).__name__) from exc
            raise ServiceUnavailableError(
                f"The request was sent to {self._url}, and no response arrived: "
                f"{(str(exc) or type(exc).__name__).rstrip('.')}. It may have been applied.",
                fix="Look at the result before you run the command again, for example with `stepwell release show` "
                "or `stepwell streams show`.",
            ) from exc
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise self._unreachable(str(exc) or type(exc).__name__) from exc
        except ValueError as exc:  # JSON has neither NaN nor infinity
            raise typer.BadParameter(f"a number of the request is not finite: {exc}.") from exc
        return self._body(response)

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[Iterator[bytes]]:
        """Send a request, and yield an iterator over the body of its successful response; raises as `call` does."""
        try:
            with self._http.stream(method, path, **options) as response:
                if not response.is_success:
                    response.read()
                    self._body(response)
                yield response.iter_bytes()
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise self._unreachable(str(exc) or type(exc).__name__) from exc

    def _body(self, response: httpx2.Response) -> Any:
        try:
            body = response.json() if response.content else None
        except ValueError as exc:
            raise self._unreachable(
                f"{response.status_code} {response.reason_phrase} came from another server"
            ) from exc
        if response.is_success:
            return body
        problem = body if isinstance(body, dict) else {}
        code = problem.get("code", response.reason_phrase)
        error = ServiceUnavailableError if response.status_code in _UNAVAILABLE else StreamsError
        error = StreamNotReadableError if code in {"stream_not_found", "state_corrupt"} else error
        raise error(
            f"{problem.get('detail') or 'The service gave no reason.'} ({response.status_code} {code})",
            fix=self._fixes.get(code, self._fixes.get(response.status_code, "")),
        )

    def _unreachable(self, reason: str) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"No Stepwell service responds at {self._url}: {reason.rstrip('.')}.",
            fix="Start it with `stepwell serve`, or give its address with --url or STEPWELL_URL.",
        )


def confirm(question: str, *, yes: bool) -> None:
    """Ask on standard error, so that standard output can be piped; exit with code 1 if the answer is no."""
    if not yes:
        typer.confirm(question, abort=True, err=True)


def idempotency_header() -> dict[str, str]:
    """Return a header with a new idempotency key, which a service that requires preconditions also accepts."""
    return {"Idempotency-Key": str(uuid.uuid4())}


def model_path(model: str, resource: str = "") -> str:
    """Return the path of a model, or of one of its resources."""
    return f"/v1/models/{quote(model, safe='')}" + (f"/{resource}" if resource else "")


def path_of(model: str, stream: str, resource: str = "") -> str:
    """Return the path of a stream, or of one of its resources.

    Raises:
        typer.BadParameter: The id is not a valid stream id.
    """
    if not is_stream_id(stream):
        raise typer.BadParameter(
            f"{stream!r} is not a stream id: expected 1 to 128 of A-Z a-z 0-9 . _ : @ -.", param_hint="STREAM"
        )
    return model_path(model, f"streams/{quote(stream, safe='')}" + (f"/{resource}" if resource else ""))


_FIXES: dict[int | str, str] = {
    "model_not_found": "",  # its detail has the names and what to do
    "snapshot_not_found": "List the stream's snapshots with `stepwell streams snapshot ls`.",
    401: "Give a key with --key, or in the environment as STEPWELL_KEY.",
    403: "",  # its detail has the scopes and what to do
    404: "List the streams with `stepwell streams ls`.",
    409: "Check the stream with `stepwell streams show`, then decide.",
    503: "Try again in a moment.",
}
