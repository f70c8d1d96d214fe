"""What went wrong where: frames that were left out, that contradict each other, or that the world shows badly, each with pictures.

Frames are counted from 1 here, as the viewer and the verdict do.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.errors import InputError
from utils.registration.result import contradiction_words
from utils.report import pictures
from utils.report.pieces import picture
from utils.report.verdict import weak_frames
from utils.reporting import number_ranges
from utils.scene.clip_parts import Contradiction, clip_contradictions, clip_parts, words_about_parts
from utils.scene.layout import RunLayout
from utils.scene.media import read_image
from utils.types import Array, Scene

_MOST_SHOWN = 4
"""Pictures of a kind: they show what is wrong, the numbers say how often."""
_PAIR_WIDTH = 318
"""Pixels of either of two pictures side by side."""


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong.

    Attributes:
        words: what, where, and what it means.
        figures: HTML of pictures that show it.
    """

    words: str
    figures: tuple[str, ...]


def findings_of_parts(scene_root: Path) -> list[Finding]:
    """Which frames of the clip contradict each other, side by side, and what became of the parts; empty for a clip of one place."""
    words = words_about_parts(scene_root)
    if not words:
        return []
    pairs = clip_contradictions(scene_root)
    some = [pairs[k] for k in np.unique(np.linspace(0, len(pairs) - 1, min(_MOST_SHOWN, len(pairs))).astype(int))]
    figures = [figure for pair in some if (figure := _side_by_side(pair))]
    kept = [part.root for part in clip_parts(scene_root)[1:] if part.root is not None]
    commands = [f"Build another with: python run_reconstruction.py {shlex.quote(str(root))}" for root in kept]
    return [Finding(" ".join([*(f"{one[0].upper()}{one[1:]}." for one in words), *commands]), tuple(figures))]


def _side_by_side(pair: Contradiction) -> str:
    """Both frames in one picture; empty if one is gone or cannot be read."""
    try:
        shown = [pictures.fit_width(read_image(path), _PAIR_WIDTH) for path in pair.pictures]
    except InputError:
        return ""
    a, b = pair.frames
    return picture(pictures.grid([[shown[0], pictures.resized_to(shown[1], shown[0])]]), f"frames {a} and {b} of the clip, one spot")


def findings_of_alignment(report: dict[str, Any], scene: Scene | None) -> list[Finding]:
    """Frames that an alignment left out, and those that contradict each other.

    Args:
        report: `report.json` of the stage.
        scene: its frames, for the pictures; None for none.
    """
    found = []
    frames, aligned = report.get("frames") or [], report.get("aligned") or []
    out = [int(f) for f, good in zip(frames, aligned, strict=False) if not good]
    if out:
        words = (
            f"{len(out)} of {len(frames)} frames were left out, because they do not fit the others: {number_ranges([i + 1 for i in out])}."
        )
        found.append(Finding(words, _shown(scene, out[:_MOST_SHOWN], "left out")))
    pairs = [p["frames"] for p in report.get("contradictions", []) if isinstance(p, dict) and len(p.get("frames", ())) == 2]
    if pairs:
        ids = list(dict.fromkeys(i for pair in pairs for i in pair))[:_MOST_SHOWN]
        told = contradiction_words([(a + 1, b + 1) for a, b in pairs])
        found.append(Finding(f"{told[0].upper()}{told[1:]}. Expect doubled or faded things there.", _shown(scene, ids, "contradicts")))
    return found


def _shown(scene: Scene | None, ids: Sequence[int], words: str) -> tuple[str, ...]:
    if scene is None:
        return ()
    return tuple(picture(scene.images[i], f"frame {i + 1}, {words}") for i in ids if 0 <= i < len(scene))


def findings_of_splats(folder: Path, title: str, report: dict[str, Any], scene: Scene | None) -> list[Finding]:
    """Frames that the world shows much worse than most.

    Args:
        folder: `gs_<renderer>`.
        title: of it, empty where there is only one.
        report: its `report.json`.
        scene: its frames, for the pictures; None for none.
    """
    weak = weak_frames(report)
    if not weak:
        return []
    ids = [int(report["frames"][row].get("frame_id", row)) for row in weak]
    named = number_ranges(sorted(i + 1 for i in ids))
    figures = []
    for row, frame_id in list(zip(weak, ids, strict=True))[:_MOST_SHOWN]:
        render = render_of(folder, row)
        if scene is not None and render is not None and 0 <= frame_id < len(scene):
            figures.append(picture(pictures.disagreement(scene.images[frame_id], render), f"frame {frame_id + 1}"))
    around = f"round frame{'s' if len(ids) > 1 else ''} {named} the world shows another picture than the clip."
    words = f"{title}: a{around}" if title else f"A{around}"
    return [Finding(f"{words} Red: where they differ." if figures else words, tuple(figures))]


def render_of(folder: Path, row: int) -> Array | None:
    """(h, w, 3) uint8, the consistent world from a trained camera, if the evaluation kept it."""
    path = RunLayout.evaluation(folder) / "frames_optimised_poses" / f"frame_{row:05d}.png"
    image = cv2.imread(str(path)) if path.is_file() else None
    return None if image is None else image[..., ::-1]


def list_of(findings: list[Finding]) -> str:
    """Findings as HTML."""
    return "".join(f'<div class="finding"><p>{escape(f.words)}</p><div class="row four">{"".join(f.figures)}</div></div>' for f in findings)
