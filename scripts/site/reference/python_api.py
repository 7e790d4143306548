"""The page of the Python API: signatures and docstrings of all public names, read from the source without importing it.

So the page has the names that need Keras or PyTorch also where these are not installed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from scripts.site.markdown import table

_ROOT: Final = Path(__file__).parents[3]
_WIDTH: Final = 100
_HEAD = """\
# Python API

Every name of `import stepwell`, with its arguments. [From Python](../docs/python.md) is the overview,
[The Python client](../docs/client.md) the guide to the client.
"""


def page() -> str:
    """Return the page."""
    package, client = _load()
    names = [str(name) for name in package.exports]
    parts = [_HEAD, "## Names of stepwell\n"]
    parts += [_entry(name, _target(package[name]), 3) for name in names]
    parts.append(
        "## What clients return\n\nThese classes are not created by name: methods of the client return them.\n"
    )
    parts += [_entry(str(name), _target(client[str(name)]), 3) for name in client.exports if str(name) not in names]
    return "\n".join(parts)


def _load() -> tuple[Any, Any]:
    """Return the modules `stepwell` and `stepwell_client`, as griffe reads them."""
    import griffe  # of the extra `docs`

    logging.getLogger("griffe").setLevel(logging.ERROR)
    options = griffe.GoogleOptions(warnings=False)
    loader = griffe.GriffeLoader(
        search_paths=[_ROOT / "service", _ROOT / "model_export", _ROOT / "clients" / "python"],
        docstring_parser=griffe.Parser.google,
        docstring_options=options,
        allow_inspection=False,
    )
    names = ("stepwell_export", "stepwell_client", "stepwell")
    _, client, package = [loader.load(name, try_relative_path=False) for name in names]
    loader.resolve_aliases(external=False)
    return package, client


def _target(found: Any) -> Any:
    return found.final_target if found.is_alias else found


def _entry(name: str, found: Any, level: int) -> str:
    """Return the section of a name, and for classes and modules those of what they have."""
    heading = name.replace("__", r"\_\_")  # else it would be bold
    parts = [f"{'#' * level} {heading}\n"]
    if found.is_function or found.is_class:
        parts.append(f"```python\n{_signature(name.rpartition('.')[2], found)}\n```\n")
    parts.append(_docstring(found))
    if found.is_class:
        parts.append(_attributes(found))
        parts += [_entry(f"{name}.{one.name}", one, level + 1) for one in _methods(found)]
    if found.is_module:
        members = [(f"`{one}`", _first_line(_target(found[str(one)]))) for one in found.exports or ()]
        parts.append(table(("name", "is"), members) if members else "")
    return "\n".join(part for part in parts if part)


def _signature(name: str, found: Any) -> str:
    function = found.all_members.get("__init__") if found.is_class else found
    if function is None or not function.is_function:
        return f"class {name}" if found.is_class else name
    text: str = function.signature(name=name, return_type=not found.is_class)
    text = text.replace("(self, ", "(").replace("(self)", "()")
    return text if len(text) <= _WIDTH else _wrapped(text)


def _wrapped(signature: str) -> str:
    """Return a signature with one line for each parameter."""
    start, end = signature.index("("), signature.rindex(")", 0, signature.rfind(" -> ") % (len(signature) + 1))
    depth, lines = 0, [""]
    for character in signature[start + 1 : end]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            lines.append("")
        else:
            lines[-1] += character
    parameters = "".join(f"    {line.strip()},\n" for line in lines)
    return f"{signature[: start + 1]}\n{parameters}{signature[end:]}"


def _methods(found: Any) -> Iterable[Any]:
    """Return the public methods of a class and of its bases, with docstrings."""
    members = [_target(one) for one in found.all_members.values() if one.is_public and not one.name.startswith("__")]
    return [one for one in members if one.is_function and one.docstring]


def _attributes(found: Any) -> str:
    members = [_target(one) for one in found.all_members.values() if one.is_public]
    rows = [
        (f"`{one.name}`", f"`{one.annotation}`" if one.annotation else "", _first_line(one))
        for one in members
        if one.is_attribute and one.docstring
    ]
    return table(("attribute", "type", "is"), rows) if rows else ""


def _first_line(found: Any) -> str:
    return str(found.docstring.value).split("\n\n")[0] if found.docstring else ""


def _docstring(found: Any) -> str:
    """Return a docstring as Markdown."""
    own = [found]
    if found.is_class and (made := found.all_members.get("__init__")) is not None:
        own.append(made)
    return "\n".join(_section(section) for one in own if one.docstring for section in one.docstring.parsed)


def _section(section: Any) -> str:
    kind = section.kind.value
    if kind == "text":
        return f"{section.value}\n"
    if kind in ("parameters", "other parameters", "attributes"):
        rows = [
            (f"`{one.name}`", f"`{one.annotation}`" if one.annotation else "", one.description) for one in section.value
        ]
        return table((kind.rstrip("s"), "type", "is"), rows)
    if kind in ("raises", "warns"):
        return table((kind, "when"), [(f"`{one.annotation}`", one.description) for one in section.value])
    if kind in ("returns", "yields"):
        return f"{kind.capitalize()}: {' '.join(' '.join(one.description.split()) for one in section.value)}\n"
    if kind == "admonition":
        return f"{section.title}: {' '.join(section.value.contents.split())}\n"
    return f"{section.value}\n"
