"""`push` and `pull`: a step graph as a repository of the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stepwell.addons.hub.model_card import model_card
from stepwell_export.runtime.describe import describe, load
from stepwell_export.runtime.errors import FileError, MissingExtraError, StepwellError
from stepwell_export.runtime.files import write_atomically
from stepwell_export.runtime.manifest import sidecar_of
from stepwell_export.runtime.operator_scan import contents_of, weight_files

MODEL_FILE: Final = "model.onnx"


class HubError(StepwellError):
    """The Hub does not respond, rejects a request, or has no such repository or file."""

    code = "hub_failed"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was uploaded.

    Attributes:
        repository: The repository's id.
        url: Its page.
        revision: The commit.
        files: The files' names in it.
    """

    repository: str
    url: str
    revision: str
    files: list[str]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What was downloaded.

    Attributes:
        path: The model file.
        repository: The repository's id.
        revision: The commit that it is of.
        described: The model, as `stepwell_export.runtime.describe` returns it.
    """

    path: Path
    repository: str
    revision: str
    described: dict[str, Any]


def push(
    file: Path, repository: str, *, private: bool = False, message: str | None = None, token: str | None = None
) -> Pushed:
    """Upload a step graph with its model card, in one commit; the repository is created if it is missing.

    Args:
        file: The model file.
        repository: `OWNER/NAME`.
        private: Whether a repository that is created is private.
        message: The commit's message.
        token: The access token; None: the one of `hf auth login`, or HF_TOKEN.

    Raises:
        FileError: The model file is missing, or has its weights or its manifest in other files.
        HubError: The Hub rejects it.
        StepwellError: The file is no step graph.
    """
    described = describe(file, load(file))
    if weight_files(file, contents_of(file)) or sidecar_of(file).is_file():
        raise FileError(
            f"{file} has its weights or its manifest in files beside it; expected one file.",
            fix="Export it again: `stepwell export` writes one file.",
        )
    hub = _hub()
    with _hub_errors(hub, repository):
        api = hub.HfApi(token=token)
        url = api.create_repo(repository, private=private, exist_ok=True)
        card = model_card(described, repository, MODEL_FILE).encode()
        operations = [
            hub.CommitOperationAdd(MODEL_FILE, str(file)),
            hub.CommitOperationAdd("README.md", card),
        ]
        commit = api.create_commit(
            repository, operations, commit_message=message or f"{described['name']}, {described['fingerprint']}"
        )
    return Pushed(repository, str(url), commit.oid, [MODEL_FILE, "README.md"])


def pull(
    repository: str,
    target: Path | None = None,
    *,
    revision: str | None = None,
    file: str = MODEL_FILE,
    token: str | None = None,
    overwrite: bool = False,
) -> Pulled:
    """Download a step graph; it is checked before it is written where a service may load it.

    Args:
        repository: `OWNER/NAME`.
        target: The file to write; None: `models/NAME.onnx`.
        revision: A branch, tag or commit; None: the newest of the main branch.
        file: The model file's name in the repository.
        token: As for `push`.
        overwrite: Replace another file.

    Raises:
        FileError: Another file is there, or it cannot be written.
        HubError: There is no such repository, revision or file.
        StepwellError: The file is no step graph.
    """
    hub = _hub()
    target = target or Path("models") / f"{repository.rpartition('/')[2]}.onnx"
    with tempfile.TemporaryDirectory(prefix="stepwell-pull-") as folder:
        with _hub_errors(hub, repository):
            commit = hub.HfApi(token=token).model_info(repository, revision=revision).sha
            downloaded = hub.hf_hub_download(repository, file, revision=commit, token=token, local_dir=folder)
        content = Path(downloaded).read_bytes()
        described = describe(Path(downloaded), load(Path(downloaded)))
    if target.is_file() and target.read_bytes() != content and not overwrite:
        raise FileError(
            f"{target} is there, and is another file.",
            fix="Add the model as the next version, -o models/NAME/2/model.onnx, or replace it by --overwrite.",
        )
    write_atomically(target, content)
    return Pulled(target, repository, commit, {**described, "file": str(target)})


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as exc:
        raise MissingExtraError(
            "huggingface_hub is not installed.",
            fix="Install it: pip install 'stepwell[hub]' (with the launcher: STEPWELL_EXTRAS=hub ./stepwell ..).",
        ) from exc
    return huggingface_hub


@contextmanager
def _hub_errors(hub: Any, repository: str) -> Iterator[None]:
    """Report the errors of the Hub's client as `HubError`."""
    import httpx2

    try:
        yield
    except hub.errors.HFValidationError as exc:
        raise HubError(f"{repository!r} is no repository; expected OWNER/NAME.", fix="Correct it.") from exc
    except hub.errors.EntryNotFoundError as exc:
        raise HubError(
            f"{repository} has no such file: {_first_line(exc)}", fix="Name another one of its files with --file."
        ) from exc
    except hub.errors.RepositoryNotFoundError as exc:
        raise HubError(
            f"{repository} is not there, or not for you: {_first_line(exc)}", fix="Check its name, and HF_TOKEN."
        ) from exc
    except (hub.errors.HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as exc:  # the last: no JSON
        raise HubError(
            f"The Hub failed: {_first_line(exc)}", fix="Check the network, HF_ENDPOINT and HF_TOKEN, and try again."
        ) from exc


def _first_line(exc: BaseException) -> str:
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)
