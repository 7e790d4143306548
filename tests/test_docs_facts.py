"""What the documentation's pages name exists: commands, their flags, metrics, routes, files, modules, extras."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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


@cache
def lines() -> list[tuple[str, str]]:
    """Return the lines of code, each with its page: of blocks, with continued lines joined, and of spans."""
    parts = [(page, block or span) for page in PAGES for block, span in CODE.findall(page.read_text())]
    return [
        (str(page.relative_to(ROOT)), line) for page, part in parts for line in re.sub(r"\\\n", " ", part).splitlines()
    ]


def named(pattern: str) -> set[tuple[str, Any]]:
    """Return what a pattern finds in the lines of code, each with its page."""
    return {(page, found) for page, line in lines() for found in re.findall(pattern, line)}


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


def test_every_command_and_flag_exists() -> None:
    unknown = []
    for page, line in lines():
        for called in re.findall(r"^(?:[A-Z_]+=\S+ )*(?:\./|\.venv/bin/)?stepwell ([a-z][^|;#&>)]*)", line):
            words = called.split()
            command = next((key for key in (tuple(words[:2]), tuple(words[:1])) if key in flags()), None)
            if command is None:
                unknown.append(f"{page}: {line}")
            elif command != ("test",):  # its arguments are pytest's
                given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
                unknown += [f"{page}: {flag} in {line}" for flag in given - flags()[command] - {"--help"}]

    assert unknown == []


def test_every_metric_exists() -> None:
    defined = {_without_suffix(one.name) for one in definitions().values()} | NO_METRICS
    text = "\n".join(file.read_text() for part in ("connect", "alert") for file in (ADDONS / part).rglob("*.py"))
    unknown = [
        (page, name)
        for page, name in named(r"\bstepwell_[a-z_]+[a-z]\b")
        if _without_suffix(name) not in defined
        and re.sub(r"^stepwell_(connect|alert)_", "", _without_suffix(name)) not in text
    ]

    assert unknown == []


def _without_suffix(name: str) -> str:
    return re.sub(r"_(total|bucket|sum|count|created)$", "", name)


def test_every_route_exists() -> None:
    unknown = [
        (page, method, path)
        for page, (method, path) in named(r"\b(GET|POST|PUT|DELETE|PATCH) (/[\w{}/.-]*)")
        if not any(method == one and pattern.match(path.rstrip(".")) for one, pattern in routes())
    ]

    assert unknown == []


def test_every_file_of_the_repository_exists() -> None:
    unknown = [
        (page, name)
        for page, name in named(r"^(?:\./)?((?:[\w.-]+/)+[\w.-]*)$")
        if name.split("/")[0] in TOP and not ((ROOT / name).exists() or ((ROOT / page).parent / name).exists())
    ]

    assert unknown == []


def test_every_module_that_is_run_exists() -> None:
    ours = ("stepwell", "scripts", "benchmarks", "campaign", "tests", "stepwell_export", "stepwell_client")
    found = {name for _, name in named(r"python -m ([\w.]+)") if name.split(".")[0] in ours}

    assert [name for name in found if find_spec(name) is None] == []


def test_every_extra_exists() -> None:
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    found = re.compile(r"stepwell\[([\w,-]+)\]|STEPWELL_EXTRAS=([\w,-]+)")
    lists = [(page, "".join(one)) for page in PAGES for one in found.findall(page.read_text())]

    assert [(page, names) for page, names in lists if not set(names.split(",")) <= known] == []
