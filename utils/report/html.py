"""`<scene_root>/report.html`: one self-contained page about a run, made from what its stages left on disk.

Nothing is computed anew that a stage should have measured, and nothing is required: a part whose data is missing is replaced by one
sentence that says so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

import cv2
import numpy as np

from utils.errors import ArtifactError
from utils.report import pictures
from utils.report.alignment_pictures import extent, thinned, unaligned_cloud
from utils.report.charts import bar_chart, line_chart, nice_number
from utils.report.findings import findings_of_alignment, findings_of_parts, findings_of_splats
from utils.report.front import Trained, before_after, next_section, plan_section, verdict_section, wrong_section
from utils.report.pieces import missing, picture, png_file, table
from utils.report.style import PAGE, SCRIPT, STYLE
from utils.scene.artifacts import load_alignment, load_scene
from utils.scene.json_files import json_object
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.manifest import MANIFEST, PICTURES
from utils.scene.transaction import publish_file
from utils.types import Alignment, Scene

_CLOUD_WIDTH = 400
_STRIP_FRAMES = 8
_MAX_CLOUD_POINTS = 400_000
_MAX_CHARTS_PER_STAGE = 6
# Parts of a stage's report that are shown elsewhere or say nothing as a curve.
_NO_CURVES = frozenset(
    {
        "frames",
        "pairs",
        "contradictions",
        "aligned",
        "residual_before",
        "residual_after",
        "seconds",
        "heldout",
        "displacement_median",
        "displacement_p95",
    }
)
# The export command's record beside a checkpoint, as `utils.exports.check` names it.
EXPORT_RECORD = "exports.json"
# Formats that lose nothing, and the decibels from which two pictures look the same.
_EXACT_FORMATS, _ALIKE_DB = ("ply", "glb", "usd"), 45.0
_DISCS = (
    "This world is made of discs (2DGS), files hold thin ellipsoids. Programs that draw ellipsoids widen each by half a pixel, discs are "
    "drawn as they are: at the small size of the training that shows, and less the larger the picture (on the demo 31 dB at 252 pixels "
    "of width, 38 at 504, 45 at 1008). Nothing is lost in the file. Train with --config.renderer 3dgs where files must match to the pixel."
)
# Names of trainings that others are compared with.
_BASELINE = "naive"
# Entries of a manifest's backends that speak of weights, not of a choice.
_WEIGHTS = ("weights", "weights_license")
_ROMA_LICENCES = "code MIT; its DINOv3 backbone has weights under Meta's DINOv3 licence"

STAGE_TITLES = {
    "npz": "Geometry (stage 0)",
    "after_non_rigid_icp": "Frame-to-model alignment (stage 1)",
    "after_global_optimization": "Global optimisation (stage 2)",
    "inverse_deformation": "Inverse deformation (stage 3.1)",
    "gs_3dgs": "Splatting, 3DGS (stage 3.2)",
    "gs_2dgs": "Splatting, 2DGS (stage 3.2)",
}
METRIC_NAMES = {
    "psnr": "PSNR, through the deformation (dB)",
    "ssim": "SSIM, through the deformation",
    "lpips": "LPIPS, through the deformation",
    "rigid_psnr": "PSNR, consistent world in the frame's colours (dB)",
    "canonical_psnr": "PSNR, consistent world as it is (dB)",
    "canonical_ssim": "SSIM, consistent world as it is",
    "sharpness": "Sharpness of renders (Laplacian variance)",
    "input_sharpness": "Sharpness of input frames",
    "reprojection_px": "Flow against depth and cameras (px, median)",
    "flow_round_trip_px": "Flow round trip (px, mean)",
    "flow_photometric": "Colour difference along flow (0..1)",
    "novel_psnr": "PSNR, one placement for all views (dB)",
    "novel_ssim": "SSIM, one placement for all views",
    "novel_psnr_per_view": "PSNR, each view placed by itself (dB)",
    "novel_ssim_per_view": "SSIM, each view placed by itself",
    "novel_misfit": "Distance of points from the truth (share of depth, median)",
    "coverage": "Share of pixels measured",
}


@dataclass
class _Stage:
    """What one artifact folder says about itself."""

    folder: Path
    title: str
    manifest: dict[str, Any]
    report: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.folder.name


# In the first lines of every report that was ever written.
_SIGNATURE = b"--ground: #fbfbf9; --card: #ffffff"


@dataclass(frozen=True)
class ReportData:
    """What a report takes from the stages before the splats, which takes the longest to read.

    Attributes:
        scene: None if it cannot be read.
        alignment: the newest of the newest run; None if none can be read.
        clouds: the section about its cloud.
    """

    scene: Scene | None
    alignment: Alignment | None
    clouds: str


def read_for_report(scene_root: Path) -> ReportData:
    """Reads what `write_report` shows of the stages before the splats: it can be done while these are still evaluated."""
    run = _newest_run(SceneLayout(scene_root))
    scene, alignment = _scene(scene_root), _newest_alignment(run)
    return ReportData(scene, alignment, _clouds(scene, alignment))


def write_report(scene_root: Path, read: ReportData | None = None) -> Path:
    """Writes the report of the newest run of a scene; returns its path.

    Args:
        scene_root: the scene.
        read: what was read of it before; None reads it now.
    """
    layout = SceneLayout(scene_root)
    run = _newest_run(layout)
    stages = _collect_stages(layout, run)
    read = read or read_for_report(scene_root)
    scene, alignment = read.scene, read.alignment
    trained = _trained(stages)
    front = [
        ("Is the world good?", verdict_section(trained)),
        ("What went wrong, and where", _what_went_wrong(scene_root, stages, trained, scene, alignment)),
        ("What to do next", next_section(trained, scene_root)),
        ("Before and after", before_after(trained[-1], _naive(layout, trained[-1]), scene) if trained else ""),
        ("What the clip saw", plan_section(trained)),
        ("At a glance", _glance(stages, scene, alignment)),
    ]
    sections = [
        ("Input", _input_strip(scene)),
        ("Renders beside inputs", _renders(stages)),
        ("Cloud before and after alignment", read.clouds),
        ("Agreement with held-out pairs", _held_out(stages)),
        ("Quality", _quality(stages, _baselines(layout, run))),
        ("Exported files", _exports(stages)),
        ("Curves and residuals", _curves(stages)),
        ("Time and memory", _timings(stages, json_object(layout.summary_json))),
        ("Backends and licences", _backends(stages)),
        ("Settings and seeds", _settings(stages)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in front if content)
    body += "".join(
        f'<section><details class="part"><summary><h2>{title}</h2></summary>{content}</details></section>'
        for title, content in sections
        if content
    )
    title = f"{scene_root.resolve().name}: report"
    subtitle = f"Run {run.root.name}" if run else "No alignment run yet"
    filled = {"title": escape(title), "subtitle": escape(subtitle), "style": STYLE, "script": SCRIPT, "body": body}
    page = PAGE
    for name, text in filled.items():  # the body last: what is in it is not looked at again
        page = page.replace(f"{{{name}}}", text)
    with publish_file(layout.report_html, signature=_SIGNATURE) as path:
        path.write_text(page, encoding="utf-8")
    return layout.report_html


# ------------------------------------------------------------------------------------------------ reading


def _newest_run(layout: SceneLayout) -> RunLayout | None:
    runs = [name for name in layout.runs() if _BASELINE not in name]
    return layout.run(runs[-1]) if runs else None


def _collect_stages(layout: SceneLayout, run: RunLayout | None) -> list[_Stage]:
    folders = [layout.npz_dir]
    if run is not None:
        folders += [run.after_non_rigid_icp, run.after_global_optimization, run.inverse_deformation]
        folders += sorted(p for p in run.root.glob("gs_*") if p.is_dir() and not p.suffix and _BASELINE not in p.name)
    stages = []
    for folder in folders:
        manifest, report = json_object(folder / MANIFEST), json_object(folder / "report.json")
        metrics = json_object(RunLayout.evaluation(folder) / "metrics.json")
        if manifest or report or metrics:
            stages.append(_Stage(folder, STAGE_TITLES.get(folder.name, folder.name), manifest, report, metrics))
    return stages


def _baselines(layout: SceneLayout, run: RunLayout | None) -> list[_Stage]:
    """Evaluated trainings to compare with: naive ones, wherever they are in the scene, and those of other alignment runs."""
    stages = []
    for folder in sorted([*layout.root.glob("gs_*"), *layout.root.glob("frame_to_model_icp_*/gs_*")]):
        ours = run is not None and folder.parent == run.root and _BASELINE not in folder.name
        if ours or folder.suffix or not (folder / MANIFEST).is_file():
            continue
        report, metrics = json_object(folder / "report.json"), json_object(RunLayout.evaluation(folder) / "metrics.json")
        if not metrics:  # what training measured by itself
            metrics = {part: {"psnr": report[f"{part}_psnr"]} for part in ("train", "heldout") if f"{part}_psnr" in report}
        where = folder.parent.name.removeprefix("frame_to_model_icp_")
        naive = _BASELINE in str(folder.relative_to(layout.root))
        name = f"{folder.name}, {'naive baseline' if naive else where}"
        if metrics:
            stages.append(_Stage(folder, name, json_object(folder / MANIFEST), report, metrics, name))
    return stages


def _scene(root: Path) -> Scene | None:
    try:
        return load_scene(root)
    except ArtifactError:
        return None


def _newest_alignment(run: RunLayout | None) -> Alignment | None:
    for folder in (run.after_global_optimization, run.after_non_rigid_icp) if run else ():
        try:
            return load_alignment(folder)
        except ArtifactError:
            continue
    return None


# ------------------------------------------------------------------------------------------------ sections


def _trained(stages: list[_Stage]) -> list[Trained]:
    """The trained splats among the stages."""
    found = [s for s in stages if s.folder.name.startswith("gs_")]
    return [Trained(s.folder, s.folder.name.removeprefix("gs_").upper() if len(found) > 1 else "", s.report) for s in found]


def _naive(layout: SceneLayout, ours: Trained) -> Trained | None:
    """The evaluated naive training of the same renderer, if there is one."""
    for folder in sorted([*layout.root.glob("gs_*"), *layout.root.glob("frame_to_model_icp_*/gs_*")]):
        naive = Trained(folder, "", {})
        if _BASELINE in str(folder.relative_to(layout.root)) and ours.folder.name in folder.name and naive.pictures.is_dir():
            return naive
    return None


def _what_went_wrong(root: Path, stages: list[_Stage], trained: list[Trained], scene: Scene | None, alignment: Alignment | None) -> str:
    if not stages:
        return ""
    aligned = [s for s in stages if "aligned" in s.report or "contradictions" in s.report]
    findings = findings_of_parts(root)
    findings += findings_of_alignment(aligned[-1].report, scene) if aligned else []
    findings += [finding for one in trained for finding in findings_of_splats(one.folder, one.title, one.report, scene)]
    return wrong_section(findings, _warnings(stages, scene, alignment))


def _glance(stages: list[_Stage], scene: Scene | None, alignment: Alignment | None) -> str:
    tiles: list[tuple[str, str]] = []
    if scene is not None:
        h, w = scene.cameras.size
        tiles.append((f"{len(scene)}", f"frames of {w} x {h}"))
    if alignment is not None:
        tiles.append((f"{int(alignment.aligned.sum())} of {len(alignment.aligned)}", "frames aligned"))
        tiles.append((f"{len(alignment.cloud):,}", "canonical points"))
    for stage in stages:
        count = _first_number(stage.report, ("splats", "num_splats", "final_splats"))
        tiles += [(f"{int(count):,}", f"splats, {stage.folder.name}")] if count else []
        held = stage.metrics.get("heldout", {})
        for key, words in (("canonical_psnr", "the world on held-out frames"), ("psnr", "the same, each frame's bend taken out")):
            tiles += [(f"{held[key]:.1f} dB", f"{words}, {stage.folder.name}")] if held.get(key) else []
    seconds = sum(float(s.manifest.get("seconds", 0)) for s in stages)
    tiles += [(_duration(seconds), "in all stages")] if seconds else []
    cells = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(t)}</span></div>' for v, t in tiles)
    return f'<div class="tiles">{cells}</div>' if cells else missing("No stage has finished yet.")


def _first_number(report: dict[str, Any], names: tuple[str, ...]) -> float:
    return next((float(report[n]) for n in names if isinstance(report.get(n), int | float)), 0.0)


def _warnings(stages: list[_Stage], scene: Scene | None, alignment: Alignment | None) -> str:
    warnings = [f"{s.title}: {w}" for s in stages for w in s.report.get("warnings", [])]
    if scene is not None:
        share = float(scene.valid.mean())
        if share < 0.7:
            warnings.append(f"Only {share:.0%} of the pixels have a depth; the rest of each frame does not enter the cloud.")
    if alignment is not None and not alignment.aligned.all():
        warnings.append("Frames were left out of the cloud. Frames closer together fit better: raise --stage0.max-frames.")
    warnings += [w for s in stages for w in _quality_warnings(s)]
    warnings += _licence_warnings(stages)
    if not warnings:
        return ""
    return '<ul class="warnings">' + "".join(f"<li>{escape(w)}</li>" for w in warnings) + "</ul>"


def _quality_warnings(stage: _Stage) -> Iterator[str]:
    train, held = stage.metrics.get("train", {}).get("psnr"), stage.metrics.get("heldout", {}).get("psnr")
    if stage.metrics and held is None:
        yield f"{stage.title}: no frame was held out, so the quality on new views is unknown."
    if held is not None and held < 18:
        yield f"{stage.title}: held-out frames reach only {held:.1f} dB; expect blur or ghosts away from the input path."
    if train is not None and held is not None and train - held > 6:
        gap = f"training frames are {train - held:.1f} dB better than held-out ones"
        yield f"{stage.title}: {gap}; the splats fit the input frames too closely."
    seen = stage.metrics.get("train", {})
    if seen.get("sharpness", 1) < 0.3 * seen.get("input_sharpness", 0):
        more = "more splats, iterations or a higher resolution bring detail back (--config.mode extensive)"
        yield f"{stage.title}: renders are much softer than the input frames; {more}."
    lpips = stage.metrics.get("lpips_unavailable")
    if lpips:
        yield f"{stage.title}: LPIPS was not measured. {lpips}"


def _input_strip(scene: Scene | None) -> str:
    if scene is None:
        return missing("There is no readable results.npz, so input frames cannot be shown.")
    chosen = np.unique(np.linspace(0, len(scene) - 1, min(_STRIP_FRAMES, len(scene))).round().astype(int))
    near, far = pictures.depth_range(scene.depth)
    cells = []
    for i in chosen:
        depth = pictures.colorize_depth(scene.depth[i], near, far)
        cells.append(picture(np.concatenate([scene.images[i], depth]), f"frame {i + 1}: image, depth"))
    note = f"Depth from {nice_number(near)} (warm) to {nice_number(far)} (cold) scene units; black is unknown."
    return f'<div class="strip" tabindex="0" role="group" aria-label="input frames">{"".join(cells)}</div><p class="note">{note}</p>'


def _renders(stages: list[_Stage]) -> str:
    parts = []
    for stage in stages:
        folder = RunLayout.evaluation(stage.folder) / "report_pictures"
        rows: dict[str, list[str]] = {}
        for path in sorted(folder.glob("frame_*.jpg")) if folder.is_dir() else []:
            image = cv2.imread(str(path))
            frame, _, kind = path.stem.removeprefix("frame_").partition("_")
            if image is not None:
                rows.setdefault(frame, []).append(picture(image[..., ::-1], f"frame {int(frame) + 1}: {kind[2:].replace('_', ' ')}"))
        if rows:
            columns = max(len(r) for r in rows.values())
            body = "".join(f'<div class="row" style="--columns:{columns}">{"".join(r)}</div>' for r in rows.values())
            parts.append(f"<h3>{escape(stage.title)}</h3>{body}")
    return "".join(parts) or missing("No evaluation has been run, so there are no renders to show: python -m eval_gs makes them.")


def _clouds(scene: Scene | None, alignment: Alignment | None) -> str:
    if scene is None or alignment is None:
        return missing("There is no finished alignment, so clouds cannot be compared.")
    total, alignment = len(alignment.cloud), thinned(alignment, _MAX_CLOUD_POINTS)
    after = alignment.cloud.points
    clouds = {"before": unaligned_cloud(scene, alignment), "after": (after, alignment.cloud.colors)}
    up = -alignment.cameras.c2w[:, :3, 1].mean(axis=0)
    basis = pictures.plan_basis(up / max(np.linalg.norm(up), 1e-9), alignment.cameras.c2w[:, :3, 2].mean(axis=0))
    right, level_up, back = basis
    # horizontal, vertical and towards the viewer
    views = {"top": (right, -back, level_up), "front": (right, level_up, back), "side": (-back, level_up, right)}
    figures = []
    for view, (horizontal, vertical, towards) in views.items():
        bounds = (*extent(after @ horizontal), *extent(after @ vertical))
        for name, (points, colors) in clouds.items():
            image = pictures.scatter(points @ horizontal, points @ vertical, colors, points @ towards, bounds, _CLOUD_WIDTH)
            figures.append(picture(image, f"{view} view, {name}"))
    note = f"The same pixels of {total:,} before and after; the pictures of a pair show the same part of space."
    return f'<div class="row" style="--columns:2">{"".join(figures)}</div><p class="note">{note}</p>'


def _held_out(stages: list[_Stage]) -> str:
    """Agreement of flow and geometry on pairs of frames that no solve has seen."""
    parts = []
    for stage in stages:
        heldout = stage.report.get("heldout")
        if not isinstance(heldout, dict) or "pairs" not in heldout:
            continue
        tables = [(name, heldout[name]) for name in ("pairs", "pairs_and_pixels") if name in heldout]
        head = ["", *(f"{name.replace('_', ' ')}, {when}" for name, _ in tables for when in ("before", "after"))]
        rows = [
            [words, *(nice_number(factor * v[f"{when}_{key}"]) for _, v in tables for when in ("before", "after"))]
            for key, words, factor in (
                ("px", "reprojection, median (px)", 1),
                ("px_p90", "reprojection, 90 % (px)", 1),
                ("depth", "depth, median (%)", 100),
            )
        ]
        note = "Optical flow of pairs that took no part in the alignment, against where depth, poses and deformation put the same points."
        pairs = [(f"{p['source']}-{p['target']}", nice_number(p["before_px"]), nice_number(p["after_px"])) for p in heldout["by_pair"]]
        every = table(["frames", "before (px)", "after (px)"], [list(p) for p in pairs])
        detail = f"<details><summary>by pair</summary>{every}</details>"
        parts.append(f'<h3>{escape(stage.title)}</h3><p class="note">{escape(note)}</p>' + table(head, rows) + detail)
    return "".join(parts)


def _alignment_pictures(stage: _Stage) -> str:
    """Residuals by pair and displacement by frame, as the stage drew them."""
    figures = []
    for name, words in (("residuals", "median distance of matched points by pair of frames"), ("displacement", "how far pixels are moved")):
        figures.append(png_file(stage.folder / PICTURES / f"{name}.png", words))
    figures = [f for f in figures if f]
    return f'<div class="row" style="--columns:2">{"".join(figures)}</div>' if figures else ""


def _quality(stages: list[_Stage], baselines: list[_Stage]) -> str:
    ours = [s for s in stages if s.metrics.get("train")]
    if not ours:
        return missing("No metrics yet: python -m eval_gs measures them.")
    measured = ours + baselines
    groups: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = [
        ("Training frames", lambda m: m.get("train", {})),
        ("Held-out frames", lambda m: m.get("heldout", {})),
        ("Novel views against the clean truth", lambda m: {f"novel_{key}": value for key, value in m.get("novel_views", {}).items()}),
    ]
    for path in sorted({p for s in measured for p in s.metrics.get("consistency", {})}):
        groups.append((f"Neighbouring renders, {path.replace('_', ' ')}", partial(_along, path)))
    tables = []
    for words, pick in groups:
        known = [s for s in measured if pick(s.metrics)]
        rows = _metric_rows(known, pick)
        tables.append(f"<h3>{escape(words)}</h3>" + table(["", *(s.name for s in known)], rows) if rows else "")
    note = (
        "A generated frame does not fit one rigid world, so its render is compared both through that frame's deformation and as the "
        "consistent world is. Held-out frames took no part in splatting, and by default in nothing but stage 0: their "
        "deformation is then that of the frames beside them."
    )
    return f'<p class="note">{note}</p>' + "".join(tables) + _per_frame_quality(ours)


def _exports(stages: list[_Stage]) -> str:
    """What files for other programs look like, read back and drawn beside our own renders."""
    parts = []
    for stage in stages:
        known = stage.metrics.get("exports")
        known = (known if isinstance(known, dict) else {}) | json_object(stage.folder / EXPORT_RECORD)
        entries = [(name, e) for name, e in sorted(known.items()) if isinstance(e, dict) and _is_numbers(e.get("psnr"), least=1)]
        if not entries:
            continue
        rows = [_export_row(name, entry) for name, entry in entries]
        parts.append(f"<h3>{escape(stage.title)}</h3>" + table(["File", "Format", "Size", "Splats", "Worst of three views"], rows))
        exact = [min(e["psnr"]) for _, e in entries if e.get("format") in _EXACT_FORMATS]
        if stage.folder.name == "gs_2dgs" and exact and min(exact) < _ALIKE_DB:
            parts.append(f'<p class="note">{escape(_DISCS)}</p>')
    note = (
        "Each file is read back after writing and drawn from the first, middle and last camera; decibels are against the project's own "
        "pictures, 99 means no difference. From 45 nobody sees one."
    )
    return f'<p class="note">{note}</p>' + "".join(parts) if parts else ""


def _export_row(name: str, entry: dict[str, Any]) -> list[str]:
    size = entry.get("bytes")
    megabytes = f"{size / 1e6:.2f} MB" if isinstance(size, int) else "-"
    return [name, str(entry.get("format", "")), megabytes, f"{entry.get('splats', 0):,}", f"{min(entry['psnr']):.1f} dB"]


def _along(path: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """How well neighbouring renders along a camera path agree."""
    return metrics.get("consistency", {}).get(path, {})


def _metric_rows(measured: list[_Stage], pick: Callable[[dict[str, Any]], dict[str, Any]]) -> list[list[str]]:
    rows = []
    for key, name in METRIC_NAMES.items():
        values = [pick(s.metrics).get(key) for s in measured]
        if any(v is not None for v in values):
            rows.append([name, *("-" if v is None else nice_number(float(v)) for v in values)])
    return rows


def _per_frame_quality(measured: list[_Stage]) -> str:
    parts = []
    for stage in measured:
        frames = stage.metrics.get("frames", [])
        values = [float(f.get("psnr", "nan")) for f in frames]
        held = [i for i, f in enumerate(frames) if f.get("heldout")]
        chart = bar_chart(
            values,
            title=f"PSNR per frame, {stage.folder.name}",
            x_label="frame",
            y_label="PSNR (dB)",
            marked=held,
            marked_label="held out",
        )
        parts.append(f"<h3>{escape(stage.title)}: PSNR per frame</h3>{chart}" if chart else "")
    return "".join(parts)


def _curves(stages: list[_Stage]) -> str:
    parts = []
    for stage in stages:
        charts = [c for path, values in _series(stage.report, ()) if (c := _chart(stage, path, values))]
        shown = "".join(f"<div>{c}</div>" for c in (_residuals(stage.report), *charts[:_MAX_CHARTS_PER_STAGE]) if c)
        shown = f'<div class="charts">{shown}</div>' if shown else ""
        shown += _alignment_pictures(stage)
        parts.append(f"<h3>{escape(stage.title)}</h3>{shown}" if shown else "")
    return "".join(parts) or missing("The stages left no curves.")


def _residuals(report: dict[str, Any]) -> str:
    """Disagreement with the other frames, per frame, before and after an alignment."""
    before, after = report.get("residual_before"), report.get("residual_after")
    frames = report.get("frames", [])
    if not (_is_numbers(before) and _is_numbers(after) and len(before) == len(after) == len(frames)):
        return ""
    percent = {name: [100 * v for v in _floats(values)] for name, values in (("before", before), ("after", after))}
    return "<h4>disagreement with the other frames</h4>" + line_chart(
        {name: (_floats(frames), values) for name, values in percent.items()},
        title="residual per frame before and after alignment",
        x_label="frame",
        y_label="median distance (% of depth)",
    )


def _series(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, list[float]]]]:
    """Every list of numbers, or of records of numbers, inside a report, with the names that lead to it."""
    if isinstance(value, dict):
        lists = {k: _floats(v) for k, v in value.items() if k not in _NO_CURVES and _is_numbers(v)}
        steps = next((k for k in ("step", "steps", "iteration", "iterations") if k in lists), None)
        if steps and all(len(v) == len(lists[steps]) for v in lists.values()):
            for name, numbers in lists.items():
                if name != steps:
                    yield (*path, name), {"step": lists[steps], "value": numbers}
        else:
            for name, numbers in lists.items():
                yield (*path, name), {"value": numbers}
        for name, inner in value.items():
            if name not in lists and name not in _NO_CURVES:
                yield from _series(inner, (*path, name))
    elif isinstance(value, list) and len(value) >= 3 and all(isinstance(v, dict) for v in value):
        names = [k for k in value[0] if all(isinstance(v.get(k), int | float) for v in value)]
        yield from _series({k: [float(v[k]) for v in value] for k in names}, path)


def _is_numbers(value: Any, least: int = 3) -> TypeGuard[list[Any]]:
    """Whether this is a list of at least so many numbers; None stands for one that is unknown."""
    if not isinstance(value, list) or len(value) < least or all(v is None for v in value):
        return False
    return all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in value)


def _floats(values: list[Any]) -> list[float]:
    return [float("nan") if v is None else float(v) for v in values]


def _chart(stage: _Stage, path: tuple[str, ...], values: dict[str, list[float]]) -> str:
    """A line over steps, or bars over frames when the names speak of frames or views."""
    name = path[-1].replace("_", " ")
    words = " ".join(path).lower()
    numbers = values["value"]
    if name in ("frame", "frame id", "frame ids", "view") or len(set(numbers)) == 1:
        return ""
    heading = f"<h4>{escape(' / '.join(p.replace('_', ' ') for p in path if p != 'curve'))}</h4>"
    title = f"{name}, {stage.folder.name}"
    if "step" not in values and any(w in words for w in ("frame", "view", "round_trip", "matches", "fitness")):
        return heading + bar_chart(numbers, title=title, x_label="frame", y_label=name)
    steps = values.get("step", [float(i) for i in range(len(numbers))])
    return heading + line_chart({name: (steps, numbers)}, title=title, x_label="step", y_label=name)


def _timings(stages: list[_Stage], summary: dict[str, Any]) -> str:
    rows = [
        [s.title, _duration(float(s.manifest["seconds"])), f"{float(s.manifest.get('peak_memory_mb', 0)) / 1024:.2f} GB"]
        for s in stages
        if s.manifest.get("seconds")
    ]
    evaluated = [s for s in stages if s.metrics.get("seconds")]
    rows += [[f"Evaluation, {s.folder.name}", _duration(float(s.metrics["seconds"])), "-"] for s in evaluated]
    if not rows:
        return missing("The stages left no timings.")
    total = summary.get("seconds")
    rows += [["Whole command", _duration(float(total)), "-"]] if isinstance(total, int | float) else []
    return table(["Stage", "Time", "Peak memory"], rows)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _backends(stages: list[_Stage]) -> str:
    chosen = [(s, family, str(choice)) for s in stages for family, choice in s.manifest.get("backends", {}).items()]
    rows = [[s.title, family, choice] for s, family, choice in chosen if family not in _WEIGHTS]
    if not rows:
        return ""
    weights = [[name, licence] for name, licence in _weights(stages)]
    used = table(["Weights", "Licence"], weights) if weights else "<p>No learned weights were used in this run.</p>"
    return table(["Stage", "For", "Chosen, and why"], rows) + f"<h3>Licences of weights</h3>{used}"


def _weights(stages: list[_Stage]) -> Iterator[tuple[str, str]]:
    """Learned weights a run used, and their licences."""
    for stage in stages:
        backends = stage.manifest.get("backends", {})
        if "weights" in backends:
            yield str(backends["weights"]), str(backends.get("weights_license", "not known"))
    if any("romav2" in str(s.manifest.get("backends", {}).get("matcher", "")) for s in stages):
        yield "RoMa v2", _ROMA_LICENCES


def _licence_warnings(stages: list[_Stage]) -> Iterator[str]:
    for name, licence in _weights(stages):
        if "NC" in licence.upper().split("-"):
            yield f"The weights {name} are licensed {licence}: results made with them are not for commercial use."


def _settings(stages: list[_Stage]) -> str:
    parts = []
    for stage in stages:
        if not stage.manifest:
            continue
        rows = [[name, str(value)] for name, value in _flat(stage.manifest.get("config", {}), "")]
        facts = [f"seed {stage.manifest.get('seed', 0)}", str(stage.manifest.get("created", "")), f"code {stage.manifest.get('code', '')}"]
        summary = f"{escape(stage.title)} <small>{escape(', '.join(f for f in facts if f))}</small>"
        parts.append(f"<details><summary>{summary}</summary>{table(['Setting', 'Value'], rows)}</details>")
    return "".join(parts) or missing("No manifest was found, so the settings are unknown.")


def _flat(config: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
