"""Tables of a release for the terminal: versions with bars, the ramp, and the comparison."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.text import Text

from stepwell.commands.error_table import error_table
from stepwell.commands.tables import table
from stepwell_client.wire.texts import counted

_BAR_WIDTH: Final = 16  # the table then fits into 80 columns


def release_view(release: Mapping[str, Any]) -> RenderableType:
    """Return everything about a release, as `GET` of it responds."""
    parts: list[RenderableType] = [Text(line) for line in _lines(release)]
    parts.append(_versions(release))
    if release["compared"]["outputs"]:
        parts.append(_differences(release))
    if release["compared"]["error"] is not None:
        parts.append(error_table(release["compared"]["error"]))
    return Group(*parts)


def _lines(release: Mapping[str, Any]) -> list[str]:
    """Return the sentences about a release."""
    revision = f"revision {release['revision']}" if release["revision"] else "no release"
    lines = [f"{release['model']}, {revision}: version {release['current']} is current"]
    if release["candidate"] is not None:
        how = f"{release['mode']}, {release['percent']:g} % of the streams, take {release['take']}"
        if release["warm_steps"]:
            how += f", {release['warm_steps']:,} warm steps"
        if not release["existing"]:
            how += ", new streams only"
        lines.append(f"version {release['candidate']} is the candidate: {how}")
        if release["mode"] == "shadow":
            lines.append("the current version responds; streams count for the version that responds")
    if len(release["schedule"]) > 1:
        lines.append(
            "schedule: " + ", ".join(f"{share:g} % from {seconds:g} s" for seconds, share in release["schedule"])
        )
    if (ended := release["ended"]) is not None:
        why = f": {ended['why']}" if ended["why"] else ""
        lines.append(f"version {ended['candidate']} was {ended['how']} at {_clock(ended['at'])}{why}")
    if release["gate"] is not None and release["candidate"] is not None:
        limits = ", ".join(f"{name} {_limit(limit)}" for name, limit in release["gate"].items())
        lines.append(f"gate: {limits}")
    if release["moved"] or release["left"]:
        lines.append(f"sweep: {counted(release['moved'], 'stream')} moved, {release['left']:,} left")
    return lines


def _versions(release: Mapping[str, Any]) -> RenderableType:
    rows = release["versions"]
    total = max(sum(row["streams"] for row in rows), 1)
    counted = "" if release["counted_at"] is None else f"streams counted at {_clock(release['counted_at'])}"
    found = table(counted, ("version", "status", "streams", "", "share", "fingerprint"), ())
    for row in rows:
        is_in_shadow = release["mode"] == "shadow" and row["version"] == release["candidate"]
        status = "shadow" if is_in_shadow else row["status"]
        bar = ProgressBar(total=total, completed=row["streams"], width=_BAR_WIDTH)
        name = "?" if row["version"] is None else str(row["version"])
        share = f"{100 * row['streams'] / total:.1f} %"
        found.add_row(name, status, f"{row['streams']:,}", bar, share, row["fingerprint"])
    return found


def _differences(release: Mapping[str, Any]) -> RenderableType:
    compared = release["compared"]
    left = f"{compared['lost']:,} lost, {compared['fell_back']:,} fell back, {compared['non_finite']:,} non-finite"
    rows = []
    for name, found in compared["outputs"].items():
        disagree = "" if found["disagree"] is None else f"{100 * found['disagree']:.2f} %"
        rows.append((name, *_three(found), disagree))
        rows += [(f"{name}[{label}]", *_three(one), "") for label, one in found["labels"].items()]
    title = f"{counted(compared['steps'], 'timestep')} compared; streams: {left}"
    return table(title, ("output", "max difference", "mean", "p99", "arg max differs"), rows)


def _three(found: Mapping[str, Any]) -> list[str]:
    return [f"{found[field]:.3g}" for field in ("max_abs", "mean_abs", "p99_abs")]


def _limit(limit: Any) -> str:
    if not isinstance(limit, dict):
        return f"{limit:g}"
    return ", ".join(
        f"{name} ({_limit(value)})" if isinstance(value, dict) else f"{name} {_limit(value)}"
        for name, value in limit.items()
    )


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
