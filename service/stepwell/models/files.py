"""Model files: which ones a models folder has, and whether they have changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepwell_export.runtime.manifest import NAME, sidecar_of

if TYPE_CHECKING:
    from stepwell.models.changes import ReloadReport
    from stepwell.models.served import ServedModel


def find(
    folders: Iterable[Path], loaded: Mapping[str, Mapping[int, ServedModel]], report: ReloadReport
) -> Iterator[tuple[str, int, Path]]:
    """Yield name, version and file of each `NAME.onnx` and `NAME/VERSION/model.onnx`.

    Args:
        folders: Models folders.
        loaded: The models loaded so far by name and version. Those of a file or folder that cannot be read are
            yielded as if their files were there.
        report: What is unusable or ignored is added to it.
    """
    for folder in folders:
        try:
            if not folder.is_dir():
                report.failed.append(
                    f"{folder}: there is no such folder ({folder.absolute()}); create it, or name another"
                )
                yield from _loaded_from(folder, loaded)
                continue
            entries = sorted(folder.iterdir())
        except OSError as exc:
            report.failed.append(unreadable(folder, exc))
            yield from _loaded_from(folder, loaded)
            continue
        for entry in entries:
            try:
                report.ignored.extend(ignored_in(entry))
                yield from list(models_in(entry, folder, report.failed))
            except OSError as exc:
                report.failed.append(unreadable(entry, exc))
                yield from _loaded_from(entry, loaded)


def _loaded_from(path: Path, loaded: Mapping[str, Mapping[int, ServedModel]]) -> Iterator[tuple[str, int, Path]]:
    for versions in loaded.values():
        for model in versions.values():
            if model.path.is_relative_to(path):
                yield model.name, model.version, model.path


def models_in(entry: Path, folder: Path, failed: list[str]) -> Iterable[tuple[str, int, Path]]:
    """Yield name, version and file of each model in an entry of a models folder; add unusable ones to `failed`."""
    if entry.name.startswith("."):
        return
    if entry.is_file() and entry.suffix == ".onnx":
        candidates = [(entry.stem, "1", entry)]
    elif entry.is_dir():
        candidates = [(entry.name, sub.name, sub / "model.onnx") for sub in sorted(entry.iterdir())]
    else:
        return
    for name, version, path in candidates:
        if not path.is_file():
            continue
        if not NAME.fullmatch(name) or not _VERSION.fullmatch(version) or int(version) >= 2**31:
            failed.append(
                f"{name}/{version}: expected a name like {NAME.pattern}, and a version from 1, without zeros before it"
            )
        elif not path.resolve().is_relative_to(folder.resolve()):
            failed.append(
                f"{name}/{version}: the file is outside its models folder; expected no link to another folder"
            )
        else:
            yield name, int(version), path


_VERSION = re.compile(r"[1-9][0-9]{0,9}")  # 01 beside 1 would be two files of one version
_TRAINED = {".keras", ".h5", ".hdf5", ".pt", ".pth", ".ckpt", ".safetensors"}


def ignored_in(entry: Path) -> Iterable[str]:
    """Yield what in an entry of a models folder looks like a model but is not served, with what to do."""
    if entry.name.startswith("."):
        return
    if entry.is_file():
        if entry.suffix in _TRAINED and not entry.with_suffix(".onnx").exists():
            source = Path(entry.parent.name, entry.name)  # as seen from the folder that has the models folder
            command = f"stepwell export {source} -o {source.with_suffix('.onnx')}"
            yield f"{entry.name}: a trained model has to be exported first: {command}"
        return
    if not entry.is_dir() or entry.with_suffix(".onnx").exists():
        return
    for file in sorted(entry.glob("*.onnx")):
        yield f"{entry.name}/{file.name}: expected {entry.name}/1/model.onnx (1 is the version), or {entry.name}.onnx"
    for version in sorted(entry.iterdir()):
        if not version.is_dir() or not version.name.isdecimal() or (version / "model.onnx").exists():
            continue
        for file in sorted(version.glob("*.onnx")):
            yield f"{entry.name}/{version.name}/{file.name}: expected {entry.name}/{version.name}/model.onnx"


def unreadable(path: Path, exc: OSError) -> str:
    """Return the message for a file or folder that cannot be read."""
    return f"{path.name}: cannot be read: {exc.strerror or exc}"


def file_signature(path: Path, weights: Sequence[Path]) -> tuple[int, ...]:
    """Return modification times, sizes and inodes of a model file, its sidecar and its weight files."""
    parts: list[int] = []
    for file in sorted({path, sidecar_of(path), *weights}):
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        parts += (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return tuple(parts)
