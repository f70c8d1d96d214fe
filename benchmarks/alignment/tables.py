"""Markdown tables from the JSON lines of `benchmarks.alignment`: medians over seeds (and layouts), and the least.

"Over" tables compare two variants within each world: how much more of the removable error one removes than the other (which cannot exceed
100 over the other's share), and how many times the median distance of corresponding points it leaves.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.alignment.variants import ABLATIONS, VARIANTS

Line = dict[str, Any]


def read_lines(paths: Iterable[Path]) -> list[Line]:
    """The lines of all files; of several with the same world and variant the last counts."""
    lines: dict[str, Line] = {}
    for path in paths:
        for text in path.read_text().splitlines():
            if text.strip():
                line = json.loads(text)
                lines[json.dumps([line["world"], line["variant"]], sort_keys=True)] = line
    return list(lines.values())


def tables(lines: list[Line]) -> str:
    """Of every setting (all of a world but layout, seed and length): removed by layout, all figures by variant, and comparisons."""
    parts = []
    for setting, part in _grouped(lines, _setting).items():
        parts.append(f"### {setting}")
        if any(line["variant"] in ABLATIONS for line in part):
            parts.append(ablation_table(part))
            continue
        parts.append(f"Removed, percent: median over seeds (least).\n\n{removed_table(part)}\n\n{variant_table(part)}")
        compared = over_table(part)
        if compared:
            parts.append(compared)
    failed = [f"{line['variant']} ({line['error']})" for line in lines if line.get("error")]
    if failed:
        parts.append("Not run: " + "; ".join(sorted(set(failed))))
    return "\n\n".join(parts)


def removed_table(lines: list[Line]) -> str:
    """One row per layout and length, one column per variant."""
    done = [line for line in lines if "removed" in line]
    variants = [v for v in _variants(done) if v not in ("input", "oracle")]
    rows = []
    for (layout, frames), part in _grouped(done, lambda line: (line["world"]["layout"], line["world"]["frames"])).items():
        cells = []
        for variant in variants:
            values = [line["removed"] for line in part if line["variant"] == variant]
            cells.append(f"{median(values):.1f} ({min(values):.1f})" if values else "")
        rows.append([f"{layout}, {frames} frames", *cells])
    return _markdown(["world", *variants], rows)


def variant_table(lines: list[Line]) -> str:
    """One row per length and variant, over all layouts and seeds."""
    columns = (
        "frames, variant | worlds | removed (least) | consistency | thickness | error to truth | of the input's (worst) | F-score | ATE "
        "| of the input's (worst) | worse | fit scale | left out | seconds"
    ).split(" | ")
    rows = []
    done = [line for line in lines if "removed" in line]
    for frames, part in _grouped(done, lambda line: line["world"]["frames"]).items():
        for variant in _variants(part):
            own = [line for line in part if line["variant"] == variant]
            rows.append([f"{frames}, {variant}", *_figures(own)])
    return _markdown(columns, rows)


def ablation_table(lines: list[Line]) -> str:
    """One row per variant: `ours` with one thing changed, its figures and the change of the share that is removed, within a world."""
    done = [line for line in lines if "removed" in line]
    ours = {_world(line): line for line in done if line["variant"] == "ours"}
    rows = []
    for variant in _variants(done):
        own = [line for line in done if line["variant"] == variant and variant not in ("input", "oracle")]
        if own:
            change = [line["removed"] - ours[_world(line)]["removed"] for line in own if _world(line) in ours]
            moved = f"{median(change):+.1f}" if change and variant != "ours" else ""
            cells = _figures(own)
            rows.append([variant, cells[0], cells[1], moved, cells[3], cells[5], cells[8], cells[10], cells[-1]])
    columns = [
        "variant",
        "worlds",
        "removed (least)",
        "against ours",
        "thickness",
        "error to truth / input's (worst)",
        "ATE / input's (worst)",
    ]
    return _markdown([*columns, "fit scale", "seconds"], rows)


def over_table(lines: list[Line]) -> str:
    """One row per length and other variant: `ours` over it within a world, median (least); empty if nothing is to be compared."""
    rows = []
    for frames, part in _grouped([line for line in lines if "removed" in line], lambda line: line["world"]["frames"]).items():
        ours = {_world(line): line for line in part if line["variant"] == "ours"}
        for variant in _variants(part):
            if variant in ("input", "ours", "oracle"):
                continue
            pairs = [(ours[_world(line)], line) for line in part if line["variant"] == variant and _world(line) in ours]
            if not pairs:
                continue
            more = [a["removed"] / b["removed"] if b["removed"] > 0 else float("inf") for a, b in pairs]
            left = [b["consistency"] / a["consistency"] for a, b in pairs]
            better = sum(a["removed"] > b["removed"] for a, b in pairs)
            cells = [f"{median(v):.2f} ({min(v):.2f})" for v in (more, left)]
            rows.append([f"{frames}, ours over {variant}", f"{better}/{len(pairs)}", *cells])
    return _markdown(["frames, variants", "better on", "removed, times (least)", "distance left, times less (least)"], rows) if rows else ""


def _world(line: Line) -> str:
    return json.dumps(line["world"], sort_keys=True)


def _figures(lines: list[Line]) -> list[str]:
    """The cells of one variant."""

    def values(name: str) -> list[float]:
        return [line[name] for line in lines if line.get(name) is not None]

    def middle(name: str, digits: int) -> str:
        return f"{median(values(name)):.{digits}f}" if values(name) else ""

    def ratio(name: str) -> list[float]:
        return [line[name] / line[f"{name}_input"] for line in lines if line.get(name) is not None and line[f"{name}_input"] > 0]

    error, path, scale = ratio("error_to_truth"), ratio("ate"), values("fit_scale")
    return [
        str(len(lines)),
        f"{middle('removed', 1)} ({min(values('removed')):.1f})",
        middle("consistency", 3),
        middle("thickness", 3),
        middle("error_to_truth", 2),
        f"{median(error):.2f} ({max(error):.2f})",
        middle("f_score", 3),
        middle("ate", 3),
        f"{median(path):.2f} ({max(path):.2f})" if path else "",
        f"{sum(r > 1 for r in path)}/{len(path)}" if path else "",
        f"{min(scale):.3f} to {max(scale):.3f}",
        str(sum(line["left_out"] for line in lines)),
        middle("seconds", 1),
    ]


def _setting(line: Line) -> str:
    """Heading of the worlds that differ by layout, seed and length only."""
    world = line["world"]
    kept = {name: value for name, value in world.items() if name not in ("layout", "seed", "frames", "size")}
    height, width = world["size"]
    return f"{width}x{height}, " + ", ".join(f"{name} {value}" for name, value in kept.items())


def _variants(lines: list[Line]) -> list[str]:
    """Names in the order of the registry, unknown ones last."""
    names = {line["variant"] for line in lines}
    order = list(VARIANTS)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _grouped(lines: list[Line], key: Callable[[Line], Any]) -> dict[Any, list[Line]]:
    """The lines by key, keys in order."""
    groups: dict[Any, list[Line]] = defaultdict(list)
    for line in lines:
        groups[key(line)].append(line)
    return dict(sorted(groups.items()))


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    head = f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])
