"""`require`: imports the packages that a front end needs, before it is imported itself."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from stepwell_export.runtime.errors import MissingExtraError


def require(packages: Sequence[str], what: str, *, extra: str) -> None:
    """Import packages.

    Args:
        packages: Their names.
        what: What needs them to be exported.
        extra: The extra of Stepwell that installs them.

    Raises:
        MissingExtraError: One is not installed, or cannot be imported.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as exc:
            raise MissingExtraError(
                f"Exporting {what} needs {package}, which cannot be imported: {exc}.",
                fix=f"Install it: pip install 'stepwell[{extra}]'; from a clone: STEPWELL_EXTRAS={extra} ./stepwell ..",
            ) from exc
