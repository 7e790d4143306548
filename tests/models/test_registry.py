"""The models of a folder: what a look at the files changes, also where they cannot be read."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepwell.models.registry import ModelRegistry
from stepwell_export.runtime.step_model import StepModel
from tests.graphs import fold, total, write_model, write_models


@contextmanager
def no_more_files() -> Iterator[None]:
    """A process that cannot open another file, as where connections have taken all descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_folder_that_cannot_be_listed_keeps_its_models_and_is_reported(tmp_path: Path) -> None:
    folder = write_models(tmp_path / "models", flat=fold)
    write_model(folder, "deep", total, version=2)
    shelf = ModelRegistry([folder])
    await shelf.reload()

    with no_more_files():
        report = await shelf.reload()

    assert report.failed == ["models: cannot be read: Too many open files"]
    assert (shelf.names(), shelf.versions("deep")) == (["deep", "flat"], [2])
    assert (await shelf.reload()).failed == []


async def test_a_file_that_cannot_be_read_is_reported_and_the_others_are_loaded(tmp_path: Path) -> None:
    def load(path: Path) -> StepModel:
        if path.stem == "b":
            raise OSError(5, "Input/output error")
        return StepModel(path)

    shelf = ModelRegistry([write_models(tmp_path / "models", a=fold, b=fold, c=fold)], load)
    report = await shelf.reload()

    assert report.loaded == ["a/1", "c/1"]
    assert report.failed == ["b.onnx: cannot be read: Input/output error"]


async def test_a_file_that_cannot_be_read_now_goes_on_being_served_as_it_was(tmp_path: Path) -> None:
    broken = False

    def load(path: Path) -> StepModel:
        if broken:
            raise OSError(5, "Input/output error")
        return StepModel(path)

    folder = write_models(tmp_path / "models", m=fold)
    shelf = ModelRegistry([folder], load)
    await shelf.reload()
    before, broken = shelf.get("m"), True
    write_models(folder, m=total)

    report = await shelf.reload()

    assert report.failed == ["m.onnx: cannot be read: Input/output error"]
    assert shelf.get("m") is before


async def test_a_file_beside_a_model_that_is_not_its_own_changes_nothing(tmp_path: Path) -> None:
    folder = write_models(tmp_path / "models", m=fold)
    shelf = ModelRegistry([folder])
    await shelf.reload()
    for beside in ("m.onnx.part", "m.onnx~", "m.onnx.stepwell.json.bak"):
        (folder / beside).write_text("something")

    assert (await shelf.reload()).loaded == []


async def test_a_folder_that_is_no_version_is_reported(tmp_path: Path) -> None:
    folder, others = tmp_path / "models", ("0", "01", "２", "-1", "1.0", "v1", "99999999999")
    for name in ("1", *others):
        (folder / "m" / name).mkdir(parents=True)
        (folder / "m" / name / "model.onnx").write_bytes(write_model(tmp_path, "m", fold).read_bytes())
    shelf = ModelRegistry([folder])

    report = await shelf.reload()

    assert shelf.versions("m") == [1]
    assert {failed.partition(":")[0] for failed in report.failed} == {f"m/{version}" for version in others}


async def test_a_folder_that_is_not_there_keeps_its_models(tmp_path: Path) -> None:
    folder = write_models(tmp_path / "models", m=fold)
    shelf = ModelRegistry([folder])
    await shelf.reload()
    before = shelf.get("m")

    folder.rename(tmp_path / "elsewhere")
    report = await shelf.reload()
    assert [failed.partition(":")[2].partition("(")[0] for failed in report.failed][:1] == [" there is no such folder "]
    assert shelf.get("m") is before

    (tmp_path / "elsewhere").rename(folder)
    assert ((await shelf.reload()).loaded, shelf.get("m")) == ([], before)


async def test_a_new_sidecar_brings_the_model_anew(tmp_path: Path) -> None:
    folder = write_models(tmp_path / "models", m=fold)
    shelf = ModelRegistry([folder])
    await shelf.reload()
    (folder / "m.onnx.stepwell.json").write_text(shelf.get("m").manifest.to_json())

    assert (await shelf.reload()).loaded == ["m/1"]
