"""Models that are in no folder any more: found by their fingerprint, loaded once, dropped when unused."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stepwell.addons.artifacts.folder import ArtifactFolder
from stepwell.addons.artifacts.keeper import ArtifactKeeper
from stepwell.addons.artifacts.settings import ArtifactSettings
from stepwell.models.registry import ModelRegistry
from stepwell_export.runtime.step_model import StepModel
from tests.graphs import fold, write_model


class Registry(ModelRegistry):
    """A registry that keeps artifacts in a folder, and counts what it loads."""

    def __init__(self, folder: Path, *, retired_ttl_s: float = 1000.0) -> None:
        self.folder = folder
        self.loads: list[Path] = []
        self.keeper = ArtifactKeeper(
            ArtifactFolder(folder.parent / "artifacts", longest_ttl_s=1000), self.load, ArtifactSettings()
        )
        super().__init__([folder], self.load, self.keeper, retired_ttl_s=retired_ttl_s)

    def load(self, path: Path) -> StepModel:
        self.loads.append(path)
        return StepModel(path)

    async def replace(self, factor: int) -> bytes:
        """Overwrite the file of model `m`, reload, store its artifact, and return its fingerprint."""
        write_model(self.folder, "m", lambda: fold(factor=factor))
        await self.reload()
        fingerprint = self.get("m").fingerprint
        await self.keep("m", fingerprint, asyncio.get_running_loop().time() + 5)
        return fingerprint


@pytest.fixture
def registry(tmp_path: Path) -> Callable[..., Registry]:
    return lambda **more: Registry(tmp_path / "models", **more)


async def test_a_model_is_loaded_once_for_all_that_need_it(registry: Callable[..., Registry]) -> None:
    first = registry()
    old = await first.replace(3)
    await first.replace(5)
    second = registry()
    await second.reload()
    second.loads.clear()

    found = await asyncio.gather(*(second.find("m", old) for _ in range(50)))

    assert len(second.loads) == len(set(found)) == 1
    assert found[0] is not None
    assert (found[0].fingerprint, found[0].version, found[0].step_model.fingerprint) == (old, 1, old)
    assert second.by_fingerprint("m", old) is found[0]
    assert second.get("m").fingerprint != old


async def test_a_model_of_another_name_is_not_found(registry: Callable[..., Registry]) -> None:
    one = registry()
    old = await one.replace(3)

    assert await one.find("other", old) is None
    assert one.why_missing("other", old) == "no artifact of it is stored"


async def test_a_replaced_model_that_nothing_uses_is_dropped_and_loaded_again_when_needed(
    registry: Callable[..., Registry],
) -> None:
    one = registry(retired_ttl_s=0)
    old, new = await one.replace(3), await one.replace(5)
    one.drop_unused()

    assert one.by_fingerprint("m", old) is None
    assert one.by_fingerprint("m", new) is one.get("m")
    found = await one.find("m", old)
    assert found is not None
    assert found.fingerprint == old


async def test_of_many_replaced_models_the_last_used_ones_stay_in_memory(registry: Callable[..., Registry]) -> None:
    one = registry()
    old = [await one.replace(factor) for factor in range(2, 12)]
    in_memory = [one.by_fingerprint("m", fingerprint) is not None for fingerprint in old]

    assert in_memory == [False] + [True] * 9  # eight replaced ones, and the served one


async def test_artifacts_that_were_not_renewed_are_deleted_from_a_folder(
    registry: Callable[..., Registry], tmp_path: Path
) -> None:
    one = registry()
    old = await one.replace(3)
    [file] = (tmp_path / "artifacts").iterdir()
    os.utime(file, (0, 0))
    new = await one.replace(5)

    assert old.hex() in file.name
    assert [found.name for found in (tmp_path / "artifacts").iterdir()] == [f"{new.hex()}.m.artifact"]


async def test_a_stored_artifact_has_the_file_as_it_was_loaded(
    registry: Callable[..., Registry], tmp_path: Path
) -> None:
    one = registry()
    write_model(one.folder, "m", lambda: fold(factor=3))
    await one.reload()
    old = one.get("m").fingerprint
    write_model(one.folder, "m", lambda: fold(factor=5))
    await one.keep("m", old, asyncio.get_running_loop().time() + 5)
    other = registry()
    await other.reload()

    found = await other.find("m", old)

    assert found is not None
    assert found.fingerprint == old
