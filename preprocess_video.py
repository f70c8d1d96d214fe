"""Stage 0: a clip or a folder of frames becomes a scene: chosen frames, cameras, depth and a fly-through path.

    python preprocess_video.py --input_video clip.mp4 [--scene_root scene] [--max_frames 100] [--max_stride 8]

Writes `frames/`, `frames_subsampled/`, `preprocess_frames.json`, `exports/npz/results.npz`, `exports/cameras/` and `gs_video/`.
"""

import argparse
import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.preprocess import IMAGE_EXTENSIONS, PreprocessConfig
from utils.errors import InputError
from utils.runtime import run_stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from utils.geometry_backend import ClipFrames, GeometryBackend, SparseModel
    from utils.scene.captured import Straightener
    from utils.scene.layout import SceneLayout
    from utils.types import Array, Reporter, Scene

SCHEMA = "geometry/1"
# Poses are measured on frames of up to this size, whatever the resolution of the scene: SIFT finds little at 256 pixels.
_POSE_RESOLUTION = 512


@dataclass(frozen=True, kw_only=True)
class Source:
    """The frames of the input on disk.

    Attributes:
        frames: every frame in order.
        totals: frames of each clip.
        folder: where they lie.
        fps: frames a second of the first clip, 0 if unknown.
    """

    frames: list[Path]
    totals: list[int]
    folder: Path
    fps: float = 0.0


def run(config: PreprocessConfig, report: "Reporter") -> Path:
    """Makes the scene unless it is current already; returns its root.

    Raises:
        V2WError: the input, the disk or the geometry.
    """
    from utils.scene.captured import parse_camera
    from utils.scene.layout import SceneLayout
    from utils.scene.manifest import MANIFEST, is_current, publish, write_manifest

    started = time.monotonic()
    layout = SceneLayout(config.root)
    backend = _resolve_backend(config)
    inputs = _fingerprint(config)
    settings = _settings(config, backend)
    if not config.overwrite and is_current(layout.npz_dir, SCHEMA, settings, inputs):
        report.note(f"stage 0: {layout.results_npz} is current, skipped")
        return config.root
    if not config.overwrite and layout.results_npz.is_file() and not (layout.npz_dir / MANIFEST).is_file():
        report.note(f"stage 0: {layout.results_npz} was made by another program and is used as it is; overwrite replaces it")
        return config.root
    if config.lens not in ("none", "estimate"):
        parse_camera(config.lens)  # a typing error shows before minutes of decoding
    source = _frames_on_disk(config, layout, report)
    frames, read = _clip_frames(config, source, report)
    frames = dataclasses.replace(frames, keep=_matchable(config, frames, report))
    straight, mapped = _straightener(config, source, frames, read, report)
    if straight is not None:
        keep = None if frames.keep is None else straight.masks(frames.keep, read)
        frames = dataclasses.replace(frames, images=straight.all(frames.images, read), keep=keep, mapped=mapped)
    estimator = _make_backend(backend, config)
    scene = estimator.estimate(frames, report)
    positions = [read[frames.chosen[row]] for row in scene.cameras.frame_ids]
    scene = _masked(scene, frames, positions, config, backend, straight, report)
    kept = [source.frames[position] for position in positions]
    _write_subsampled(config, layout, kept, positions, straight)
    _write_clip_cameras(config, layout, source, scene, positions, _grays(source, scene, frames, read, straight), straight, report)
    _write_extras(config, layout, source, scene, positions, straight)
    with publish(layout.npz_dir) as folder:
        from utils.scene.artifacts import save_results

        save_results(folder, scene)
        write_manifest(
            folder,
            schema=SCHEMA,
            config=settings,
            inputs=inputs,
            backends={"geometry": backend, **getattr(estimator, "provenance", {}), **_taken_out(straight, source)},
            seed=config.seed,
            seconds=time.monotonic() - started,
        )
    report.note(f"stage 0: {len(kept)} frames at {frames.size[1]}x{frames.size[0]} -> {layout.results_npz}")
    return config.root


def _resolve_backend(config: PreprocessConfig) -> str:
    """`auto`: given cameras if there are any; Depth Anything 3 where a GPU, its package and its weights are there; else `sfm`."""
    from utils.da3.weights import ready
    from utils.device.accelerator import accelerator
    from utils.geometry_backend import GEOMETRY
    from utils.runtime import cuda_device_present

    name = config.backend
    if name == "auto":
        learned = cuda_device_present() and accelerator() is not None and ready(config.model_name, config.commercial_safe)
        name = "import" if config.cameras else "da3" if learned else "sfm"
    GEOMETRY.load(name)
    return name


