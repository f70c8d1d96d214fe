"""Evaluation shell: films of the consistent world, `metrics.json`, pictures for the report; publishes `gs_video_eval/`."""

import functools
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from configs.evaluation import EvalConfig
from eval_gs.behind import Behind
from eval_gs.films import Clip, beside, clip_of, drawn_size, film_size
from eval_gs.known import coverage_plan, well_known_part
from eval_gs.layers import multi_layer
from eval_gs.measure import FrameScore, lpips_or_reason, score_frame, summarize
from eval_gs.novel_views import as_trained, novel_scores, point_pairs, source_positions
from eval_gs.off_path import off_path
from eval_gs.paths import clip_path, make_path
from eval_gs.render import Filming, FilmOptions
from utils.deformation.artifact import INVERSE_SCHEMA, trained_inverse
from utils.deformation.inverse import IdentityInverseWarp, InverseWarp
from utils.device.accelerator import cap_accelerator, or_on_cpu
from utils.device.threads import quick_to_switch
from utils.exports.check import checked_exports, written_splats
from utils.report import pictures
from utils.report.html import ReportData, read_for_report, write_report
from utils.scene import artifacts
from utils.scene.clip_parts import clip_parts
from utils.scene.folders import frames_of_scene, list_frames
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.lock import one_writer
from utils.scene.manifest import content_hash, fingerprints, in_scene, is_current, read_manifest, sha256, write_manifest
from utils.scene.masks import used_pixels
from utils.scene.media import read_frames, resize_area, write_image
from utils.scene.trajectories import extend_path, load_trajectory, save_trajectory
from utils.scene.transaction import Output, publish, require_replaceable
from utils.splatting.checkpoint import GS_SCHEMA, load_checkpoint
from utils.splatting.render import SplatView, depth_image, locate_checkpoint, on_the_host, resolve_rasterizer, rgb_image, rgb_there
from utils.synthetic.world import ground_truth_file, load_ground_truth
from utils.types import NULL_REPORTER, Array, CameraSet, RenderOutput, Reporter, Scene, Splats, StepReport

EVALUATION_SCHEMA = "evaluation/1"
_REPORT_FRAMES = 4


@dataclass(frozen=True)
class _Subject:
    """What is evaluated: the splats, the inverse deformation they were trained through, the frames, the alignment's folder, and ids of
    frames that took part in nothing but stage 0.
    """

    view: SplatView
    warp: InverseWarp
    scene: Scene
    images: Array
    alignment: Path
    held_out_of_all: Array


@one_writer(lambda config: config.root_path)
def run(config: EvalConfig, report: Reporter = NULL_REPORTER) -> Path:
    """Evaluates a checkpoint; returns the folder of the results."""
    run_layout, checkpoint = locate_checkpoint(config.root_path, config.run, config.checkpoint_dir)
    out = config.out_dir or RunLayout.evaluation(checkpoint)
    made_by = f"python -m train_gs --config.root-path {config.root_path} --config.run {run_layout.root.name}"
    manifest = read_manifest(checkpoint, GS_SCHEMA, made_by)
    inputs = {"results": artifacts.scene_id(config.root_path), checkpoint.name: manifest.content_id}
    path_json = config.transforms_path or SceneLayout(config.root_path).path_json
    if config.render_gs_video_path and path_json.is_file():
        inputs["camera_path"] = sha256(path_json)
    inputs |= _other_inputs(config, manifest.config, run_layout, checkpoint)
    read: ReportData | None = None
    if not config.overwrite and is_current(out, EVALUATION_SCHEMA, config, inputs):
        report.note(f"evaluation: {out} is current, skipped")
    else:
        reads = [SceneLayout(config.root_path).results_npz, checkpoint, path_json]
        originals = _original_images(config, manifest.config)
        require_replaceable([Output(out, EVALUATION_SCHEMA)], reads=reads, sources=[] if originals is None else [originals])
        cap_accelerator(config.max_gpu_gb)
        work = functools.partial(_evaluate, config, out, run_layout, checkpoint, inputs, report)
        with Behind[ReportData](threads=1) as reading, quick_to_switch():
            if config.report:
                reading.do(functools.partial(read_for_report, config.root_path))
            or_on_cpu(lambda: work(config.device), lambda: work("cpu"), "evaluation")
        read = reading.results[0] if config.report else None
    if config.report:
        report.note(f"report: {write_report(config.root_path, read)}")
    return out


