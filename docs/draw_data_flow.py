"""Draws `docs/data-flow.svg`: which stage reads and writes what. Run it after changing a stage: `python docs/draw_data_flow.py`."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

OUT = Path(__file__).with_name("data-flow.svg")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        title: what it is called.
        package: where its code starts.
        does: one line.
        writes: its artifact in the scene folder; "" for a source.
        holds: what the artifact holds.
        reads: titles of the steps whose artifacts it reads.
    """

    title: str
    package: str
    does: str
    writes: str
    holds: str
    reads: tuple[str, ...] = ()


# title | where the code starts | what it does | what it writes | what that holds | whose artifacts it reads
_TABLE = """
clip | | MP4, GIF, or a folder of frames | | |
0 geometry | preprocess/ | cameras and depth of the chosen frames | exports/npz/results.npz | images, depth, confidence, cameras | clip
1 frame-to-model | frame_to_model_icp/ | each frame against those before it | after_non_rigid_icp/ | poses, lattices, cloud | 0 geometry
2 joint | global_optimization/ | all frames, loop closures | after_global_optimization/ | the same, better | 0 geometry, 1 frame-to-model
3.1 inverse | train_inverse_deformation/ | canonical space back to each camera | inverse_deformation/ | inverse of every lattice | 2 joint
3.2 splats | train_gs/ | Gaussians seen through the inverse | gs_3dgs/, gs_2dgs/ | splats, cameras | 0 geometry, 2 joint, 3.1 inverse
evaluation | eval_gs/ | films, held-out views | gs_video_eval/, report.html | films | 0 geometry, 3.1 inverse, 3.2 splats
export, viewer | utils/exports, viewer | other programs, browser | PLY, SPZ, mesh, COLMAP ... | the consistent world | 2 joint, 3.2 splats
"""


def _step(row: str) -> Step:
    *texts, reads = (cell.strip() for cell in row.split("|"))
    return Step(*texts, tuple(filter(None, reads.split(", "))))


STEPS = tuple(_step(row) for row in _TABLE.strip().splitlines())
ROW, BOX, PILL, LANES, LANE, WIDTH = 84, (20, 350), (480, 290), 385, 13, 790
_STYLE = """
text{font:13px system-ui,sans-serif;fill:#1d2733}.t{font-weight:600;font-size:14px}.s{fill:#5b6875;font-size:12px}
.m{font:12px ui-monospace,monospace}
.box{fill:#e8f0fb;stroke:#3b6fb6}.file{fill:#fdf3dc;stroke:#c08a1e}path{fill:none;stroke:#5b6875;stroke-width:1.4}.bg{fill:#fff}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9aa7b4}.box{fill:#17263b}.file{fill:#33290f}path{stroke:#9aa7b4}.bg{fill:#0d1117}}
"""


def draw() -> str:
    """The picture as SVG text."""
    parts = [f'<rect class="bg" width="{WIDTH}" height="{ROW * len(STEPS) + 16}"/>']
    place = {step.title: 16 + ROW * i for i, step in enumerate(STEPS)}
    for i, step in enumerate(STEPS):
        y = place[step.title]
        parts.append(f'<rect class="box" x="{BOX[0]}" y="{y}" width="{BOX[1]}" height="58" rx="8"/>')
        parts.append(_text(BOX[0] + 12, y + 22, "t", step.title) + _text(BOX[0] + BOX[1] - 12, y + 22, "m s", step.package, "end"))
        parts.append(_text(BOX[0] + 12, y + 44, "s", step.does))
        if step.writes:
            parts.append(f'<rect class="file" x="{PILL[0]}" y="{y}" width="{PILL[1]}" height="58" rx="20"/>')
            parts.append(_text(PILL[0] + 18, y + 24, "m", step.writes) + _text(PILL[0] + 18, y + 44, "s", step.holds))
            parts.append(f'<path marker-end="url(#to)" d="M{BOX[0] + BOX[1]} {y + 16}H{PILL[0] - 3}"/>')
        parts += [_bus(place, i, step, reader) for reader in STEPS if step.title in reader.reads]
    marker = '<marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    marker += '<path d="M0 0L8 4L0 8"/></marker>'
    size = f'viewBox="0 0 {WIDTH} {ROW * len(STEPS) + 16}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="Data flow"><style>{_STYLE}</style><defs>{marker}</defs>'
        + ("\n".join(parts) + "</svg>\n")
    )


def _bus(place: dict[str, int], lane: int, source: Step, reader: Step) -> str:
    """A line from an artifact down its own lane and left into a later step."""
    below, order = place[reader.title], reader.reads.index(source.title)
    if not source.writes:
        return f'<path marker-end="url(#to)" d="M{BOX[0] + 40} {place[source.title] + 58}V{below - 3}"/>'
    x, y = LANES + LANE * lane, place[source.title] + 40
    return f'<path marker-end="url(#to)" d="M{PILL[0]} {y}H{x}V{below + 30 + 10 * order}H{BOX[0] + BOX[1] + 3}"/>'


def _text(x: int, y: int, style: str, words: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


if __name__ == "__main__":
    OUT.write_text(draw())