def _settings(config: PreprocessConfig, backend: str) -> dict[str, object]:
    """What determines the result; paths enter through the inputs' fingerprint."""
    plain = dataclasses.asdict(config)
    for name in ("input_video", "frames_dir", "cameras", "masks", "scene_root", "overwrite"):
        del plain[name]
    return plain | {"backend": backend}


def _fingerprint(config: PreprocessConfig) -> dict[str, str]:
    """Name, size and modification time of the inputs: hashing gigabytes of video would cost more than it protects."""
    from utils.scene.manifest import content_hash
    from utils.scene.media import list_clips, list_frames

    paths = list_clips(config.input_video) if config.input_video else list_frames(_folder(config))
    groups = {"source": paths}
    for name, given in (("cameras", config.cameras), ("masks", config.masks)):
        if given is not None:
            if not given.exists():
                raise InputError(f"{given} does not exist", f"check the path given to --{name}")
            files = [given] if given.is_file() else sorted(p for p in given.rglob("*") if p.is_file() and _describes(p, name))
            groups[name] = files
    return {name: content_hash(name, [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]) for name, files in groups.items()}


def _describes(path: Path, group: str) -> bool:
    """Whether a file in a given folder matters: every mask, but of a camera folder not the images beside the cameras."""
    return group == "masks" or path.suffix in (".bin", ".txt", ".json")


def _folder(config: PreprocessConfig) -> Path:
    if config.frames_dir is None:
        raise InputError("no frames were given", "pass --input_video CLIP or --frames_dir FOLDER")
    return config.frames_dir


def _frames_on_disk(config: PreprocessConfig, layout: "SceneLayout", report: "Reporter") -> Source:
    """All frames as files; clips are decoded into `frames/`, numbered from 1."""
    from utils.scene.manifest import publish
    from utils.scene.media import extract_frames, list_clips, list_frames

    if not config.input_video:
        frames = list_frames(_folder(config))
        _require_two(len(frames), str(_folder(config)))
        return Source(frames=frames, totals=[len(frames)], folder=_folder(config))
    totals: list[int] = []
    fps = 0.0
    clips = list_clips(config.input_video)
    _require_one_size(clips)
    with publish(layout.frames) as folder:
        for clip in clips:
            info = extract_frames(clip, folder, extension=config.image_ext, first=1 + sum(totals))
            totals.append(len(info.frames))
            fps = fps or info.fps
            if info.broken:
                report.note(f"{clip.name} breaks off after {len(info.frames)} frames ({info.broken}); they are used")
        _require_two(sum(totals), ", ".join(clip.name for clip in clips))
    return Source(frames=list_frames(layout.frames), totals=totals, folder=layout.frames, fps=fps)


def _require_two(count: int, where: str) -> None:
    if count < 2:
        raise InputError(
            f"{where}: {count} frame, at least 2 are needed, 24 or more are sensible",
            "use a clip or folder that shows the scene from several positions",
        )


def _require_one_size(clips: list[Path]) -> None:
    """All clips of a scene must show frames of one size; told before minutes of decoding."""
    from utils.scene.media import decode

    if len(clips) < 2:
        return
    sizes = [next(decode(clip)).shape[:2] for clip in clips]
    for clip, (height, width) in zip(clips, sizes, strict=True):
        if (height, width) != sizes[0]:
            raise InputError(
                f"{clip.name} is {width}x{height}, but {clips[0].name} is {sizes[0][1]}x{sizes[0][0]}",
                "clips of one scene are taken for one camera: crop or resize them to the same size first, or leave this one out",
            )