def _other_inputs(config: EvalConfig, trained: dict[str, Any], run_layout: RunLayout, checkpoint: Path) -> dict[str, str]:
    """Content ids of what an evaluation reads beside the splats, as far as its settings ask for it."""
    layout = SceneLayout(config.root_path)
    files: dict[str, Path] = {}
    if config.ground_truth is not None:
        files |= {"ground_truth": ground_truth_file(config.ground_truth), "positions": layout.preprocess_json}
    if config.render_clip_poses:
        files["clip_cameras"] = layout.clip_cameras / "transforms.json"
    inputs = {name: sha256(path) for name, path in files.items() if path.is_file()}
    inverse = _inverse_dir(config, trained, run_layout)
    if trained.get("deform", True) and not (checkpoint / "inverse_local.pt").is_file():
        inputs["inverse_deformation"] = artifacts.artifact_id(inverse, INVERSE_SCHEMA)
    originals = _original_images(config, trained)
    if originals is not None:
        inputs["original_images"] = content_hash(fingerprints(list_frames(originals)))
    return inputs


def _inverse_dir(config: EvalConfig, trained: dict[str, Any], run_layout: RunLayout) -> Path:
    return in_scene(config.root_path, trained.get("inverse_deform_dir")) or run_layout.inverse_deformation


def _original_images(config: EvalConfig, trained: dict[str, Any]) -> Path | None:
    """Folder of frames at another resolution: the one given, or else the one that was trained on."""
    if config.original_images_dir:
        return Path(config.original_images_dir)
    return in_scene(config.root_path, trained.get("original_images_dir"))


# Paths that show what the frames show.
_FRAMES_POSES = ("input_poses", "optimised_poses")


def _evaluate(
    config: EvalConfig, out: Path, run_layout: RunLayout, checkpoint: Path, inputs: dict[str, str], report: Reporter, device: str
) -> None:
    started = time.perf_counter()
    subject, backends = _load_subject(config, run_layout, checkpoint, device)
    trained = subject.view.trained.cameras
    clip = clip_of(config.root_path, trained)
    fixed = (config.override_height, config.override_width) if config.override_height > 0 else None
    options = FilmOptions(
        size=fixed or film_size(clip.size, config.film_height, subject.view.device.type == "cuda"),
        fps=config.fps,
        save_images=config.save_images,
        save_video=config.save_video,
        white=config.white_background,
        measure=config.metrics,
    )
    with (
        publish(out, EVALUATION_SCHEMA, home=config.root_path, report=report) as folder,
        Behind[float](threads=1) as aside,
        Behind[Splats | None](threads=1) as reading,
    ):
        if config.metrics:
            aside.do(functools.partial(_multi_layer, subject))
            reading.do(functools.partial(written_splats, checkpoint, subject.view))
        shown = folder / "report_pictures"
        shown.mkdir()
        with Filming(subject.view, folder, report) as filming:
            for name, cameras in _paths(config, subject, report).items():
                size = _size(name, options.size, config, subject)
                drawn = drawn_size(size, trained.size) if _may_enlarge(config, subject) else size
                images = config.save_images and (config.save_path_images or name in _FRAMES_POSES)
                timed = replace(options, size=size, drawn=drawn, fps=_fps(name, clip, config.fps), save_images=images)
                filming.path(cameras, name, timed, shown / "fly_through.mp4" if name == "gs_video" else None)
                save_trajectory(folder / f"{name}_transforms.json", cameras)
            if config.save_video and config.render_side_by_side:
                _film_beside(config, subject, clip, folder, filming)
            if config.metrics:
                exports = checked_exports(checkpoint, subject.view, reading.end()[0])
                more = {"exports": exports, "consistency": filming.consistency(), "multi_layer": aside.end()[0]}
                _measure(config, subject, folder, more, started, report)
            _picture_rows(subject, shown, config.white_background)
            if subject.view.trained.coverage is not None:
                write_image(shown / "coverage_from_above.jpg", coverage_plan(subject.view.trained))
            artifacts.write_json(folder / "eval_config.json", config)
        write_manifest(
            folder, schema=EVALUATION_SCHEMA, config=config, inputs=inputs, backends=backends, seconds=time.perf_counter() - started
        )


