"""The site has every page, no broken link, and loads nothing from other hosts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.site.conftest import ROOT
from tests.site.pages import Site


def test_every_page_of_the_repositorys_documentation_is_in_the_site(site: Site) -> None:
    sources = [*ROOT.glob("docs/**/*.md"), *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"))]
    built = {file.relative_to(site.folder).as_posix() for file in site.pages}
    expected = {
        path.relative_to(ROOT).as_posix().removesuffix(".md").replace("README", "index") + ".html" for path in sources
    }

    assert expected - built == set()


def test_every_page_is_reached_from_the_navigation(site: Site) -> None:
    start = site.folder / "index.html"
    reached = {(start.parent / unquote(urlsplit(link).path)).resolve() for link in site.pages[start].links}
    sections = {file for file in reached if file in site.pages}
    for file in list(sections):
        reached |= {(file.parent / unquote(urlsplit(link).path)).resolve() for link in site.pages[file].links}

    assert {str(file.relative_to(site.folder)) for file in set(site.pages) - reached} == set()


def test_every_link_leads_to_a_file_and_an_anchor(site: Site) -> None:
    broken = []
    for file, page in site.pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            anchors = site.pages[target].ids if target in site.pages else {""}
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{file.relative_to(site.folder)}: {link}")

    assert broken == []


def test_no_page_loads_anything_from_another_host(site: Site) -> None:
    elsewhere = [load for page in site.pages.values() for load in page.loads if urlsplit(load).netloc]

    assert elsewhere == []
    assert "mermaid" not in {name for page in site.pages.values() for name in page.ids}


def test_the_search_index_has_the_pages(site: Site) -> None:
    index = (site.folder / "search" / "search_index.json").read_text()

    assert "docs/state.html" in index
    assert "reference/settings.html#max_batch_size" in index


def test_the_list_for_language_models_names_every_page_as_markdown(site: Site) -> None:
    text = (site.folder / "llms.txt").read_text()

    listed = {line.split("](")[1].split(")")[0] for line in text.splitlines() if line.startswith("- [")}
    assert {path.replace("README.md", "index.md") for path in listed} == {
        file.relative_to(site.folder).with_suffix(".md").as_posix() for file in site.pages
    }
    assert [path for path in listed if not (site.folder / path).is_file()] == []


def run_site(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.site", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_folder_with_other_files_is_left_as_it_is(site: Site, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("own")

    done = run_site("build", "--out", str(tmp_path))

    assert (done.returncode, (tmp_path / "own.txt").read_text()) == (1, "own")
    assert "--out FOLDER" in done.stderr


def test_without_a_package_of_the_extra_the_message_names_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['griffe'] = None; from scripts.site.__main__ import main; "
        "sys.argv = ['docs', 'build', '--out', sys.argv[1]]; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "STEPWELL_EXTRAS=docs" in done.stderr
