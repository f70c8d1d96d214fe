"""Small line and bar charts as inline SVG that take their colours from the page (CSS variables --series-1.., --ink-2, --grid)."""

from collections.abc import Sequence
from html import escape

import numpy as np

# Drawn about as wide as a phone, so that letters are not shrunk there.
_WIDTH, _HEIGHT = 440, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 16, 36


def nice_number(value: float) -> str:
    """A number short enough for an axis or a table."""
    if value == 0 or not np.isfinite(value):
        return "0" if value == 0 else "-"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first = np.ceil(low / step - 1e-9) * step
    return [float(v) for v in np.arange(first, high + step * 1e-6, step)]


class _Frame:
    """Maps data to the drawing and draws the axes."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]):
        self.x0, self.x1 = x_range[0], max(x_range[1], x_range[0] + 1e-9)
        low, high = y_range
        pad = 0.05 * (high - low) or max(abs(high), 1e-6) * 0.1
        self.y0, self.y1 = (0.0 if low >= 0 and low < 0.5 * high else low - pad), high + pad

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        parts = []
        for tick in _ticks(self.y0, self.y1):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{nice_number(tick)}</text>')
        for tick in _ticks(self.x0, self.x1, 5):
            parts.append(f'<text x="{self.x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{nice_number(tick)}</text>')
        parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
        parts.append(f'<text x="2" y="10">{escape(y_label)}</text>')
        return "".join(parts)


def _svg(content: str, title: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{content}</svg>'


def line_chart(series: dict[str, tuple[Sequence[float], Sequence[float]]], *, title: str, x_label: str, y_label: str) -> str:
    """Lines over a common axis.

    Args:
        series: name -> (x, y), at most 4; non-finite values are left out.
        title: read out by screen readers.
        x_label: with its unit.
        y_label: with its unit.
    """
    finite = {n: [(float(a), float(b)) for a, b in zip(*xy, strict=True) if np.isfinite(a) and np.isfinite(b)] for n, xy in series.items()}
    points = [p for values in finite.values() for p in values]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    frame = _Frame((min(xs), max(xs)), (min(ys), max(ys)))
    parts = [frame.axes(x_label, y_label)]
    for number, (name, values) in enumerate(finite.items(), start=1):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in values)
        parts.append(f'<polyline class="s{number}" points="{path}"><title>{escape(name)}</title></polyline>')
    return _svg("".join(parts), title) + (_legend(list(finite)) if len(finite) > 1 else "")


def bar_chart(
    values: Sequence[float], *, title: str, x_label: str, y_label: str, marked: Sequence[int] = (), marked_label: str = ""
) -> str:
    """One bar per position; `marked` positions take the second colour and are named by `marked_label`."""
    if not len(values):
        return ""
    finite = [float(v) if np.isfinite(v) else 0.0 for v in values]
    frame = _Frame((-0.5, len(finite) - 0.5), (0.0, max(*finite, 1e-9)))
    width = max(1.0, 0.8 * (frame.x(1) - frame.x(0)))
    parts = [frame.axes(x_label, y_label)]
    for i, value in enumerate(finite):
        kind = "b2" if i in marked else "b1"
        top = frame.y(max(value, 0.0))
        parts.append(
            f'<rect class="{kind}" x="{frame.x(i) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{frame.y(0) - top:.1f}"><title>{i}: {nice_number(value)}</title></rect>'
        )
    return _svg("".join(parts), title) + (_legend(["others", marked_label]) if marked and marked_label else "")


def _legend(names: list[str]) -> str:
    items = "".join(f'<span><i class="k{i}"></i>{escape(name)}</span>' for i, name in enumerate(names, start=1))
    return f'<p class="legend">{items}</p>'