def _fps(name: str, clip: Clip, otherwise: float) -> float:
    """Frames per second of a path: those along the clip last as long as the clip."""
    if name in _FRAMES_POSES:
        return clip.scene_fps(otherwise)
    return clip.fps or otherwise if name == "clip_poses" else otherwise


def _film_beside(config: EvalConfig, subject: _Subject, clip: Clip, folder: Path, filming: Filming) -> None:
    """The film with clip and world side by side, and a small one for the report."""
    trained = subject.view.trained.cameras
    cameras_json = SceneLayout(config.root_path).clip_cameras / "transforms.json"
    cameras = clip_path(cameras_json, subject.scene.cameras, trained) if cameras_json.is_file() else None
    both = beside(config.root_path, clip, cameras, trained, subject.images)
    small, shape = folder / "report_pictures" / "clip_and_world.mp4", (len(both.cameras), both.size)
    filming.film(folder / "render_clip_and_world.mp4", shape, both.pictures(subject.view), both.fps, "render clip and world", small)


def _size(name: str, size: tuple[int, int], config: EvalConfig, subject: _Subject) -> tuple[int, int]:
    """(h, w) of a path's film: on a CPU the films from the clip's own poses stay at the size that was trained, if no other was asked for.

    At 720 lines the films of the demo took three quarters of its evaluation, and these two show nothing that the frames do not.
    """
    small = name in _FRAMES_POSES and _may_enlarge(config, subject)
    return subject.view.trained.cameras.size if small else size


def _may_enlarge(config: EvalConfig, subject: _Subject) -> bool:
    """Whether films may be rendered smaller than they are: on a CPU, and if no size was asked for."""
    return config.film_height <= 0 and config.override_height <= 0 and subject.view.device.type != "cuda"


def _load_subject(config: EvalConfig, run_layout: RunLayout, checkpoint: Path, device_name: str) -> tuple[_Subject, dict[str, str]]:
    trained = load_checkpoint(checkpoint)
    settings = read_manifest(checkpoint, GS_SCHEMA, "python -m train_gs").config
    if not settings.get("deform", True):
        warp: InverseWarp = IdentityInverseWarp()
    else:
        warp = trained_inverse(checkpoint, _inverse_dir(config, settings, run_layout))
    rasterizer, device, reason = resolve_rasterizer(config.rasterizer, device_name)
    view = SplatView(trained, rasterizer, device, bool(settings.get("deform_inverse_rotations", True)))
    scene = artifacts.load_scene(config.root_path)
    images = _reference_images(_original_images(config, settings), scene, trained.cameras)
    alignment = run_layout.root / settings.get("global_opt_subdir", run_layout.after_global_optimization.name)
    strict = artifacts.load_alignment(alignment, with_cloud=False).heldout
    return _Subject(view, warp.to(device), scene, images, alignment, strict), {"rasterizer": reason}


def _reference_images(folder: Path | None, scene: Scene, cameras: CameraSet) -> Array:
    """(F, h, w, 3) uint8 frames of the trained cameras at their size, from a folder of originals if there is one."""
    if folder:
        paths = frames_of_scene(folder, len(scene))
        return read_frames([paths[i] for i in cameras.frame_ids], cameras.size)
    return np.stack([resize_area(scene.images[i], cameras.size) for i in cameras.frame_ids])


