"""`line_chart`: numbers over timesteps as an SVG picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from stepwell_export.runtime.manifest import Array

_COLORS: Final = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_WIDTH, _HEIGHT = 720, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 26, 22
_MOST_LINES: Final = len(_COLORS)
_MOST_POINTS: Final = 1000
"""Points of a line; of more, each is the mean of several."""


def line_chart(title: str, lines: Mapping[str, Sequence[float]], first_step: int = 1) -> str:
    """Return an SVG element with one line per name; at most eight lines are drawn.

    Args:
        title: Text above the chart.
        lines: Values at successive timesteps by name, all of one length. A gap is drawn where one is not finite.
        first_step: The step of the first value.
    """
    drawn = dict(list(lines.items())[:_MOST_LINES])
    count = max((len(values) for values in drawn.values()), default=0)
    thinned = {name: _thinned(values) for name, values in drawn.items()}
    finite = [value for values in thinned.values() for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'role="img" font-family="system-ui, sans-serif" font-size="11" style="max-width:100%;background:#fff">'
    )
    parts = [
        head,
        f"<title>{escape(title)}</title>",
        _text(_LEFT, 15, title, "start", weight="600"),
        f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="#999"/>',
        _text(_LEFT - 6, _TOP + 4, f"{high:.4g}", "end"),
        _text(_LEFT - 6, _HEIGHT - _BOTTOM + 4, f"{low:.4g}", "end"),
        _text(_LEFT, _HEIGHT - 6, f"step {first_step:,}", "start"),
        _text(_WIDTH - _RIGHT, _HEIGHT - 6, f"{first_step + max(count - 1, 0):,}", "end"),
    ]
    for (name, values), color in zip(thinned.items(), _COLORS, strict=False):
        parts.append(f'<path d="{_path(values, low, high)}" fill="none" stroke="{color}" stroke-width="1.5">')
        parts.append(f"<title>{escape(name)}</title></path>")
    legend = [(name, color) for name, color in zip(drawn, _COLORS, strict=False)]
    for n, (name, color) in enumerate(reversed(legend)):
        parts.append(_text(_WIDTH - _RIGHT - 80 * n, 15, name[:14], "end", color=color))
    return "".join([*parts, "</svg>"])


def lines_of(values: Array, labels: Sequence[str] | None) -> dict[str, list[float]]:
    """Return the lines of a chart: the numbers of successive rows, by their labels or their positions.

    Args:
        values: Shape `(timesteps, numbers)`.
        labels: The name of each number; None: its position.
    """
    names = labels or [str(n) for n in range(values.shape[-1])]
    return {name: values[:, n].tolist() for n, name in enumerate(names)}


def stacked(charts: Sequence[str]) -> str:
    """Return one SVG picture with charts below each other."""
    parts = [f'<g transform="translate(0 {_HEIGHT * n})">{chart}</g>' for n, chart in enumerate(charts)]
    height = _HEIGHT * len(charts)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
    )
    return "".join([head, *parts, "</svg>\n"])


def _thinned(values: Sequence[float]) -> list[float]:
    """Return at most `_MOST_POINTS` values, each the mean of neighbours."""
    size = math.ceil(len(values) / _MOST_POINTS) or 1
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return [float(sum(group)) / len(group) for group in groups]


def _path(values: Sequence[float], low: float, high: float) -> str:
    """Return a line as SVG path data, which starts again after each gap."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    data, is_drawing = [], False
    for n, value in enumerate(values):
        if not math.isfinite(value):
            is_drawing = False
            continue
        x = _LEFT + width * n / max(len(values) - 1, 1)
        y = _TOP + height * (1 - (value - low) / (high - low))
        data.append(f"{'L' if is_drawing else 'M'}{x:.1f} {y:.1f}")
        is_drawing = True
    return "".join(data)


def _text(x: int, y: int, text: str, anchor: str, *, weight: str = "400", color: str = "#444") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" fill="{color}">{escape(text)}</text>'
