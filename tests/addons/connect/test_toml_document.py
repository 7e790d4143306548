"""`TomlDocument`: what its errors say."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import Struct

from stepwell.addons.connect.toml_document import TomlDocument
from stepwell.errors import SettingsError


class PumpTable(Struct, forbid_unknown_fields=True):
    name: str
    speed: int = 0


class PlantTable(Struct, forbid_unknown_fields=True):
    """A table, tables of which there are several, and one of any keys."""

    site: PumpTable | None = None
    pump: list[PumpTable] = []
    values: dict[str, list[int]] = {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[site]\nname = 'a'\nsped = 2\n", ", line 3: sped of [site]: unknown key; expected one of name, speed."),
        ("[site]\nspeed = 2\n", ", line 1: name of [site]: Object missing required field `name`."),
        (
            "[[pump]]\nname = 'a'\n\n[[ pump ]] # second\nname = 'b'\nspeed = 1.5\n",
            ", line 6: speed of [[pump]]: Expected `int`, got `float`.",
        ),
        ("[[pump]]\nname = 'a'\n[site]\nname = 1\n", ", line 4: name of [site]: Expected `str`, got `int`."),
        ("size = 3\n[site]\nname = 'a'\n", ", line 1: size: unknown key; expected one of site, pump, values."),
        ("[[pump]]\nname = 'a'\n[stie]\n", ", line 3: stie: unknown key; expected one of site, pump, values."),
        ("site = { name = 1 }\n", ": name of [site]: Expected `str`, got `int`."),
        ("[values]\nx = [1, 'a']\n", ", line 1: values: Expected `int`, got `str`."),
        ("[site\n", " cannot be read: Expected ']' at the end of a table declaration (at line 1, column 6)."),
        ("site = '\xff'", " cannot be read: 'utf-8' codec can't decode byte 0xff in position 8: invalid start byte."),
    ],
)
def test_a_mistake_is_named_with_its_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "plant.toml"
    file.write_bytes(text.encode("latin-1"))

    with pytest.raises(SettingsError) as caught:
        TomlDocument.read(file, fix="See the docs.").convert(PlantTable)

    assert (caught.value.problem, caught.value.fix[-13:]) == (f"{file}{said}", "See the docs.")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.toml cannot be read: it is not there\."):
        TomlDocument.read(tmp_path / "no.toml", fix="")
