"""`TomlDocument`: a configuration in TOML, with errors that have the line, the key and what was expected."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
from msgspec import inspect

from stepwell.errors import SettingsError

_T = TypeVar("_T")


class TomlDocument:
    """A document of tables, from a file or from flags.

    Attributes:
        where: The file's path or another place, for messages.
        tables: Tables and values by name.
        fix: What to do about a mistake in it.
    """

    def __init__(self, where: str, tables: dict[str, Any], *, fix: str, text: str = "") -> None:
        """Use a document that is not in a file; `text` is what its lines are counted in."""
        self.where = where
        self.tables = tables
        self.fix = fix
        self._lines = text.splitlines()

    @classmethod
    def read(cls, path: Path, *, fix: str) -> Self:
        """Return the document in a file.

        Raises:
            SettingsError: The file cannot be read, or is not TOML.
        """
        try:
            text = path.read_text(encoding="utf-8")
            return cls(str(path), tomllib.loads(text), fix=fix, text=text)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            reason = "it is not there" if isinstance(exc, FileNotFoundError) else exc
            raise SettingsError(f"{path} cannot be read: {reason}.", fix=f"Give a TOML file. {fix}") from exc

    def convert(self, kind: type[_T]) -> _T:
        """Return the document as a struct, whose tables are structs that forbid unknown fields.

        Raises:
            SettingsError: A key is unknown, missing or wrong.
        """
        try:
            return msgspec.convert(self.tables, kind)
        except msgspec.ValidationError as exc:
            problem, _, place = str(exc).partition(" - at `$")
            place = place.strip(".`").partition("[...")[0]  # of a table of any keys
            field = re.search(r"(?:unknown|missing required) field `(\w+)`", problem)
            if field is None:
                raise self.error(place, problem) from exc
            if "unknown" in problem:
                problem = f"unknown key; expected one of {', '.join(_keys(kind, place))}"
            raise self.error(f"{place}.{field[1]}".lstrip("."), problem) from exc

    def error(self, key: str, problem: str) -> SettingsError:
        """Return an error about a key, such as `group`, `service.url` or `rule[1].name`."""
        table, _, name = key.rpartition(".")
        array = re.fullmatch(r"(\w+)\[(\d+)\]", table)
        header, number = (f"[[{array[1]}]]", int(array[2])) if array else (f"[{table}]" if table else "", 0)
        line = self._line(header, number, name)
        place = self.where if line is None else f"{self.where}, line {line}"
        return SettingsError(f"{place}: {name}{f' of {header}' if header else ''}: {problem}.", fix=self.fix)

    def _line(self, header: str, number: int, name: str) -> int | None:
        """Return the line of a key, from 1; that of its table if it lacks the key; None: neither is found.

        Args:
            header: The first line of the table; empty: the key is in none.
            number: How many such lines are before it.
            name: The key.
        """
        found, current = None, ""
        for i, line in enumerate(self._lines, 1):
            if line.lstrip().startswith("["):
                current = re.sub(r"\s|#.*", "", line)
                if not header and current.strip("[]") == name:
                    return i
                number -= current == header
                found = i if (current, number) == (header, -1) else found
            elif (current, number) == (header, -1 if header else 0) and re.match(rf"\s*{re.escape(name)}\s*=", line):
                return i
        return found


def _keys(kind: Any, place: str) -> list[str]:
    """Return the keys of the struct at a place such as `rule[1]`."""
    found: Any = inspect.type_info(kind)
    for name in re.findall(r"[^.\d[\]]+", place):
        found = next(field.type for field in found.fields if field.encode_name == name)
        while not isinstance(found, inspect.StructType):  # a list of it, or it or None
            found = found.item_type if isinstance(found, inspect.ListType) else found.types[0]
    return [field.encode_name for field in found.fields]
