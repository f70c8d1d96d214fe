"""Markdown tables from the JSON lines of `benchmarks.splatting`: medians over worlds, and the differences within each world."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

Line = dict[str, Any]
COLUMNS = {
    "psnr": "novel PSNR dB",
    "psnr_per_view": "one fit per view",
    "psnr_unbent": "common deformation out",
    "ssim": "SSIM",
    "heldout": "held-out frame PSNR dB",
    "heldout_ssim": "held-out SSIM",
    "reprojection_px": "reprojection px",
    "flow_photometric": "flow photometric",
    "sharpness": "sharpness of the input's",
    "splats": "splats",
    "seconds": "training s",
}
_DIGITS = {"ssim": 3, "heldout_ssim": 3, "reprojection_px": 3, "flow_photometric": 4, "splats": 0, "seconds": 0}
_COMPARED = ("psnr", "psnr_per_view", "psnr_unbent", "heldout")


def read_lines(paths: Iterable[Path]) -> list[Line]:
    """The lines of all files; of several with the same world, variant and budget the last counts."""
    lines: dict[str, Line] = {}
    for path in paths:
        for text in path.read_text().splitlines():
            if text.strip():
                line = json.loads(text)
                lines[json.dumps([line["world"], line["budget"], line["variant"]], sort_keys=True)] = line
    return list(lines.values())


def tables(lines: list[Line]) -> str:
    """One table per setting (all of a world but layout and seed, and the renderer): a row per variant and splat count."""
    parts = []
    for setting, part in _grouped(lines, _setting).items():
        columns = [name for name in COLUMNS if any(line.get(name) is not None for line in part)]
        header = ["variant", "worlds", *(COLUMNS[name] for name in columns)]
        first = (part[0]["variant"], part[0]["budget"]["count"])
        rows, gains = [], []
        for (variant, count), own in _grouped(part, lambda line: (line["variant"], line["budget"]["count"])).items():
            label = variant if count == 1 else f"{variant}, {count:g} x splats"
            rows.append([label, str(len(own)), *(_middle(own, name) for name in columns)])
            gains += [f"{label}: {words}" for words in _gains(own, part, first) if (variant, count) != first]
        listed = "\n".join(f"* {words}" for words in gains)
        parts.append(f"### {setting}\n\n{_markdown(header, rows)}\n\nOver {first[0]}, within a world, median (least):\n\n{listed}")
    return "\n\n".join(parts)


def _gains(own: list[Line], part: list[Line], first: tuple[str, float]) -> list[str]:
    """What a variant gains over the first one of its table."""
    base = {_world(line): line for line in part if (line["variant"], line["budget"]["count"]) == first}
    words = []
    for name in _COMPARED:
        pairs = [(line.get(name), base[_world(line)].get(name)) for line in own if _world(line) in base]
        steps = [a - b for a, b in pairs if a is not None and b is not None]
        if steps:
            words.append(f"{COLUMNS[name]} {median(steps):+.2f} ({min(steps):+.2f})")
    return [", ".join(words)] if words else []


def _middle(lines: list[Line], name: str) -> str:
    values = [line[name] for line in lines if line.get(name) is not None]
    return f"{median(values):.{_DIGITS.get(name, 2)}f}" if values else ""


def _world(line: Line) -> str:
    return json.dumps(line["world"], sort_keys=True)


def _setting(line: Line) -> str:
    """Heading of the worlds that differ by layout and seed only."""
    world, budget = line["world"], line["budget"]
    if "clip" in world:
        return f"{world['clip']}, {world['frames']} frames, {budget['renderer']}"
    height, width = world["size"]
    return f"{world['severity']}, {world['frames']} frames, {width}x{height}, {budget['renderer']}, {budget['iterations']} steps"


def _grouped(lines: list[Line], key: Any) -> dict[Any, list[Line]]:
    groups: dict[Any, list[Line]] = defaultdict(list)
    for line in lines:
        groups[key(line)].append(line)
    return groups


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
