"""`picture`: a backtest as an SVG: the distribution of differences over time, and the streams that differ most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from stepwell.addons.backtest.differences import OutputDifferences
from stepwell.addons.backtest.histogram import StepSpan
from stepwell.addons.backtest.run import Comparison
from stepwell_client.wire.texts import counted

_WIDTH, _CHART, _BAR = 860, 220, 20
_LEFT, _RIGHT = 76, 24
_INK, _FAINT, _LINE, _LIMIT = "#1f2933", "#d5dbe1", "#1f5fa8", "#b3261e"
_MOST_STREAMS = 12
_MOST_NAME = 28

_Axis = Callable[[float], float]
"""From a value to a coordinate."""


def picture(comparison: Comparison, title: str, limits: dict[str, float]) -> str:
    """Return the picture as the text of an SVG file.

    Args:
        comparison: The backtest.
        title: Its first line.
        limits: The largest difference that is allowed, by output; drawn as a line.
    """
    parts, y = [_text(16, 30, title, size=17, weight=600)], 44
    subtitle = f"{counted(comparison.timesteps, 'timestep')} of {counted(len(comparison.streams), 'stream')}"
    parts.append(_text(16, y + 6, subtitle, color="#5b6770"))
    y += 34
    for each in comparison.outputs:
        parts += _over_time(each, y, limits.get(each.name))
        y += _CHART + 62
    worst = comparison.worst(_MOST_STREAMS)
    if worst:
        parts += _streams(comparison, worst, y)
        y += 34 + _BAR * len(worst)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 16}" width="{_WIDTH}" height="{y + 16}" '
        f'font-family="system-ui, sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _over_time(each: OutputDifferences, top: int, limit: float | None) -> list[str]:
    """Return the chart of one output: median, 90 % and largest difference by step, on a logarithmic axis."""
    spans = each.over_time.spans()
    title = f"{each.name}: difference by step (line: median; dark: 90 %; light: largest)"
    parts = [_text(16, top + 12, title, weight=600)]
    values = [value for span in spans for value in (span.p50, span.p90, span.largest)] + [limit or 0.0]
    shown = [value for value in values if 0 < value < math.inf]
    if not each.largest[0] or not shown:
        found = "differ in numbers that are not finite only" if each.largest[0] else "do not differ in this output"
        return [*parts, _text(_LEFT, top + 44, f"The models {found}.", color="#5b6770")]
    high = math.ceil(math.log10(max(shown)) + 1e-9)
    low = max(min(math.floor(math.log10(min(shown)) - 0.2), high - 2), high - 8)
    top, bottom = top + 26, top + 26 + _CHART
    first, last = spans[0].first, spans[-1].last

    def across(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - first + 0.5) / max(last - first + 1, 1)

    def up(value: float) -> float:
        scaled = math.log10(min(max(value, 10.0**low), 10.0**high))
        return bottom - (bottom - top) * (scaled - low) / (high - low)

    for power in range(low, high + 1):
        y = up(10.0**power)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_FAINT}"/>')
        label = f"1e{power}" if power > low else f"≤ 1e{power}"
        parts.append(_text(_LEFT - 8, y + 4, label, anchor="end", color="#5b6770"))
    for name, opacity in (("largest", 0.18), ("p90", 0.35)):
        parts.append(f'<path d="{_area(spans, name, across, up, bottom)}" fill="{_LINE}" fill-opacity="{opacity}"/>')
    points = " ".join(f"{across(x):.1f},{up(span.p50):.1f}" for span in spans for x in _ends(span))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{_LINE}" stroke-width="2"/>')
    if limit is not None:
        y = up(limit)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_LIMIT}" stroke-dasharray="5 4"/>')
        parts.append(_text(_WIDTH - _RIGHT, y - 5, f"limit {limit:g}", anchor="end", color=_LIMIT))
    parts.append(_text(_LEFT, bottom + 17, f"step {first:,}", color="#5b6770"))
    parts.append(_text(_WIDTH - _RIGHT, bottom + 17, f"{last:,}", anchor="end", color="#5b6770"))
    return parts


def _ends(span: StepSpan) -> tuple[float, float]:
    return span.first - 0.5, span.last + 0.5


def _area(spans: Sequence[StepSpan], name: str, across: _Axis, up: _Axis, bottom: float) -> str:
    """Return the area under one quantile as SVG path data."""
    corners = [(across(x), up(getattr(span, name))) for span in spans for x in _ends(span)]
    line = "".join(f"L{x:.1f} {y:.1f}" for x, y in corners)
    return f"M{corners[0][0]:.1f} {bottom:.1f}{line}L{corners[-1][0]:.1f} {bottom:.1f}Z"


def _streams(comparison: Comparison, worst: Sequence[int], top: int) -> list[str]:
    """Return a bar for each of the streams that differ most."""
    parts = [_text(16, top + 12, "Streams that differ most (largest difference of any output)", weight=600)]
    n_streams = len(comparison.streams)
    largest = {
        code: max(float(each.of_streams(n_streams)[code]) for each in comparison.outputs) for code in worst
    }  # fmt: skip
    widest = max((value for value in largest.values() if value < math.inf), default=1.0)
    left, room = 220, _WIDTH - 220 - 120
    for n, code in enumerate(worst):
        y, value, name = top + 26 + _BAR * n, largest[code], comparison.streams[code]
        width = room * (min(value, widest) / widest)
        shown = name if len(name) <= _MOST_NAME else f"{name[: _MOST_NAME - 1]}…"
        parts.append(_text(left - 8, y + 13, shown, anchor="end"))
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{width:.1f}" height="13" rx="2" fill="{_LINE}"/>')
        parts.append(_text(left + width + 6, y + 13, "not finite" if value == math.inf else f"{value:.3g}"))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: int = 400,
          color: str = _INK) -> str:  # fmt: skip
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{color}">{escape(printable)}</text>'
    )
