"""`stepwell save` and `stepwell load`: all streams of a model of a running service, to a file and back."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import typer
from rich.progress import DownloadColumn, TimeElapsedColumn, TransferSpeedColumn

from stepwell.addons.savepoints.file import (
    MEDIA_TYPE,
    SavepointFormatError,
    SavepointReader,
    encode_header,
    encode_page,
)
from stepwell.commands.service_calls import DEFAULT_URL, HttpApi, Key, ServiceUnavailableError, Url, model_path
from stepwell.commands.tables import Json, key_value_table, print_json, progress_bar, show
from stepwell_client.wire.backoff import Backoff
from stepwell_client.wire.texts import counted, listed
from stepwell_export.runtime.errors import StepwellError

_READ_BYTES = 1 << 20
_SENT_AT_ONCE = 2  # pages, so that the service and its store work at the same time
_ATTEMPTS = 6  # without any progress
_BACKOFF = Backoff(1.0, 5.0)

_T = TypeVar("_T")


class SavepointError(StepwellError):
    """A savepoint cannot be written or read, or some of its streams were not saved or loaded."""

    code = "savepoint_failed"


def save(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The savepoint to write.")],
    *,
    model: Annotated[str, typer.Option(help="The model whose streams are saved.")],
    prefix: Annotated[str, typer.Option(help="Only streams whose id begins with this text.")] = "",
    verify: Annotated[bool, typer.Option("--verify", help="Read the file again before it gets its name.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Save every live stream of a model to a file, while the streams are stepped.

    Each stream is saved as of one moment of its own. An interrupted save goes on where it was when it is run again.
    """
    if file.exists():
        raise SavepointError(f"{file} exists.", fix="Give another name, or delete that file first.")
    unfinished = file.with_name(f"{file.name}.partial")
    started = time.monotonic()
    try:
        with unfinished.open("ab+") as out, HttpApi(url, key) as service, _progress() as advance:
            written = _Written(out, model, prefix)
            _retry(lambda: written.read_rest(service, advance), lambda: written.n_bytes)
            os.fsync(out.fileno())
        if verify:
            _verify(unfinished)
        unfinished.rename(file)
    except OSError as exc:
        raise SavepointError(f"{exc.filename or file} cannot be written: {exc.strerror}.") from exc
    finally:
        if unfinished.exists() and not unfinished.stat().st_size:
            unfinished.unlink()
    report = {
        "file": str(file),
        "model": model,
        "streams": written.n_streams,
        "bytes": written.n_bytes,
        "unreadable": written.unreadable,
        "seconds": round(time.monotonic() - started, 3),
    }
    _print(report, as_json=as_json)
    if prefix and not written.n_streams:
        raise SavepointError(
            f"No stream of {model} begins with {prefix!r}; {file} has none.",
            fix="Check the prefix, and delete the file.",
        )
    if written.unreadable:
        raise SavepointError(
            f"{counted(len(written.unreadable), 'stream')} could not be saved to {file}, because the store's values "
            f"cannot be read: {listed(written.unreadable)}.",
            fix="Reset or delete those streams; all others are saved.",
        )


