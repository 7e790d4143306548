"""`stepwell streams`: look at and tend the live streams of a running service, over HTTP."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer
from rich.table import Table

from model_export.errors import StepwellError
from service.commands.tables import facts_table, parity_table, show
from service.wire.names import is_stream_id

_PAGE = 1000  # the most that the service gives
_TIMEOUT_S = 30.0

Url = Annotated[str, typer.Option(envvar="STEPWELL_URL", help="Where the service is.")]
Key = Annotated[str | None, typer.Option(envvar="STEPWELL_KEY", help="API key; safer in the environment than here.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
Stream = Annotated[str, typer.Argument(metavar="STREAM", help="The stream's id.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_HERE = "http://127.0.0.1:8000"

streams_app = typer.Typer(no_args_is_help=True)


class StreamsError(StepwellError):
    """The service is not there, or refused."""

    code = "streams_failed"


@streams_app.command()
def ls(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Of this model; of all by default.")] = None,
    *,
    prefix: Annotated[str, typer.Option(help="Only those whose id begins with this.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many; all by default.")] = None,
    url: Url = _HERE,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List live streams and their steps."""
    with _Service(url, key) as service:
        models = [model] if model is not None else [one["name"] for one in service.get("/v1/models")["models"]]
        found = islice(((name, row) for name in models for row in service.streams(name, prefix)), limit)
        if as_json:
            typer.echo(json.dumps({"streams": [{"model": name, **row} for name, row in found]}, indent=2))
            return
        lines = [(name, row["stream"], f"{row['step']:,}") for name, row in found]
    show(parity_table("", ("model", "stream", "step"), lines), f"{len(lines):,} streams")


@streams_app.command(name="show")
def show_stream(model: Model, stream: Stream, *, url: Url = _HERE, key: Key = None, as_json: Json = False) -> None:
    """Show where a stream stands."""
    with _Service(url, key) as service:
        found = service.get(_path(model, stream))
    typer.echo(json.dumps(found, indent=2)) if as_json else show(_status(found))


@streams_app.command()
def reset(
    model: Model,
    stream: Stream,
    *,
    after: Annotated[
        str | None, typer.Option(metavar="STATE_ID", help="Only from here; by default from where it stands now.")
    ] = None,
    yes: Yes = False,
    url: Url = _HERE,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Bring a stream back to its initial state, unless it is stepped meanwhile."""
    with _Service(url, key) as service:
        now = service.get(_path(model, stream))
        _ask(f"{stream} of {model} is at step {now['step']:,}. Bring it back to its initial state?", yes=yes)
        body = {"after": after or now["state_id"]}
        found = service.call("POST", _path(model, stream) + "/reset", json=body, headers=_once())
    typer.echo(json.dumps(found, indent=2) if as_json else f"{stream} is at step {found['step']}")


@streams_app.command()
def rm(
    model: Model,
    streams: Annotated[list[str], typer.Argument(metavar="STREAM...", help="The streams' ids.")],
    *,
    yes: Yes = False,
    url: Url = _HERE,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Forget streams; those that were not there are no error."""
    paths = [_path(model, stream) for stream in streams]  # all are checked before the first is gone
    _ask(f"Forget {', '.join(streams)} of {model}? Their states cannot be had back.", yes=yes)
    with _Service(url, key) as service:
        for path in paths:
            service.call("DELETE", path, headers=_once())
    typer.echo(json.dumps({"forgotten": streams}, indent=2) if as_json else f"{', '.join(streams)} forgotten")


class _Service:
    """A running service, as a terminal talks to it."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            self._http = httpx.Client(base_url=self._url, headers=headers, timeout=_TIMEOUT_S)
        except (httpx.InvalidURL, ValueError) as exc:
            raise typer.BadParameter(f"{url!r} is no address: {exc}.", param_hint="--url") from exc

    def __enter__(self) -> _Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> Any:
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


def _ask(question: str, *, yes: bool) -> None:
    """Ask on standard error, so that what is answered can be piped on; end with exit code 1 at a no."""
    if not yes:
        typer.confirm(question, abort=True, err=True)


def _once() -> dict[str, str]:
    """Return a header that makes the request one that is done once, also where preconditions are required."""
    return {"Idempotency-Key": str(uuid.uuid4())}


_FIXES = {
    401: "Give a key with --key, or in the environment as STEPWELL_KEY.",
    403: "Use a key that has this scope.",
    404: "See what there is with `stepwell streams ls`.",
    409: "Look at it again with `stepwell streams show`, then decide.",
    503: "Try again in a moment.",
}


def _path(model: str, stream: str) -> str:
    if not is_stream_id(stream):
        raise typer.BadParameter(f"{stream!r} is no stream id: 1 to 128 of A-Z a-z 0-9 . _ : @ -.", param_hint="STREAM")
    return f"/v1/models/{quote(model, safe='')}/streams/{quote(stream, safe='')}"


def _status(found: dict[str, Any]) -> Table:
    """Return one line a fact."""
    facts = {name.replace("_", " "): str(value) for name, value in found.items() if name != "expires_in_s"}
    facts["step"] = f"{found['step']:,}"
    facts["expires in"] = f"{found['expires_in_s']:,.0f} s, unless it is stepped"
    return facts_table("", facts)