def _paths(config: EvalConfig, subject: _Subject, report: Reporter) -> dict[str, CameraSet]:
    """The camera paths that are wanted, at the size of the renders."""
    trained = subject.view.trained.cameras
    size = (config.override_height, config.override_width) if config.override_height > 0 else trained.size
    paths: dict[str, CameraSet] = {}
    if config.render_gs_video_path:
        path_json = config.transforms_path or SceneLayout(config.root_path).path_json
        if path_json.is_file() or config.transforms_path is not None:
            fly_through = load_trajectory(path_json)
        else:  # a scene of another program
            fly_through = extend_path(subject.scene.cameras, subject.scene.median_depth)
        count = config.max_frames if config.max_frames > 0 else len(fly_through)
        fly_through = fly_through.select(slice(0, count))
        if config.transforms_path is None:  # a path of one's own is shown as it is
            part = well_known_part(subject.view, fly_through)
            fly_through = fly_through.select(slice(part.start, part.stop))
            if words := part.words("fly-through"):
                report.note(f"evaluation: {words}")
        paths["gs_video"] = fly_through
    if config.render_input_poses:
        paths["input_poses"] = subject.scene.cameras
    if config.render_optimised_poses:
        paths["optimised_poses"] = trained
    if config.render_clip_poses:
        paths["clip_poses"] = clip_path(SceneLayout(config.root_path).clip_cameras / "transforms.json", subject.scene.cameras, trained)
    for kind in config.extra_paths:
        paths[kind] = make_path(kind, trained, subject.view.median_depth, config.extra_path_frames)
    return {name: cameras.resized(size) for name, cameras in paths.items()}


def _measure(config: EvalConfig, subject: _Subject, folder: Path, more: dict[str, object], started: float, report: Reporter) -> None:
    """Writes `metrics.json`; `more` is what was measured elsewhere."""
    lpips, reason = lpips_or_reason(config.lpips)
    if reason:
        report.note(f"evaluation: no LPIPS. {reason}")
    trained = subject.view.trained
    cameras, heldout, left_out = trained.cameras, trained.heldout, trained.left_out
    used = used_pixels(subject.scene, cameras.frame_ids, cameras.size)
    with Behind[FrameScore]() as scoring:
        there = (_views(subject, i, canonical) for i, canonical in enumerate(subject.view.render_all(cameras)))
        for i, views in enumerate(on_the_host(there)):
            arguments = (int(cameras.frame_ids[i]), subject.images[i], *views, lpips, None if used is None else used[i])
            scoring.do(functools.partial(score_frame, *arguments, heldout=bool(heldout[i]), left_out=bool(left_out[i])))
            report.step(StepReport(stage="measure", step=i, total=len(cameras)))
    scores = scoring.results
    summary = summarize(scores)
    content = {
        "schema": "metrics/1",
        "renderer": subject.view.trained.renderer,
        "splats": len(subject.view.splats),
        "size": list(cameras.size),
        **summary,
        **({} if used is None else {"masked": float(1 - used.mean())}),
        **({} if config.ground_truth is None else {"novel_views": _against_truth(config, subject, config.ground_truth, report)}),
        "frames_placed": _frames_placed(subject),
        **_parts(config.root_path),
        "off_path": off_path(subject.view, config.off_path_degrees),
        **more,
        "frames": scores,
        "seconds": time.perf_counter() - started,
    }
    artifacts.write_json(folder / "metrics.json", content | ({"lpips_unavailable": reason} if reason else {}))
    words = [f"{name} {values['psnr']:.2f} dB / SSIM {values['ssim']:.3f}" for name, values in summary.items()]
    report.note("evaluation: " + ", ".join(words))


def _multi_layer(subject: _Subject) -> float:
    return multi_layer(artifacts.load_cloud(subject.alignment).points, subject.view.trained.cameras)


