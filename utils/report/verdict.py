"""Whether a world is good, in one word, with the reason and what to do next: what console, page and report say alike.

Judged by the consistent world as viewers and exported files show it (frames rendered without their own deformation), on frames that
training never saw. A figure through each frame's deformation flatters: it forgives what a visitor will see. Reads nothing but what
stages wrote as JSON, so a server need not load PyTorch.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.scene.json_files import json_object
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.manifest import in_scene

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
# A clip whose frames are bent against each other cannot agree with any one world to more than about 20 dB where its texture is fine. The
# world is good all the same if it is sharp and every frame, its bend taken out, agrees: fog is neither.
_BENT_WORDS = "Good: sharp and in one piece; the clip's frames are bent against each other, and so against the world"
_BENT_LEAST_DB, _BENT_LEAST_SHARPNESS = 26.0, 0.5
# A frame this many dB below the median of all is worth a warning.
_WEAK_DB = 4.0
_MOST_NAMED = 6
# Off the clip's path, a share of the picture below this is more hole than world.
_LEAST_KNOWN = 0.85


@dataclass(frozen=True)
class Verdict:
    """What people want to know first.

    Attributes:
        grade: one of four.
        words: it in a sentence.
        reason: the figure it rests on.
        avoid: which parts are weaker, empty if none.
        advice: what to try next, empty if nothing is to be gained easily.
        command: the command line that does it, or that shows the world to somebody where there is nothing to gain.
        psnr: of the consistent world, in dB.
    """

    grade: Grade
    words: str
    reason: str
    avoid: str
    advice: str
    command: str
    psnr: float

    def lines(self) -> list[str]:
        """For a terminal: verdict, reason, and what to do."""
        avoid = f"; {self.avoid}" if self.avoid else ""
        return [f"{self.words}.", f"{self.reason[0].upper()}{self.reason[1:]}{avoid}.", *([self.advice] if self.advice else [])]


def verdict(folder: Path, mode: str = "") -> Verdict | None:
    """The verdict on the splats of a checkpoint folder; None if they were not measured.

    Args:
        folder: `gs_<renderer>` in a run of a scene.
        mode: preset of the run, for the advice; empty takes what the scene's summary says.
    """
    metrics, report = json_object(RunLayout.evaluation(folder) / "metrics.json"), json_object(folder / "report.json")
    psnr, on, part = _consistent(metrics, report)
    if psnr is None:
        return None
    grade: Grade = next((g for g, least in _LEAST if psnr >= least), "poor")
    words, reason = _WORDS[grade], f"the world as it is shown agrees with {on} to {psnr:.1f} dB{_at_size(metrics)}"
    bent = _number(part, "psnr")
    if grade == "usable" and bent is not None and bent >= _BENT_LEAST_DB and _sharpness(part) >= _BENT_LEAST_SHARPNESS:
        grade, words = "good", _BENT_WORDS
        reason += f", and to {bent:.1f} dB with each frame's bend taken out"
    root = folder.parent.parent
    advice, flags = _advice(grade, root, mode)
    return Verdict(
        grade=grade,
        words=words,
        reason=reason,
        avoid="; ".join(p for p in (_weak_words(report), _off_path(metrics)) if p),
        advice=advice,
        command=_command(root, flags),
        psnr=psnr,
    )


def weak_frames(report: dict[str, Any]) -> list[int]:
    """Rows of the training's frames that agree much worse with the consistent world than most, worst first."""
    rows = _rated(report)
    if len(rows) < 4:
        return []
    values = sorted(value for _, value in rows)
    median = values[len(values) // 2]
    return [i for value, i in sorted((value, i) for i, value in rows) if value < median - _WEAK_DB]


def _rated(report: dict[str, Any]) -> list[tuple[int, float]]:
    """Row and PSNR of each frame that has one."""
    rows = [_number(r, "psnr_rigid") for r in report.get("frames") or []]
    return [(i, value) for i, value in enumerate(rows) if value is not None]


def _consistent(metrics: dict[str, Any], report: dict[str, Any]) -> tuple[float | None, str, Any]:
    """PSNR without deformation, the frames it was measured on, and what else was measured on them."""
    for part, words in (("heldout", "frames it never saw"), ("train", "the frames it was trained on")):
        found = _number(metrics.get(part), "canonical_psnr") or _number(report, f"{part}_psnr_rigid")
        if found is not None:
            return found, words, metrics.get(part)
    return None, "", None


def _at_size(metrics: dict[str, Any]) -> str:
    size = metrics.get("size")
    return f" at {size[1]} x {size[0]} pixels" if isinstance(size, list) and len(size) == 2 else ""


def _sharpness(part: Any) -> float:
    """Of the world, as a share of the frames'; 0 where it was not measured."""
    world, frames = _number(part, "sharpness"), _number(part, "input_sharpness")
    return world / frames if world is not None and frames else 0.0


def _weak_words(report: dict[str, Any]) -> str:
    weak, count = sorted(weak_frames(report)), len(report.get("frames") or [])
    if not weak:
        return ""
    named = ", ".join(str(i + 1) for i in weak[:_MOST_NAMED]) + (" and more" if len(weak) > _MOST_NAMED else "")
    return f"weaker around frame{'s' if len(weak) > 1 else ''} {named} of {count}"


def _off_path(metrics: dict[str, Any]) -> str:
    off_path = metrics.get("off_path")
    known, degrees = _number(off_path, "known"), _number(off_path, "degrees")
    if known is None or degrees is None or known >= _LEAST_KNOWN:
        return ""
    return f"stay near the clip's path: {degrees:.0f} degrees off it {1 - known:.0%} of the picture was never seen by two frames"


def _advice(grade: Grade, root: Path, mode: str) -> tuple[str, list[str]]:
    """What to try next, and the flags that do it."""
    mode = mode or str(_settings(root).get("mode", ""))
    preprocess = json_object(SceneLayout(root).preprocess_json)
    used, clip = _number(preprocess, "num_frames_used"), preprocess.get("clip_frames")
    there = int(_number(preprocess, "shown") or 0)  # of a clip of several places those that show this one
    there = there or (sum(n for n in clip if isinstance(n, int)) if isinstance(clip, list) else 0)
    more = ["--stage0.max-frames", str(int(min(there, 2 * used)))] if used and there > used else []
    if grade == "poor":
        if more:
            return "Use more frames of the clip; if that does not help, take one in which the camera travels, without cuts.", more
        return "Take a clip in which the camera travels sideways or around, without cuts.", []
    extensive = ["--mode", "extensive"] if mode == "fast" else []
    if grade == "usable":
        return (
            ("The Extensive preset uses more frames, which often helps.", extensive) if extensive else _if("More frames often help.", more)
        )
    return _if("The Extensive preset shows more detail.", extensive)


def _if(advice: str, flags: list[str]) -> tuple[str, list[str]]:
    return (advice, flags) if flags else ("", [])


def _command(root: Path, flags: list[str]) -> str:
    """The command line with these flags on the scene's own source; without flags, the one that writes a page to show."""
    scene = shlex.quote(str(root))
    if not flags:
        return f"python -m utils.export_checkpoint_to_ply --config.root-path {scene} --config.format html"
    config = _settings(root)
    given = config.get("input_video") or [config.get("frames_dir")]
    paths = [Path(path) for path in given if isinstance(path, str)] if isinstance(given, list) else []
    # Where it was, or beside the scene: a path that was typed in another folder leads nowhere here.
    found = [next((p for p in (in_scene(root, path), root.parent / path.name) if p is not None and p.exists()), None) for path in paths]
    sources = [str(path) for path in found if path is not None]
    if not sources:  # the clip is gone: what was made of it is not
        sources, given_root = [str(root)], False
    else:
        given_root = bool(config.get("root_path"))
    named = ["--root-path", str(root)] if given_root else []
    return " ".join(["video-to-world", *map(shlex.quote, [*sources, *named, *flags])])


def _settings(root: Path) -> dict[str, Any]:
    """Of the whole run."""
    config = json_object(SceneLayout(root).summary_json).get("config")
    return config if isinstance(config, dict) else {}


def _number(values: Any, key: str) -> float | None:
    value = values.get(key) if isinstance(values, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
