"""What the documentation's pages name exists: commands, their flags, metrics, routes, files, modules, extras."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from scripts.observability.metrics import definitions
from scripts.site.reference.commands import help_texts
from stepwell.app import create_app
from stepwell.settings import Settings

ROOT = Path(__file__).parents[1]
ADDONS = ROOT / "service" / "stepwell" / "addons"
FOLDERS = ("docs", "examples", "clients", "deploy")
PAGES = sorted(
    page
    for page in [ROOT / "README.md", ROOT / "SECURITY.md", *(p for one in FOLDERS for p in (ROOT / one).rglob("*.md"))]
    if not {"adr", "node_modules"} & set(page.relative_to(ROOT).parts)
)
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"models"}
CODE = re.compile(r"```\w*\n(.*?)```|`([^`\n]+)`", re.DOTALL)

NO_METRICS = {
    "stepwell_steps_per_second",  # what an adapter of the metrics makes of a counter
    "stepwell_fleet",  # the package of examples/addon
}

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


@cache
def code(page: Path) -> tuple[str, ...]:
    """Return the lines of a page that are code: of blocks, with continued lines joined, and of spans."""
    parts = [block or span for block, span in CODE.findall(page.read_text())]
    return tuple(line for part in parts for line in re.sub(r"\\\n", " ", part).splitlines())


@cache
def flags() -> dict[tuple[str, ...], set[str]]:
    """Return the flags of each command, by its words."""
    return {words: set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)) for words, text in help_texts().items()}


@cache
def routes() -> list[tuple[str, re.Pattern[str]]]:
    """Return the method and the pattern of each path."""
    found = [
        (method, route.path)
        for route in create_app(Settings()).routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]
    return [(method, re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path) + "$")) for method, path in found]


@each_page
def test_every_command_and_flag_exists(page: Path) -> None:
    unknown = []
    for line in code(page):
        for called in re.findall(r"^(?:[A-Z_]+=\S+ )*(?:\./|\.venv/bin/)?stepwell ([a-z][^|;#&>)]*)", line):
            words = called.split()
            command = next((key for key in (tuple(words[:2]), tuple(words[:1])) if key in flags()), None)
            if command is None:
                unknown.append(line)
            elif command != ("test",):  # its arguments are pytest's
                given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
                unknown += [f"{flag} in {line}" for flag in given - flags()[command] - {"--help"}]

    assert unknown == []


@each_page
def test_every_metric_exists(page: Path) -> None:
    defined = {_without_suffix(one.name) for one in definitions().values()}
    text = "\n".join(file.read_text() for part in ("connect", "alert") for file in (ADDONS / part).rglob("*.py"))
    named = {name for line in code(page) for name in re.findall(r"\bstepwell_[a-z_]+[a-z]\b", line)}
    names = {_without_suffix(name) for name in named} - defined - NO_METRICS

    assert {name for name in names if re.sub(r"^stepwell_(connect|alert)_", "", name) not in text} == set()


def _without_suffix(name: str) -> str:
    return re.sub(r"_(total|bucket|sum|count|created)$", "", name)


@each_page
def test_every_route_exists(page: Path) -> None:
    named = {found for line in code(page) for found in re.findall(r"\b(GET|POST|PUT|DELETE|PATCH) (/[\w{}/.-]*)", line)}
    unknown = [
        (method, path)
        for method, path in named
        if not any(method == one and pattern.match(path.rstrip(".")) for one, pattern in routes())
    ]

    assert unknown == []


@each_page
def test_every_file_of_the_repository_exists(page: Path) -> None:
    named = {name for line in code(page) for name in re.findall(r"^(?:\./)?((?:[\w.-]+/)+[\w.-]*)$", line)}
    ours = {name for name in named if name.split("/")[0] in TOP}

    assert sorted(name for name in ours if not ((ROOT / name).exists() or (page.parent / name).exists())) == []


@each_page
def test_every_module_that_is_run_exists(page: Path) -> None:
    ours = ("stepwell", "scripts", "benchmarks", "campaign", "tests", "stepwell_export", "stepwell_client")
    named = {name for line in code(page) for name in re.findall(r"python -m ([\w.]+)", line)}

    assert [name for name in named if name.split(".")[0] in ours and find_spec(name) is None] == []


@each_page
def test_every_extra_exists(page: Path) -> None:
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    text = page.read_text()
    named = {
        name
        for found in re.findall(r"stepwell\[([\w,-]+)\]|STEPWELL_EXTRAS=([\w,-]+)", text)
        for name in "".join(found).split(",")
    }

    assert named - known == set()
