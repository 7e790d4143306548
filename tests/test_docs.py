"""Links between the documentation's pages, its indexes, and the pages that messages name."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from scripts.site.markdown import anchors, links

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "examples", "clients")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    broken = []
    for page in PAGES:
        for link in links(page.read_text()):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
                broken.append(f"{page.relative_to(ROOT)}: {link}")

    assert broken == []


def test_an_index_links_every_page_of_its_folder() -> None:
    for folder, index in (
        ("docs", "README.md"),
        ("docs/adr", "docs/adr/README.md"),
        ("docs/gallery", "docs/gallery/README.md"),
    ):
        linked = {(ROOT / index).parent / link for link in links((ROOT / index).read_text())}
        assert set((ROOT / folder).glob("*.md")) - {ROOT / index} - linked == set(), index


def test_the_index_of_decisions_has_each_page_once_and_in_order() -> None:
    rows = re.findall(r"^\| \[(\d{4})\]", (ROOT / "docs/adr/README.md").read_text(), flags=re.MULTILINE)

    assert rows == sorted(set(rows))


@cache
def texts() -> list[tuple[str, str]]:
    """Return every text of the packages with its file; also docstrings, since those of commands are their help."""
    return [
        (str(file.relative_to(ROOT)), " ".join(node.value.split()))
        for each in ("service", "model_export", "clients")
        for file in ROOT.glob(f"{each}/**/*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_no_text_of_the_packages_names_a_file_that_only_the_repository_has() -> None:
    assert [found for found in texts() if re.search(r"docs/[\w/-]+\.md", found[1])] == []


def test_a_page_that_a_text_names_is_in_the_documentation() -> None:
    titles = [page.read_text().partition("\n")[0].removeprefix("# ") for page in (ROOT / "docs").glob("*.md")]
    named = [(file, page) for file, text in texts() for page in re.findall(r'page "([^"]+)"', text)]

    assert len(named) >= 10
    assert [one for one in named if not any(title.startswith(one[1]) for title in titles)] == []