def _clip_frames(config: PreprocessConfig, source: Source, report: "Reporter") -> tuple["ClipFrames", list[int]]:
    """The frames for the backend, and the position of each of them in the source."""
    import numpy as np

    from utils.geometry_backend import ClipFrames
    from utils.scene.frame_selection import between, choose_uniform, prefer_sharp, share_fairly
    from utils.scene.media import image_size, read_frames, working_size

    chosen: list[int] = []
    used: list[int] = []
    first = 0
    for total, share in zip(source.totals, share_fairly(source.totals, config.max_frames), strict=True):
        selection = choose_uniform(total, share, config.max_stride)
        if selection.sparse:
            report.note(
                f"frames: {share} of {total} are chosen, {selection.stride:.1f} apart (more than max_stride"
                f" {config.max_stride}), to cover the whole clip"
            )
        indices = selection.indices
        if config.prefer_sharp:
            indices = prefer_sharp(indices, _sharpness(source.frames[first : first + total]))
        chosen += (first + indices).tolist()
        used += (first + between(indices, config.between_frames)).tolist()
        first += total
    size = image_size(source.frames[0])
    scale = min(1.0, max(_POSE_RESOLUTION, config.process_res) / max(size))
    images = read_frames([source.frames[i] for i in used], (round(size[0] * scale), round(size[1] * scale)))
    frames = ClipFrames(
        images=images,
        chosen=np.searchsorted(used, chosen),
        size=working_size(size, config.process_res),
        names=tuple(source.frames[i].name for i in used),
    )
    return frames, used


def _sharpness(paths: list[Path]) -> "Array":
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from utils.runtime import cpu_count
    from utils.scene.frame_selection import sharpness
    from utils.scene.media import read_image

    with ThreadPoolExecutor(cpu_count()) as pool:
        return np.array(list(pool.map(lambda path: sharpness(read_image(path)), paths)))


def _make_backend(name: str, config: PreprocessConfig) -> "GeometryBackend":
    from utils.geometry_backend import GEOMETRY

    options: dict[str, object] = {"seed": config.seed}
    if name == "da3":
        options |= {"model_name": config.model_name, "commercial_safe": config.commercial_safe}
    if name == "import":
        options["source"] = config.cameras
    return GEOMETRY.load(name)(**options)


def _masked(
    scene: "Scene",
    frames: "ClipFrames",
    positions: list[int],
    config: PreprocessConfig,
    backend: str,
    straight: "Straightener | None",
    report: "Reporter",
) -> "Scene":
    """The scene without what the user, an overlay or the sky takes out of it."""
    from utils.scene.masks import apply_masks, detect_sky, detect_static_overlay, is_sky, load_masks, mark_sky

    names = [frames.names[i] for i in frames.chosen[scene.cameras.frame_ids]]
    if config.mask_sky == "on" or (config.mask_sky == "auto" and backend == "sfm"):
        sky = detect_sky(scene.images)
        if config.mask_sky == "on" or is_sky(scene, sky):
            scene = mark_sky(scene, sky)
            report.note(f"masks: {sky.mean():.1%} of the frames is sky")
    if config.mask_overlays:
        overlay = detect_static_overlay(scene.images)
        report.note(f"masks: {overlay.mean():.1%} of the picture is a static overlay")
        scene = apply_masks(scene, ~overlay[None].repeat(len(scene), axis=0), names)
    if config.masks is not None:
        keep = load_masks(config.masks, names, scene.cameras.size, frames.images.shape[1:3])
        scene = apply_masks(scene, keep if straight is None else straight.masks(keep, positions), names)
    return scene


def _matchable(config: PreprocessConfig, frames: "ClipFrames", report: "Reporter") -> "Array | None":
    """(T, h, w) bool: pixels that tell the camera's motion, those that neither the user nor an overlay takes out; None for all."""
    import numpy as np

    from utils.scene.masks import detect_static_overlay, load_masks, unmasked

    if config.masks is None and not config.mask_overlays:
        return None
    keep = np.ones(frames.images.shape[:3], bool)
    if config.mask_overlays:
        keep &= ~detect_static_overlay(frames.images)
    if config.masks is not None:
        # Frames in between only help: they may lack a mask, those of the scene may not.
        bare = np.setdiff1d(unmasked(config.masks, frames.names), frames.chosen)
        if len(bare):
            report.note(f"masks: {len(bare)} frames between those of the scene have none and are matched as they are")
        masked = np.setdiff1d(np.arange(len(frames.names)), bare)
        keep[masked] &= load_masks(config.masks, [frames.names[i] for i in masked], frames.images.shape[1:3])
    return keep


