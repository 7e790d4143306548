"""The site's navigation: pages by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Nav = list[dict[str, Any]]

_GUIDES: Final[Mapping[str, Sequence[str]]] = {
    "Come from elsewhere": ("coming-from",),
    "Export a model": ("exporting", "models", "refused", "pytorch", "jax", "onnx", "step-rules", "mlflow", "hub"),
    "Step streams": ("state", "examples", "python", "client", "watching", "operations", "oip"),
    "Use recorded data": ("replaying", "recorded-data", "spark-and-ray"),
    "Connect and move": ("connecting", "time", "savepoints", "releases"),
    "Deploy": ("deploying", "kubernetes", "stores", "security", "sizing", "performance"),
    "Operate": ("dashboard", "monitoring", "alerts", "drift", "backup", "a-year", "campaign"),
    "Extend": ("extending",),
}
_REFERENCE: Final = ("docs/errors.md", "docs/glossary.md")
_PROJECT: Final = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def navigation(pages: Sequence[str]) -> Nav:
    """Return the navigation of these pages, by their paths; each page is in it once.

    A page of docs/ that no group names is listed under "More guides".
    """
    paths = {name: [f"docs/{page}.md" for page in listed] for name, listed in _GUIDES.items()}
    grouped = {name: [page for page in listed if page in pages] for name, listed in paths.items()}
    in_folder = {folder: [page for page in pages if page.startswith(folder)] for folder in _FOLDERS}
    listed = {
        page
        for group in (*grouped.values(), *in_folder.values(), _REFERENCE, _PROJECT, ("README.md",))
        for page in group
    }
    more = [page for page in pages if page not in listed]
    if guides := [page for page in more if page.startswith("docs/")]:
        grouped["More guides"] = guides
    others = [page for page in more if not page.startswith("docs/")]
    return [
        {"Stepwell": "README.md"},
        {"Tutorial": in_folder["docs/tutorial/"]},
        {"Guides": [{name: group} for name, group in grouped.items()]},
        {"Gallery": in_folder["docs/gallery/"]},
        {"Reference": [*in_folder["reference/"], *_REFERENCE]},
        {"Project": [*_PROJECT, *others, {"Decisions": in_folder["docs/adr/"]}]},
    ]


_FOLDERS: Final = ("docs/tutorial/", "docs/gallery/", "docs/adr/", "reference/")
