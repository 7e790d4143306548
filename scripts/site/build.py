"""Builds the site: stages its pages, runs MkDocs on them, and adds `llms.txt` and the pages' Markdown."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from scripts.site.llms import llms_text
from scripts.site.navigation import navigation
from scripts.site.staging import stage
from scripts.site.versions import add_version

_CONFIG: Final = Path(__file__).parent / "mkdocs.yml"


class SiteError(Exception):
    """The site cannot be built; the message has the cause and what to do."""


def build(target: Path, *, versions: bool = False) -> Path:
    """Build the site and return its folder.

    Args:
        target: The folder of the site; replaced if it exists.
        versions: Build into the folder `VERSION` below the target, and list it in the version menu of all sites there.

    Raises:
        SiteError: MkDocs is not installed or has found a broken link, or the folder has other files.
    """
    _check_installed()
    name = version("stepwell")
    site = target / name if versions else target
    if site.is_dir() and any(site.iterdir()) and not (site / "llms.txt").is_file():
        raise SiteError(f"{site} has files that are not a site. Choose another folder: --out FOLDER")
    with tempfile.TemporaryDirectory(prefix="stepwell-docs-") as folder:
        staged = Path(folder)
        pages = stage(staged)
        _run_mkdocs(versions, docs_dir=folder, site_dir=str(site), nav=navigation(pages))
        for page in pages:
            shutil.copyfile(staged / page, site / page)
        (site / "llms.txt").write_text(llms_text(staged, navigation(pages)))
    if versions:
        add_version(target, name)
    return site


def _check_installed() -> None:
    for name in ("mkdocs", "material", "griffe"):
        try:
            importlib.import_module(name)
        except ImportError as exc:
            raise SiteError(f"{name} is not installed. Run: STEPWELL_EXTRAS=docs ./stepwell --version") from exc


def _run_mkdocs(versions: bool, **options: Any) -> None:
    from mkdocs.commands.build import build as run
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    config = load_config(str(_CONFIG), **options)
    if versions:
        config.extra["version"] = {"provider": "mike"}  # the theme's menu, which reads ../versions.json
    config.plugins.on_startup(command="build", dirty=False)
    try:
        run(config)
    except Abort as exc:
        raise SiteError(f"The site was not built: {exc}. The lines above name the page and the link.") from exc
    finally:
        config.plugins.on_shutdown()
