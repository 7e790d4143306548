"""The translation by which streams move is the one that a release names, whatever file was published since."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from stepwell.addons.releases.translations import Translation, Translations
from stepwell.models.registry import ModelRegistry
from stepwell.models.served import ServedModel
from stepwell_export.runtime.step_model import StepModel
from tests.addons.releases.builds import wide_fold, widening, widening_by
from tests.graphs import fold, write_model


async def versions(folder: Path) -> tuple[ServedModel, ServedModel]:
    for version, build in ((1, fold), (2, partial(wide_fold, 31))):
        write_model(folder, "fold", build, version=version)
    models = ModelRegistry([folder], StepModel)
    assert not (await models.reload()).failed
    return models.get("fold", 1), models.get("fold", 2)


def translated(translation: Translation | None) -> int:
    assert translation is not None
    return int(translation({"h": np.array([[5]])})["g"][0, 0])


async def test_a_published_translation_is_not_used_before_a_release_names_it(tmp_path: Path) -> None:
    old, new = await versions(tmp_path)
    translations, file = Translations(None), tmp_path / "fold" / "2" / "translate-from-1.onnx"
    file.write_bytes(widening())
    first = await translations.publish(old, new)
    file.write_bytes(widening_by(100))
    second = await translations.publish(old, new)

    assert [translated(translations.get(old, new, digest)) for digest in (first, second)] == [5, 105]


async def test_a_replica_whose_file_is_another_one_has_no_translation(tmp_path: Path) -> None:
    """Without artifacts each replica has its own files; streams stay where they are until it has the same."""
    old, new = await versions(tmp_path)
    file = tmp_path / "fold" / "2" / "translate-from-1.onnx"
    file.write_bytes(widening())
    named = await Translations(None).publish(old, new)
    assert named is not None
    file.write_bytes(widening_by(100))

    assert await Translations(None).load(old, new, named) is None