def _straightener(
    config: PreprocessConfig, source: Source, frames: "ClipFrames", read: list[int], report: "Reporter"
) -> tuple["Straightener | None", "SparseModel | None"]:
    """What takes lens and shutter out of the frames, if wanted, and the chosen frames' sparse model if that was made on the way."""
    from utils.scene.captured import ClipMotion, Straightener, parse_camera
    from utils.scene.media import read_image

    if config.lens == "none":
        return None, None
    motion = ClipMotion(lambda position: read_image(source.frames[position]), source.totals)
    if config.lens != "estimate":
        return Straightener(parse_camera(config.lens), motion), None
    from utils.sfm.captured_camera import estimate_camera

    report.note("lens and shutter: mapping the frames as they are")
    chosen = [read[row] for row in frames.chosen]
    camera, mapped = estimate_camera(
        frames.images[frames.chosen],
        lambda row: motion.of(chosen[row]),
        seed=config.seed,
        report=report,
        keep=None if frames.keep is None else frames.keep[frames.chosen],
    )
    straight = Straightener(camera, motion)
    shutter = straight.readout_text(source.fps) if camera.readout else "none to be seen"
    report.note(f"shutter: {shutter}")
    return straight, mapped


def _taken_out(straight: "Straightener | None", source: Source) -> dict[str, str]:
    """For the manifest: what was taken out of the frames."""
    if straight is None:
        return {}
    lens = straight.camera.lens
    return {"lens": f"{lens.focal:.5f},{lens.k:+.5f}", "shutter": straight.readout_text(source.fps) if straight.camera.readout else "none"}


def _write_subsampled(
    config: PreprocessConfig, layout: "SceneLayout", kept: list[Path], positions: list[int], straight: "Straightener | None"
) -> None:
    """The scene's frames at their original size, without lens and shutter, numbered from 0 like the rows of results.npz."""
    from utils.scene.manifest import publish
    from utils.scene.media import read_image, write_image

    with publish(layout.frames_subsampled) as folder:
        for index, (path, position) in enumerate(zip(kept, positions, strict=True)):
            target = folder / f"{index:06d}.{config.image_ext}"
            if straight is not None:
                write_image(target, straight(read_image(path), position))
            elif path.suffix.lower() == f".{config.image_ext}":
                target.write_bytes(path.read_bytes())
            else:
                write_image(target, read_image(path))


def _grays(
    source: Source, scene: "Scene", frames: "ClipFrames", read: list[int], straight: "Straightener | None"
) -> "Callable[[int], Array]":
    """Gives the grey image of any frame of the source as the scene would show it; what has been read already is not read again."""
    import cv2

    from utils.scene.media import read_image, resize_area

    row_of = {position: row for row, position in enumerate(read)}

    def gray(position: int) -> "Array":
        if position in row_of:
            image = frames.images[row_of[position]]
        else:
            image = read_image(source.frames[position])
            image = image if straight is None else straight(image, position)
        return cv2.cvtColor(resize_area(image, scene.cameras.size), cv2.COLOR_RGB2GRAY)

    return gray


def _write_clip_cameras(
    config: PreprocessConfig,
    layout: "SceneLayout",
    source: Source,
    scene: "Scene",
    positions: list[int],
    gray: "Callable[[int], Array]",
    straight: "Straightener | None",
    report: "Reporter",
) -> None:
    """Cameras of every frame of the clip at its own size: transforms.json, a COLMAP model and the scene's points.

    The frames are those on disk. With a shutter no camera model of those formats holds for them, so they are written without it.
    """
    import numpy as np

    from utils.exports.clip import write_clip
    from utils.scene.manifest import publish
    from utils.scene.media import image_size, read_image, write_image
    from utils.sfm.clip_cameras import place_clip

    wholes = list(range(len(source.frames))) if config.every_frame else positions
    if not config.every_frame:
        source = dataclasses.replace(source, frames=[source.frames[p] for p in positions], totals=[len(positions)])
        positions = list(range(len(positions)))
    found = place_clip(scene, np.array(positions), source.totals, gray, report)
    missing = [frame.name for frame, placed in zip(source.frames, found.placed, strict=True) if not placed]
    if missing:
        report.note(f"cameras: {len(missing)} of {len(source.frames)} frames of the clip could not be placed: {_abridged(missing)}")
    size = image_size(source.frames[0])
    with publish(layout.clip_cameras) as folder:
        if straight is None or not straight.camera.readout:
            write_clip(folder, found, source.frames, size, scene, None if straight is None else straight.camera.lens)
            return
        names = [f"images/{frame.stem}.{config.image_ext}" for frame in source.frames]
        (folder / "images").mkdir()
        for index in np.flatnonzero(found.placed):
            write_image(folder / names[index], straight(read_image(source.frames[index]), wholes[index]))
        write_clip(folder, found, [layout.clip_cameras / name for name in names], size, scene, None)


