"""`registered` and `load`: what installed packages add, each by an entry point in a group of ours.

What each group expects is on the page "Extending Stepwell". Our own brokers and gRPC are registered in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from stepwell_export.runtime.errors import MissingExtraError, StepwellError

GROUPS: Final = tuple(
    f"stepwell.{name}" for name in ("addons", "brokers", "commands", "settings", "stages", "step_rules", "stores")
)
"""The groups that are read."""


class AddonError(StepwellError):
    """An installed package registers something that cannot be used."""

    code = "bad_addon"


@functools.cache
def registered(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group by their names, in the order of the names; nothing is imported.

    Raises:
        AddonError: Two packages register the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        other = found.setdefault(point.name, point)
        if other.value != point.value:  # a package that is found in two places registers the same twice
            raise AddonError(
                f"{_package(other)} and {_package(point)} both register {point.name!r} in {group}.",
                fix="Uninstall one of them.",
            )
    return found


def load(point: EntryPoint, kind: type | None = None, *, base: type | None = None) -> Any:
    """Import what an entry point names.

    Args:
        point: One of `registered`.
        kind: The class that it has to be an instance of; None: anything.
        base: The class that it has to be a subclass of; None: anything.

    Raises:
        MissingExtraError: A package that it imports is not installed.
        AddonError: It cannot be imported, or is something else.
    """
    try:
        loaded = point.load()
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f"{point.name!r} of {_package(point)} needs the package {exc.name}, which is not installed.",
            fix=f"Install {exc.name}, or uninstall {_package(point)}.",
        ) from exc
    except Exception as exc:
        raise AddonError(
            f"{point.name!r} of {_package(point)} cannot be loaded from {point.value}: {type(exc).__name__}: {exc}.",
            fix=f"Report it to the authors of {_package(point)}, or uninstall it.",
        ) from exc
    if kind is not None and not isinstance(loaded, kind):
        raise AddonError(
            f"{point.name!r} of {_package(point)} is {type(loaded).__name__}; {point.group} takes {kind.__name__}.",
            fix=f"Report it to the authors of {_package(point)}, or uninstall it.",
        )
    if base is not None and not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise AddonError(
            f"{point.name!r} of {_package(point)} is {loaded!r:.80}; "
            f"{point.group} takes subclasses of {base.__name__}.",
            fix=f"Report it to the authors of {_package(point)}, or uninstall it.",
        )
    return loaded


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value.partition(".")[0]
