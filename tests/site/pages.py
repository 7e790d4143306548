"""`Site` and `HtmlPage`: what the pages of a built site have and load."""

from __future__ import annotations

import functools
from html.parser import HTMLParser
from pathlib import Path


class HtmlPage(HTMLParser):
    """One page.

    Attributes:
        ids: The targets of links into the page.
        links: The targets of its links.
        loads: The addresses of what a browser loads with the page.
        text: The text of its headings and paragraphs.
        code: The texts that are shown as code.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.code: set[str] = set()
        self._tags: list[str] = []
        self._texts: list[str] = []
        self._code: list[str] | None = None
        self.feed(html)

    @property
    def text(self) -> str:
        """The page's text, without scripts."""
        return "".join(self._texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        if "id" in found:
            self.ids.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("link", "script", "img", "iframe"):
            self.loads += [found[name] for name in ("href", "src") if name in found]
        if tag in ("script", "style"):
            self._tags.append(tag)
        if tag == "code":
            self._code = []

    def handle_endtag(self, tag: str) -> None:
        if self._tags and tag == self._tags[-1]:
            self._tags.pop()
        if tag == "code" and self._code is not None:
            self.code.add("".join(self._code))
            self._code = None

    def handle_data(self, data: str) -> None:
        if not self._tags:
            self._texts.append(data)
        if self._code is not None:
            self._code.append(data)


class Site:
    """A built site in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def pages(self) -> dict[Path, HtmlPage]:
        """All pages by their files, without that for unknown addresses, whose links begin at the server's root."""
        files = [file for file in sorted(self.folder.rglob("*.html")) if file.name != "404.html"]
        return {file: HtmlPage(file.read_text()) for file in files}

    def page(self, path: str) -> HtmlPage:
        """Return a page by its path in the site."""
        return self.pages[self.folder / path]