def _abridged(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _write_extras(
    config: PreprocessConfig, layout: "SceneLayout", source: Source, scene: "Scene", positions: list[int], straight: "Straightener | None"
) -> None:
    """`preprocess_frames.json` and the fly-through path; `positions` are those of the scene's frames in the source."""
    from utils.scene.artifacts import write_json
    from utils.scene.manifest import writing
    from utils.scene.trajectories import extend_path, save_trajectory

    write_json(
        layout.preprocess_json,
        {
            "frames_dir": layout.frames_subsampled.name,
            "source_frames_dir": os.path.relpath(source.folder, config.root),
            "image_ext": config.image_ext,
            "source": "input_video" if config.input_video else "frames_dir",
            "max_frames": config.max_frames,
            "max_stride": config.max_stride,
            "actual_stride": round((len(source.frames) - 1) / max(len(positions) - 1, 1), 3),
            "num_frames_used": len(positions),
            "positions": [int(position) for position in positions],
            "camera": None if straight is None else straight.described(source.fps),
        },
    )
    with writing(layout.path_json):
        layout.path_json.parent.mkdir(parents=True, exist_ok=True)
    save_trajectory(layout.path_json, extend_path(scene.cameras, scene.median_depth))


def parse(arguments: list[str] | None = None) -> PreprocessConfig:
    """The settings of the command line."""
    defaults = {field.name: field.default for field in dataclasses.fields(PreprocessConfig)}
    parser = argparse.ArgumentParser(
        prog="preprocess_video.py", description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--input_video", nargs="+", type=Path, metavar="CLIP", help="clips of one place, or a folder of them")
    given.add_argument("--frames_dir", type=Path, help="folder of images that sort by name")
    parser.add_argument("--scene_root", type=Path, help="where the scene is written (default: beside the input)")
    parser.add_argument("--max_frames", type=int, default=defaults["max_frames"], help="most frames that become the scene")
    parser.add_argument("--max_stride", type=int, default=defaults["max_stride"], help="largest step that counts as dense")
    parser.add_argument("--image_ext", choices=IMAGE_EXTENSIONS, default=defaults["image_ext"], help="format of written frames")
    parser.add_argument("--backend", default=defaults["backend"], help="auto, sfm, da3 or import")
    parser.add_argument("--cameras", type=Path, help="COLMAP model or transforms.json to take cameras (and depth) from")
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="images named like the frames: white = use, black = ignore")
    parser.add_argument(
        "--lens", default=defaults["lens"], help="lens and rolling shutter to take out: none, estimate, or FOCAL,K[,READOUT]"
    )
    parser.add_argument("--mask_overlays", action="store_true", help="ignore opaque logos and watermarks")
    parser.add_argument(
        "--mask_sky",
        nargs="?",
        const="on",
        default=defaults["mask_sky"],
        choices=("auto", "on", "off"),
        help="treat what looks like sky as far and least certain; auto: where the depth found by sfm bears it out",
    )
    parser.add_argument("--model_name", default=defaults["model_name"], help="weights of the da3 backend")
    parser.add_argument("--commercial_safe", action="store_true", help="da3: only weights free for commercial use")
    parser.add_argument("--process_res", type=int, default=defaults["process_res"], help="longest side of images and depth")
    parser.add_argument("--between_frames", type=int, default=defaults["between_frames"], help="helper frames in each gap")
    parser.add_argument("--prefer_sharp", action="store_true", help="choose the sharpest frame near each position")
    parser.add_argument("--chosen_frames_only", action="store_true", help="do not place the clip's other frames (exports/cameras)")
    parser.add_argument("--seed", type=int, default=defaults["seed"], help="makes mapping repeatable")
    parser.add_argument("--overwrite", action="store_true", help="make the scene again even if it is current")
    values = vars(parser.parse_args(arguments))
    values["input_video"] = tuple(values["input_video"] or ())
    values["every_frame"] = not values.pop("chosen_frames_only")
    return PreprocessConfig(**values)


def main() -> None:
    """Entry point of the command line."""

    def work() -> None:
        config = parse()
        from utils.reporting import ConsoleReporter

        with ConsoleReporter() as report:
            print(run(config, report))

    run_stage(work)


if __name__ == "__main__":
    main()
