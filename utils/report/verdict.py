"""Whether a world is good, in one word, with the reason and what to do next.

Judged by the consistent world as viewers and exported files show it (frames rendered without their own deformation), on frames that
training never saw. A figure through each frame's deformation flatters: it forgives what a visitor will see. Reads nothing but what
stages wrote as JSON, so a server need not load PyTorch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.scene.artifacts import json_object
from utils.scene.layout import RunLayout

Grade = Literal["excellent", "good", "usable", "poor"]
# Least PSNR in dB of each grade, set by eye on four generated clips: 25.0 and 24.4 dB were whole rooms with soft texture, 20.3 dB held near
# the clip's views, 10 dB was fog. Measured at the training's resolution, which is named beside it: it says nothing about finer detail.
_LEAST: tuple[tuple[Grade, float], ...] = (("excellent", 25.0), ("good", 21.0), ("usable", 17.0))
_WORDS: dict[Grade, str] = {
    "excellent": "Excellent: in one piece, and true to the clip",
    "good": "Good: in one piece, fine texture is soft",
    "usable": "Usable near the clip's own views; fog and doubled edges elsewhere",
    "poor": "Poor: the frames did not come together to one world",
}
# A frame this many dB below the median of all is worth a warning.
_WEAK_DB = 4.0
_MOST_NAMED = 6


@dataclass(frozen=True)
class Verdict:
    """What people want to know first.

    Attributes:
        grade: one of four.
        words: it in a sentence.
        reason: the figure it rests on.
        avoid: which parts of the clip are weaker, empty if none.
        advice: what to try next, empty if nothing is to be gained easily.
        psnr: of the consistent world, in dB.
    """

    grade: Grade
    words: str
    reason: str
    avoid: str
    advice: str
    psnr: float


def verdict(folder: Path, mode: str = "") -> Verdict | None:
    """The verdict on the splats of a checkpoint folder; None if they were not measured.

    Args:
        folder: `gs_<renderer>`.
        mode: preset of the run, for the advice; empty if it is not known.
    """
    metrics, report = json_object(RunLayout.evaluation(folder) / "metrics.json"), json_object(folder / "report.json")
    psnr, on = _consistent(metrics, report)
    if psnr is None:
        return None
    grade: Grade = next((g for g, least in _LEAST if psnr >= least), "poor")
    return Verdict(
        grade=grade,
        words=_WORDS[grade],
        reason=f"the world as it is shown agrees with {on} to {psnr:.1f} dB{_at_size(metrics)}",
        avoid=_weak_frames(report),
        advice=_advice(grade, mode),
        psnr=psnr,
    )


def _consistent(metrics: dict[str, Any], report: dict[str, Any]) -> tuple[float | None, str]:
    """PSNR without deformation and the frames it was measured on."""
    for part, words in (("heldout", "frames it never saw"), ("train", "the frames it was trained on")):
        found = _number(metrics.get(part), "canonical_psnr") or _number(report, f"{part}_psnr_rigid")
        if found is not None:
            return found, words
    return None, ""


def _at_size(metrics: dict[str, Any]) -> str:
    size = metrics.get("size")
    return f" at {size[1]} x {size[0]} pixels" if isinstance(size, list) and len(size) == 2 else ""


def _weak_frames(report: dict[str, Any]) -> str:
    rows = [r for r in report.get("frames") or [] if isinstance(r, dict) and _number(r, "psnr_rigid") is not None]
    if len(rows) < 4:
        return ""
    values = sorted(float(r["psnr_rigid"]) for r in rows)
    median = values[len(values) // 2]
    weak = [i for i, r in enumerate(rows) if r["psnr_rigid"] < median - _WEAK_DB]
    if not weak:
        return ""
    named = ", ".join(str(i + 1) for i in weak[:_MOST_NAMED]) + (" and more" if len(weak) > _MOST_NAMED else "")
    return f"weaker around frame{'s' if len(weak) > 1 else ''} {named} of {len(rows)}"


def _advice(grade: Grade, mode: str) -> str:
    if grade == "poor":
        return "Take a clip in which the camera travels sideways or around, without cuts, or use more frames of this one."
    if mode == "fast":
        return (
            "The Extensive preset shows more detail." if grade != "usable" else "The Extensive preset uses more frames, which often helps."
        )
    return "More frames of the clip often help." if grade == "usable" else ""


def _number(values: Any, key: str) -> float | None:
    value = values.get(key) if isinstance(values, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
