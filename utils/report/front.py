"""The first screen of the report: is my world good, what went wrong where, what to do next; with a film, a slider and a plan."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2

from utils.report.findings import Finding, list_of, render_of
from utils.report.pieces import film, missing, picture, slider
from utils.report.verdict import Verdict, verdict
from utils.scene.layout import RunLayout
from utils.types import Array, Scene

FILMS = (("clip_and_world.mp4", "the clip, and the world from the same camera"), ("fly_through.mp4", "a flight through the world"))
"""Small films of the evaluation, in `report_pictures`, and what they show."""
_MARKS = {"excellent": "★", "good": "✔", "usable": "◐", "poor": "✘"}


@dataclass(frozen=True)
class Trained:
    """Trained splats as the report shows them.

    Attributes:
        folder: `gs_<renderer>`.
        title: for people; empty where there is only one.
        report: its `report.json`.
    """

    folder: Path
    title: str
    report: dict[str, object]

    @property
    def pictures(self) -> Path:
        """Folder of the pictures that its evaluation made for the report."""
        return RunLayout.evaluation(self.folder) / "report_pictures"


def verdict_section(trained: list[Trained]) -> str:
    """The verdict on each kind of splats, and films of it."""
    parts = []
    for one in trained:
        judged = verdict(one.folder)
        title = f"<h3>{escape(one.title)}</h3>" if one.title else ""
        films = "".join(film(one.pictures / name, words) for name, words in FILMS)
        if films:
            where = RunLayout.evaluation(one.folder).relative_to(one.folder.parent.parent).as_posix()
            films = f'<div class="row films">{films}</div>' + _caption(f"At full size: {where}/")
        parts.append(title + (_words(judged) if judged else missing("These splats were not measured: python -m eval_gs does.")) + films)
    return "".join(parts) or missing("No stage has trained splats yet, so there is no world to judge.")


def _words(judged: Verdict) -> str:
    head, _, rest = judged.words.partition(":")
    reason = judged.reason[0].upper() + judged.reason[1:]
    avoid = f'<p class="avoid"><b>Parts to avoid:</b> {escape(judged.avoid)}.</p>' if judged.avoid else ""
    mark = f'<span aria-hidden="true">{_MARKS[judged.grade]}</span> '
    return (
        f'<div class="verdict {judged.grade}"><p class="grade">{mark}<b>{escape(head)}</b>:{escape(rest)}.</p>'
        f"<p>{escape(reason)}.</p>{avoid}</div>"
    )


def wrong_section(findings: list[Finding], warnings: str) -> str:
    """What went wrong where."""
    return (
        list_of(findings) or "<p>No frame was left out, none contradicts another, and none is much worse than the others.</p>"
    ) + warnings


def next_section(trained: list[Trained], scene_root: Path) -> str:
    """What to do next: one command, and how to look at what there is."""
    judged = [v for one in trained if (v := verdict(one.folder)) is not None]
    if not judged:
        again = f"python run_reconstruction.py --config.root-path {scene_root}"
        return f"<p>Go on with the run; finished stages are kept.</p>{command(again)}"
    worst = min(judged, key=lambda v: v.psnr)
    words = worst.advice or "Nothing easy is left to gain. Put the world into one file that anybody can open:"
    return f"<p>{escape(words)}</p>{command(worst.command)}"


def command(line: str) -> str:
    """A command line, in one piece."""
    return f'<pre class="command" tabindex="0"><code>{escape(line)}</code></pre>'


def before_after(ours: Trained, naive: Trained | None, scene: Scene | None) -> str:
    """Splatted naively against ours where both were rendered, else a frame of the clip against the world."""
    if naive is not None:
        for path in sorted(ours.pictures.glob("frame_*_1_consistent_world.jpg")):
            before, after = _read(naive.pictures / path.name), _read(path)
            if before is not None and after is not None:
                return slider(before, "splatted without alignment", after, "this world") + _caption("The same frames, the same camera.")
    rows = ours.report.get("frames")
    for path in sorted(ours.pictures.glob("frame_*_1_consistent_world.jpg"), key=lambda p: "held_out" in p.name)[1:2]:
        number = int(path.name.split("_")[1])
        render, row = None, next((i for i, r in enumerate(rows) if r.get("frame_id") == number), None) if isinstance(rows, list) else None
        if row is not None:
            render = render_of(ours.folder, row)
        render = _read(path) if render is None else render
        if scene is not None and render is not None and number < len(scene):
            note = f"Frame {number + 1} of {len(scene)}, and the world from where it was taken."
            return slider(scene.images[number], "the clip", render, "this world") + _caption(note)
    return missing("No renders beside their frames: python -m eval_gs makes them.")


def plan_section(trained: list[Trained]) -> str:
    """The world from above: what frames know, and where the cameras were."""
    for one in trained:
        image = _read(one.pictures / "coverage_from_above.jpg")
        if image is not None:
            note = (
                "From how many directions, at least 5 degrees apart, each part is known: violet none, dark red eight and more. "
                "Warm parts look right from anywhere near, cold ones only from where the clip saw them. "
                "Cameras: white trained on, yellow held out, red left out."
            )
            return f'<div class="plan">{picture(image, "the world from above")}</div>{_caption(note)}'
    return ""


def _caption(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'


def _read(path: Path) -> Array | None:
    image = cv2.imread(str(path)) if path.is_file() else None
    return None if image is None else image[..., ::-1]