def load(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `stepwell save` wrote.")],
    *,
    model: Annotated[str | None, typer.Option(help="Load into this model; by default the one that was saved.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace live streams, which are left alone by default.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read the whole file before the first stream.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Load the streams of a savepoint into a running service. Loading a file twice changes nothing."""
    started, loaded, refused = time.monotonic(), 0, list[dict[str, str]]()
    if verify:
        _verify(file)
    with HttpApi(url, key) as service, _progress(_size(file)) as advance:
        for reply, n_bytes in _import_pages(service, file, model, overwrite=overwrite):
            loaded += reply["loaded"]
            refused += reply["refused"]
            advance(n_bytes)
    report = {
        "file": str(file), "loaded": loaded, "refused": refused, "seconds": round(time.monotonic() - started, 3)
    }  # fmt: skip
    _print(report, as_json=as_json)
    if refused:
        codes = Counter(one["code"] for one in refused)
        raise SavepointError(
            f"{counted(len(refused), 'stream')} refused ({', '.join(f'{code}: {n}' for code, n in codes.items())}): "
            f"{listed([one['stream'] for one in refused])}.",
            fix="`--overwrite` replaces live streams." if codes["stream_exists"] else "All others are loaded.",
        )


def _import_pages(
    service: HttpApi, file: Path, model: str | None, *, overwrite: bool
) -> Iterator[tuple[dict[str, Any], int]]:
    """Send the pages of a file, a few at a time, and yield the response to each with its bytes, in their order."""
    params = {"overwrite": "true"} if overwrite else {}
    sent: deque[tuple[Future[Any], int]] = deque()
    with ThreadPoolExecutor(_SENT_AT_ONCE) as senders:
        for header, streams, n_bytes in _pages(file):
            path = model_path(model or header["model"], "streams/import")
            body = encode_page(encode_header(header["model"], "", ""), streams, None, [])
            options = {"content": body, "headers": {"Content-Type": MEDIA_TYPE}, "params": params}
            sent.append((senders.submit(_retry, partial(service.call, "POST", path, **options)), n_bytes))
            while len(sent) > _SENT_AT_ONCE:
                reply, size = sent.popleft()
                yield reply.result(), size
        for reply, size in sent:
            yield reply.result(), size


class _Written:
    """The part of a savepoint that is in a file, and the rest of it that is fetched."""

    def __init__(self, out: BinaryIO, model: str, prefix: str) -> None:
        self.n_streams = 0
        self.n_bytes = 0
        self.unreadable: list[str] = []
        self._out = out
        self._path = model_path(model, "streams/export")
        self._prefix = prefix
        self._cursor: str | None = None
        self._is_complete = False
        self._resume(model)

    def _resume(self, model: str) -> None:
        """Keep the whole pages of an earlier, interrupted save."""
        reader = SavepointReader()
        self._out.seek(0)
        try:
            while data := self._out.read(_READ_BYTES):
                self._add_pages(reader, data, start=0)
        except SavepointFormatError:
            pass  # what follows the last whole page is fetched again
        if reader.header is not None and (reader.header["model"], reader.header.get("prefix")) != (model, self._prefix):
            raise SavepointError(
                f"{self._out.name} is an interrupted save of {reader.header['model']}, prefix "
                f"{reader.header.get('prefix')!r}.",
                fix="Delete it, or give another FILE.",
            )
        self._out.truncate(self.n_bytes)

    def read_rest(self, service: HttpApi, advance: Callable[[int], None]) -> None:
        """Fetch and write what is missing; after an error, call it again."""
        if self._is_complete:
            return
        query = {"prefix": self._prefix} if self._prefix else {}
        query |= {} if self._cursor is None else {"cursor": self._cursor}
        reader, start = SavepointReader(), self.n_bytes
        try:
            with service.stream("GET", self._path, params=query) as pieces:
                for data in pieces:
                    self._out.write(data)
                    self._add_pages(reader, data, start)
                    advance(len(data))
            reader.close()
        except SavepointFormatError as exc:
            raise ServiceUnavailableError(f"The response is not a whole savepoint: {exc}.") from exc
        finally:
            self._out.flush()
            self._out.truncate(self.n_bytes)

    def _add_pages(self, reader: SavepointReader, data: bytes, start: int) -> None:
        for page in reader.feed(data):
            self.n_streams += len(page.streams)
            self.unreadable += page.unreadable
            self.n_bytes = start + page.end
            self._cursor = page.cursor
            self._is_complete = page.cursor is None


def _pages(file: Path) -> Iterator[tuple[dict[str, Any], list[tuple[str, bytes]], int]]:
    """Yield the header, the streams and the bytes of each page of a file.

    Raises:
        SavepointError: It cannot be read, is no savepoint, is damaged, or ends too early.
    """
    reader, end = SavepointReader(), 0
    try:
        with file.open("rb") as data:
            while piece := data.read(_READ_BYTES):
                for page in reader.feed(piece):
                    yield dict(page.header), page.streams, page.end - end
                    end = page.end
        reader.close()
    except OSError as exc:
        raise SavepointError(
            f"{file} cannot be read: {exc.strerror}.", fix="Check the path; `stepwell save` writes such a file."
        ) from exc
    except SavepointFormatError as exc:
        raise SavepointError(
            f"{file} is not a whole savepoint: {exc}.",
            fix="Use a file that `stepwell save` has written. Of a file that was cut, the pages before can be loaded.",
        ) from exc


def _verify(file: Path) -> None:
    for _ in _pages(file):
        pass


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None  # reading it reports why


def _retry(send: Callable[[], _T], progress: Callable[[], int] = lambda: 0) -> _T:
    """Call until it succeeds; give up after some attempts without progress."""
    attempts, before = 0, progress()
    while True:
        try:
            return send()
        except ServiceUnavailableError:
            attempts = 1 if progress() > before else attempts + 1
            before = progress()
            if attempts >= _ATTEMPTS:
                raise
            time.sleep(_BACKOFF.after(attempts))  # noqa: TID251 - the pause before a retry


@contextmanager
def _progress(total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; yields a function that takes the bytes that were transferred."""
    with progress_bar(DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn()) as bars:
        task = bars.add_task("streams", total=total)
        yield lambda n_bytes: bars.advance(task, n_bytes)


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    texts = {
        name: f"{value:,}" if isinstance(value, int) else str(len(value)) if isinstance(value, list) else f"{value}"
        for name, value in report.items()
    }
    show(key_value_table("", texts))
