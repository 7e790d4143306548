"""`pack` and `unpack`: the files of one model as bytes with a checksum, and back."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import sidecar_of

MODEL_FILE: Final = "model.onnx"
_ABOUT: Final = "artifact.json"
_MAGIC: Final = b"SWA1"
_DIGEST_BYTES: Final = 32


class ArtifactError(StepwellError):
    """An artifact is not what was stored: it is cut, changed, or of another model."""

    code = "bad_artifact"


@dataclass(frozen=True, slots=True)
class UnpackedArtifact:
    """The files of an artifact.

    Attributes:
        path: The model file; sidecar and weights are beside it.
        version: The version under which the model was served when it was stored.
    """

    path: Path
    version: int


def files_of(path: Path, weights: Iterable[Path]) -> dict[str, Path]:
    """Return the files of a model, its sidecar and its weights, by their names in an artifact."""
    files = {MODEL_FILE: path, sidecar_of(Path(MODEL_FILE)).name: sidecar_of(path)}
    files.update({file.relative_to(path.parent).as_posix(): file for file in weights})
    return {name: file for name, file in files.items() if file.is_file()}


def pack(files: Mapping[str, Path], version: int) -> bytes:
    """Return files as an artifact.

    Raises:
        OSError: A file cannot be read.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, _ABOUT, json.dumps({"version": version}).encode())
        for name, file in sorted(files.items()):
            _add(tar, name, file.read_bytes())
    return seal(content.getvalue())


def unpack(artifact: bytes, folder: Path) -> UnpackedArtifact:
    """Write the files of an artifact into an empty folder.

    Raises:
        ArtifactError: Its checksum differs, or it is not an artifact. Nothing is written then.
        OSError: The files cannot be written.
    """
    packed = unseal(artifact)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        member = tar.extractfile(_ABOUT)
        about = json.loads(member.read()) if member is not None else {}
        tar.extractall(folder, filter="data")
    (folder / _ABOUT).unlink()
    return UnpackedArtifact(folder / MODEL_FILE, int(about["version"]))


def seal(content: bytes) -> bytes:
    """Return content with its checksum, as artifacts are stored."""
    return _MAGIC + _digest(content) + content


def unseal(artifact: bytes) -> memoryview:
    """Return the content of an artifact.

    Raises:
        ArtifactError: It was cut or changed, or is not an artifact.
    """
    start = len(_MAGIC) + _DIGEST_BYTES
    packed = memoryview(artifact)[start:]
    if artifact[: len(_MAGIC)] != _MAGIC:
        raise ArtifactError(
            f"It begins with {artifact[:4]!r}; expected {_MAGIC!r}.",
            fix="Delete it, and let a replica that has the model's file store it again.",
        )
    if _digest(packed) != artifact[len(_MAGIC) : start]:
        raise ArtifactError(
            f"The checksum of its {len(packed)} bytes is not the stored one: it was cut or changed.",
            fix="Delete it, and let a replica that has the model's file store it again.",
        )
    return packed


def copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copy files into an empty folder, under their names in an artifact.

    Raises:
        OSError: A file cannot be read or written.
    """
    for name, source in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())  # not a hard link: the file may be overwritten in place


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _digest(packed: bytes | memoryview) -> bytes:
    return hashlib.blake2b(packed, digest_size=_DIGEST_BYTES).digest()
