"""Copies what the site is made of into one folder, in the layout of the repository, so that links stay as they are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from scripts.site import reference
from scripts.site.markdown import links

ROOT: Final = Path(__file__).parents[2]
_STYLE: Final = Path(__file__).parent / "style.css"
_ICON: Final = ROOT / "service/stepwell/addons/dashboard/page/icon.svg"
_ROOTS: Final = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def stage(folder: Path) -> list[str]:
    """Copy all pages, the files that they link to, and the reference; return the paths of the pages.

    A link to a folder of the repository leads to its README.md; where it has none, only the link's text is kept.

    Args:
        folder: An empty folder, from which the site is built.
    """
    pages = sorted(_pages())
    for page in pages:
        text = (ROOT / page).read_text()
        _write(folder / page, _without_links_to_folders(text, ROOT / page))
        for target in _targets(text, ROOT / page):
            if target.is_file() and target.suffix != ".md":
                copy = folder / target.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(target, copy)
    made = reference.files()
    for name, content in made.items():
        _write(folder / name, content)
    for file in (_STYLE, _ICON):
        shutil.copyfile(file, folder / file.name)
    return [*pages, *sorted(name for name in made if name.endswith(".md"))]


def _pages() -> set[str]:
    """Return all pages of docs/, and every page of the repository that is reached from them or from the README."""
    waiting = [*(ROOT / name for name in _ROOTS), *(ROOT / "docs").rglob("*.md")]
    found: set[Path] = set()
    while waiting:
        page = waiting.pop()
        if page in found:
            continue
        found.add(page)
        for target in _targets(page.read_text(), page):
            readme = target / "README.md" if target.is_dir() else target
            if readme.is_file() and readme.suffix == ".md":
                waiting.append(readme)
    return {page.relative_to(ROOT).as_posix() for page in found}


def _targets(text: str, page: Path) -> list[Path]:
    """Return the files and folders of the repository that a page links to."""
    names = [link.partition("#")[0] for link in links(text)]
    return [target for name in names if name and (target := (page.parent / name).resolve()).is_relative_to(ROOT)]


def _without_links_to_folders(text: str, page: Path) -> str:
    def replaced(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        folder = page.parent / target
        if target.startswith(("http:", "https:", "#")) or not folder.is_dir():
            return match[0]
        return f"[{words}]({target.rstrip('/')}/README.md)" if (folder / "README.md").is_file() else words

    return re.sub(r"\[([^]]*)\]\(([^)\s]+)\)", replaced, text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
