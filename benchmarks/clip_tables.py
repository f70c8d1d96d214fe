"""Markdown tables from the JSON lines of `benchmarks.clips`: a row per clip and variant, and what ours gains over naive."""

from statistics import median
from typing import Any

Line = dict[str, Any]
COLUMNS = {
    "train": ("train dB", 2),
    "heldout": ("held out dB", 2),
    "heldout_rigid": ("held out, rigid dB", 2),
    "ssim": ("SSIM", 3),
    "sharpness": ("sharpness of the input's", 2),
    "reprojection_px": ("reprojection px", 2),
    "flow_photometric": ("flow photometric", 4),
    "multi_layer": ("multi_layer", 3),
    "off_path_known": ("known 10 degrees off", 2),
    "off_path_px": ("reprojection there px", 2),
    "placed": ("placed", 0),
    "aligned": ("aligned", 0),
    "left_out": ("left out", 0),
    "splats": ("splats", 0),
}


def clip_tables(lines: list[Line]) -> str:
    """The table of all lines, the gains of each variant over naive on held-out frames, and what failed."""
    if not lines:
        return "nothing measured yet"
    header = ["clip", "variant", *(title for title, _ in COLUMNS.values()), "s"]
    rows = [_row(line) for line in lines if "error" not in line]
    parts = [_markdown(header, rows), *_gains(lines)]
    parts += [f"* {line['clip']}, {line['variant']}: {line['error']}" for line in lines if "error" in line]
    return "\n\n".join(parts)


def _row(line: Line) -> list[str]:
    cells = [f"{line[name]:.{digits}f}" if line.get(name) is not None else "" for name, (_, digits) in COLUMNS.items()]
    return [line["clip"], line["variant"], *cells, f"{sum(line['seconds'].values()):.0f}"]


def _gains(lines: list[Line]) -> list[str]:
    """Of each variant over naive: held-out dB, median, least and where."""
    naive = {line["clip"]: line for line in lines if line["variant"] == "naive" and "error" not in line}
    words = []
    for variant in dict.fromkeys(line["variant"] for line in lines if line["variant"] != "naive"):
        steps = {}
        for line in lines:
            base = naive.get(line["clip"])
            if line["variant"] == variant and base is not None and line.get("heldout") is not None and base.get("heldout") is not None:
                steps[line["clip"]] = line["heldout"] - base["heldout"]
        if steps:
            worst = min(steps, key=lambda clip: steps[clip])
            words.append(f"* {variant} over naive, held out: median {median(steps.values()):+.2f} dB, least {steps[worst]:+.2f} ({worst})")
    return ["\n".join(words)] if words else []


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