def _frames_placed(subject: _Subject) -> dict[str, Any]:
    """How many frames there are, and the ids of those that alignment left out and of those that took no part in it."""
    trained = subject.view.trained
    ids = trained.cameras.frame_ids
    return {
        "scene": len(subject.scene),
        "trained": int(trained.trained.sum()),
        "left_out": ids[trained.left_out].tolist(),
        "held_out_of_everything": np.intersect1d(ids[trained.heldout], subject.held_out_of_all).tolist(),
    }


def _parts(root: Path) -> dict[str, Any]:
    """The places that the clip shows, where there are several: folder and frames of each, that of this scene first."""
    parts = clip_parts(root)
    return {"parts": [part.report(root) for part in parts]} if parts else {}


def _against_truth(config: EvalConfig, subject: _Subject, path: Path, report: Reporter) -> dict[str, float]:
    """Scores of the novel views of a synthetic world."""
    truth = load_ground_truth(path)
    positions = source_positions(config.root_path, len(subject.scene), len(truth.cameras))
    alignment = as_trained(artifacts.load_alignment(subject.alignment, with_cloud=False), subject.view.trained.cameras, subject.warp)
    scores = novel_scores(subject.view, point_pairs(subject.scene, alignment, truth, positions), truth)
    report.note(
        f"evaluation: {scores['views']} novel views against the clean truth: {scores['psnr']:.2f} dB / SSIM {scores['ssim']:.3f} placed by"
        f" one similarity, {scores['psnr_per_view']:.2f} dB / SSIM {scores['ssim_per_view']:.3f} by one for each"
    )
    return scores


def _views(subject: _Subject, i: int, canonical: RenderOutput) -> list[Tensor]:
    """(h, w, 3) uint8 renders for trained camera i: through its deformation and colour map, through the map alone, the world as it is."""
    view = subject.view
    return [rgb_there(view.render_frame(subject.warp, i)), rgb_there(view.in_colors_of(canonical, i)), rgb_there(canonical)]


def _picture_rows(subject: _Subject, folder: Path, white: bool) -> None:
    """A few rows for the report: input, world as it is, through the deformation, depth, and normals (3DGS has none: those of its depth).

    Names sort in the order of the row: `frame_<id>_<n>_<what>.jpg`.
    """
    view, cameras = subject.view, subject.view.trained.cameras
    chosen = _report_frames(view.trained.heldout)
    outputs = {int(i): view.render(cameras.c2w[i], cameras.K[i], cameras.size) for i in chosen}
    near, far = pictures.depth_range(np.stack([depth_image(o) for o in outputs.values()]))
    for i, output in outputs.items():
        held = " (held out)" if view.trained.heldout[i] else ""
        row = {
            "0_input" + held.replace(" ", "_"): subject.images[i],
            "1_consistent_world": rgb_image(output, white),
            "2_through_its_deformation": rgb_image(view.render_frame(subject.warp, i)),
            "3_depth": pictures.colorize_depth(depth_image(output), near, far),
        }
        normal = pictures.normals_of_depth(depth_image(output), cameras.K[i]) if output.normal is None else output.normal.cpu().numpy()
        row["4_normals" if output.normal is not None else "4_normals_of_depth"] = pictures.colorize_normals(normal)
        for name, image in row.items():
            write_image(folder / f"frame_{int(cameras.frame_ids[i]):05d}_{name}.jpg", image)


def _report_frames(heldout: Array) -> Array:
    """Positions of a few frames over the whole clip, among them one that was held out if there is one."""
    count = len(heldout)
    chosen = set(np.linspace(0, count - 1, min(_REPORT_FRAMES, count)).round().astype(int).tolist())
    held = np.flatnonzero(heldout)
    if len(held) and not chosen & set(held.tolist()):
        chosen.add(int(held[len(held) // 2]))
    return np.array(sorted(chosen))
