"""Every link between the documentation's pages leads to a file and a heading, and an index lists every page."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.site.markdown import anchors, links

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "examples", "clients")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in links(page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize(
    ("folder", "index"),
    [("docs", "README.md"), ("docs/adr", "docs/adr/README.md"), ("docs/gallery", "docs/gallery/README.md")],
)
def test_an_index_links_every_page_of_its_folder(folder: str, index: str) -> None:
    linked = {(ROOT / index).parent / link for link in links((ROOT / index).read_text())}

    assert set((ROOT / folder).glob("*.md")) - {ROOT / index} - linked == set()
