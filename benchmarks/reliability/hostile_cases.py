"""Hostile inputs of every kind, drawn by chance: settings, command lines, files of the scene, clips, frames, cameras, masks, targets."""

import dataclasses
import json
import os
import random
import shlex
import shutil
import struct
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import cv2
import numpy as np

from benchmarks.reliability import spoil
from benchmarks.reliability.runs import STAGES, command
from benchmarks.reliability.sandbox import Case
from configs.batch import BatchConfig
from configs.evaluation import EvalConfig, ExportConfig, ExportFormat, ViewerConfig
from configs.pipeline import PipelineConfig
from configs.preprocess import PreprocessConfig
from configs.stage1_align import FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from configs.web import WebConfig

SETTINGS: dict[str, type] = {
    "run_reconstruction": PipelineConfig,
    "preprocess_video": PreprocessConfig,
    "frame_to_model_icp": FrameToModelICPConfig,
    "global_optimization": GlobalOptimizationConfig,
    "train_inverse_deformation": InverseDeformationConfig,
    "train_gs": GSConfig,
    "eval_gs": EvalConfig,
    "utils.export_checkpoint_to_ply": ExportConfig,
    "utils.view_checkpoint": ViewerConfig,
    "web": WebConfig,
    "batch": BatchConfig,
}
_MODULES = dict(zip(STAGES, list(SETTINGS)[1:7], strict=True))
RUN = "frame_to_model_icp_6_1_offset0"
INTEGERS = (
    "-1", "0", "1", "2", "7", "100", "5000", "100000", "1000000000", "100000000000", "1000000000000", "-100000000000000000000", "1e12",
    "0x10", "1.5", "nan", "inf", "", "ten", "\uff11\uff12", "1_000", " 3", "9" * 5000,
)  # fmt: skip
FLOATS = (
    "-1", "0", "-0.0", "1", "0.5", "2", "100", "nan", "inf", "-inf", "1e-300", "5e-324", "1e300", "1e12", "1e10", "1e-10", "1e-3", "",
    "x", "1,5",
    "1e400", "9" * 5000,
)  # fmt: skip
TEXTS = (
    "", " ", ".", "..", "/", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/x", "own", "own/keep.txt",
    "own/keep.txt/below",
    "a" * 300, "x/" * 2100, "new\nline", "tab\tname", "../../x", "*", "~", "~nobody/x", "ä\u202e.mp4", "\udcff", "not_there", "clip.mp4",
    "clip.mp4/x", "frames", "scene", "scene/exports", "pipe", "loop", "http://127.0.0.1:9/x.mp4", "CON", "auto", "none", "torch",
    "flow_dis",
    "1e3,inf", "0.8,0.1", "nan,nan", "1,2,3,4", "0,0", "C:\\x", "'; rm -rf own; '", "$HOME", "-", "{}", "é" * 120,
)  # fmt: skip
# Numbers by which a person asks for much work or memory of a kind that only time bounds.
_EFFORT = (
    "iter", "steps", "max_frames", "process_res", "every", "num_points", "batch", "size", "samples", "neighbors", "points", "pairs",
    "levels",
    "neurons", "layers", "lattice", "resolution", "references", "matches", "visits", "frames", "octaves", "dim", "gaps", "width",
    "height", "scale",
    "view", "radii", "dist", "rounds", "patience", "k", "seconds", "between", "triangles", "max_", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Ground:
    """What cases are made from; it is copied, never changed.

    Attributes:
        folder: of all of it.
        reference: a finished small scene.
        clip: its clip.
        frames: folder of eight images.
        colmap: folder of a text model of them.
    """

    folder: Path
    reference: Path
    clip: Path
    frames: Path
    colmap: Path

    def lay(self, folder: Path, *parts: str) -> None:
        """Puts copies of "scene", "clip.mp4", "frames" or "colmap", and always the user's own files, into a case's folder."""
        folder.mkdir(parents=True)
        shutil.copytree(self.folder / "own", folder / "own")
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to("loop")
        sources = {"scene": self.reference, "clip.mp4": self.clip, "frames": self.frames, "colmap": self.colmap}
        for part in parts:
            source = sources[part]
            shutil.copytree(source, folder / part) if source.is_dir() else shutil.copy(source, folder / part)


# A whole run in a few seconds.
_DRIVER = shlex.split(
    "--config.device cpu --config.stage0.max-frames 4 --config.stage0.process-res 112 --config.gs.num-iters 10"
    " --config.gs.target-num-points 500 --config.skip-eval"
)

Maker = Callable[[random.Random, Ground, Path], Case]


def base_words(stage: str) -> tuple[str, ...]:
    """Arguments of a stage of the small scene, relative to a case's folder."""
    words = command(Path("clip.mp4"), Path("scene"), stage)
    quick = ["--config.num-iters", "20"] if stage == "3dgs splats" else []
    return (*(words[3:] if words[1] == "-m" else words[2:]), *quick)


def usual(name: str) -> tuple[str, ...]:
    """Arguments with which a command works in a case's folder."""
    words = {
        "run_reconstruction": shlex.split(
            "--config.root-path scene --config.device cpu --config.stage1.alignment.num-frames 6 --config.gs.num-iters 20 "
            "--config.gs.target-num-points 800 --config.gs.save-every 10 --config.eval.max-frames 4 --config.eval.no-render-input-poses"
        ),
        "utils.export_checkpoint_to_ply": shlex.split(f"--config.root-path scene --config.run {RUN} --config.device cpu"),
        "utils.view_checkpoint": shlex.split(f"--config.root-path scene --config.run {RUN} --config.port 18080"),
        "web": shlex.split("--workspace worlds --port 18090"),
        "batch": shlex.split("frames --config.out worlds --config.device cpu --config.engine local --config.dry-run"),
        "utils.synthetic": shlex.split("--out made --frames 8 --size 64x48"),
    }
    stages = {module: stage for stage, module in _MODULES.items()}
    return tuple(words[name]) if name in words else base_words(stages[name])


def fields_of(cls: type, before: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, type and default of every setting, those of groups too."""
    hints = get_type_hints(cls)
    for f in dataclasses.fields(cls):
        hint, name = hints[f.name], f"{before}{f.name}"
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from fields_of(hint, f"{name}.")
        else:
            yield name, hint, f.default


def hostile_value(draws: random.Random, hint: Any) -> list[str]:
    """Words for a value of a type that may or may not be one."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = draws.choice([a for a in get_args(hint) if a is not type(None)])
    if get_origin(hint) is tuple:
        parts = [a for a in get_args(hint) if a is not Ellipsis]
        count = draws.choice((len(get_args(hint)), len(get_args(hint)), 0, 1, 2, 5))
        return [word for _ in range(count) for word in hostile_value(draws, draws.choice(parts))]
    if get_origin(hint) is Literal:
        return [draws.choice((*map(str, get_args(hint)), "turbo", "", "AUTO", "none", "0"))]
    pools = {bool: ("maybe", "1", ""), int: INTEGERS, float: FLOATS}
    return [draws.choice(pools.get(hint, TEXTS))]


def _flag(name: str, command_name: str) -> str:
    if command_name in ("preprocess_video", "web"):
        return f"--{name}" if command_name == "preprocess_video" else f"--{name.replace('_', '-')}"
    return f"--config.{name.replace('_', '-')}"


def settings(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """One to three settings of a command with values that are wrong, extreme or odd."""
    name = draws.choice(list(SETTINGS))
    ground.lay(folder, "scene", "clip.mp4", "frames")
    known = [f for f in fields_of(SETTINGS[name]) if f[0] not in ("dry_run", "host", "open_to_all", "address", "engine")]
    words, about, long = list(usual(name)), [], False
    for _ in range(draws.choice((1, 1, 1, 2, 3))):
        field, hint, _ = draws.choice(known)
        if hint is bool:
            no = draws.choice(("", "no-"))
            *groups, last = field.split(".")
            new = [_flag(".".join([*groups, no + last]), name), *([] if draws.random() < 0.7 else hostile_value(draws, hint))]
        else:
            new = [_flag(field, name), *hostile_value(draws, hint)]
        long |= any(part in field.rpartition(".")[2] for part in _EFFORT)
        words += new
        about.append(" ".join(w[:40] for w in new))
    if name in _MODULES.values() and draws.random() < 0.6:
        words.append("--overwrite" if name == "preprocess_video" else "--config.overwrite")
    return Case("settings", name, tuple(words), "; ".join(about), long=long)


def synthetic(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """Flags of the maker of synthetic clips."""
    ground.lay(folder)
    flags = {
        "--frames": INTEGERS, "--size": (*TEXTS[:8], "0x0", "1x1", "64x48", "63x47", "-2x4", "2x2", "99999999x2", "axb", "64x48x3",
        "1e3x2", "64"),
        "--severity": (*FLOATS, "low", "high", "HIGH"), "--seed": INTEGERS, "--path-scale": FLOATS, "--out": TEXTS, "--occluders": INTEGERS,
        "--vanishing": FLOATS, "--warp": ("smooth", "rough", ""), "--texture": ("rich", "weak", "x"), "--layout": ("room", "x", ""),
    }  # fmt: skip
    chosen = draws.sample(list(flags), draws.choice((1, 1, 2)))
    words = [word for flag in chosen for word in (flag, draws.choice(flags[flag]))]
    about = " ".join(w[:40] for w in words)
    return Case("settings", "utils.synthetic", (*usual("utils.synthetic"), *words), about, long=True)


def words(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """Command lines that are no command lines."""
    name = draws.choice([*SETTINGS, "utils.synthetic"])
    ground.lay(folder, "clip.mp4")
    line = list(usual(name))
    how = draws.choice(("unknown", "cut", "shuffle", "drop", "double", "lone", "source", "file", "none", "equals", "abbreviated", "at"))
    at = draws.randrange(len(line) + 1)
    if how == "unknown":
        line[at:at] = [
            draws.choice(("--nonsense", "-x", "--config.gs.nothing", "--config", "--", "---", "--config.", "--config.gs", "-", "--no-"))
        ]
    elif how == "cut":
        line = line[:at]
    elif how == "shuffle":
        draws.shuffle(line)
    elif how == "drop" and line:
        del line[min(at, len(line) - 1)]
    elif how == "double":
        line += line
    elif how == "lone":
        line = [draws.choice((*TEXTS, "--help-me", "--version=1", "--config-file", "--progress-file"))]
    elif how == "source":
        line = [draws.choice(TEXTS) for _ in range(draws.choice((1, 2, 3)))]
    elif how == "file":
        return _config_file(draws, name, line, folder)
    elif how == "none":
        line = []
    elif how == "equals":
        line = [f"{word}={draws.choice(TEXTS)}" if word.startswith("--") else word for word in line]
    elif how == "abbreviated":
        line = [word[: max(3, len(word) - 3)] if word.startswith("--") else word for word in line]
    else:
        line[at:at] = [f"@{draws.choice(TEXTS)}"]
    return Case("command line", name, tuple(line), f"{how}: {' '.join(w[:30] for w in line)[:100]}")


def _config_file(draws: random.Random, name: str, line: list[str], folder: Path) -> Case:
    """Saved settings that are damaged."""
    from utils.scene.manifest import portable

    path = folder / "saved.json"
    saved: Any = {"mode": "fast"}
    if name == "run_reconstruction":
        from configs.pipeline import preset

        saved = portable(preset("fast", "cpu"))
    path.write_text(json.dumps(saved))
    about = spoil.spoil(draws, path)
    return Case(
        "command line", name, (*line, "--config-file", "saved.json", *(["--config.dry-run"] if name == "run_reconstruction" else [])), about
    )


# ------------------------------------------------------------------------------------------------ files of the scene


def scene_file(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """A file of a finished scene that is damaged, and a command that reads the scene."""
    ground.lay(folder, "scene", "clip.mp4")
    root = folder / "scene"
    weight = {".json": 8, ".npz": 12, ".pt": 6, ".png": 1, ".jpg": 1, ".mp4": 1, ".bin": 2, ".ply": 2}
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and "frames" not in p.parts[-2]]
    files += sorted((root / "frames_subsampled").glob("*"))[:2]
    path = draws.choices(files, [weight.get(p.suffix, 1) for p in files])[0]
    shown = path.relative_to(root)
    about = spoil.spoil(draws, path)
    reader = draws.choice(_readers(shown))
    line = list(usual(reader))
    if reader in _MODULES.values() and reader != "preprocess_video":
        line.append("--config.overwrite")
    if reader == "utils.export_checkpoint_to_ply":
        line += ["--config.format", draws.choice(get_args(ExportFormat)), "--config.out-ply", "made"]
    if draws.random() < 0.3 and path.exists() and (path.parent / "manifest.json").is_file() and path.name != "manifest.json":
        (path.parent / "manifest.json").unlink()  # as a folder of another program
        about += ", no manifest"
    return Case("file of the scene", reader, tuple(line), f"{shown.parent.name}/{about}")


def _readers(shown: Path) -> list[str]:
    """Commands that read a file of the scene, one more likely by more entries."""
    after = {
        "npz": ["frame_to_model_icp"] * 3 + ["train_gs", "eval_gs", "global_optimization"],
        "after_non_rigid_icp": ["global_optimization"],
        "after_global_optimization": ["train_inverse_deformation", "train_gs", "utils.export_checkpoint_to_ply"],
        "inverse_deformation": ["train_gs"],
        "gs_3dgs": ["eval_gs", "utils.export_checkpoint_to_ply", "utils.view_checkpoint"],
        "gs_video": ["eval_gs", "utils.view_checkpoint"],
        "cameras": ["eval_gs", "utils.export_checkpoint_to_ply"],
        "frames_subsampled": ["train_gs", "frame_to_model_icp"],
    }
    return [*after.get(shown.parent.name, []) * 2, "run_reconstruction", draws_any(shown)]


def draws_any(shown: Path) -> str:
    """A command that is as likely as any other, the same for one file."""
    names = list(SETTINGS)[:9]
    return names[sum(map(ord, str(shown))) % len(names)]


_ENTRIES = (
    '["clip.mp4", "frames", "scene"]', '[{"source": "clip.mp4", "name": "a"}, {"source": "frames", "name": "a"}]',
    '[{"source": "clip.mp4", "name": "../x"}]', '[{"source": "clip.mp4", "settings": {"gs.num_iters": 0}}]', '[{"source": 7}]', "{}",
    '[{"source": "clip.mp4", "settings": {"mode": ["turbo", null]}}]', '[{"source": ["clip.mp4", "gone.mp4"], "settings": 3}]', "[]",
    "source,name\nclip.mp4,a\nframes,b\n", "source\nclip.mp4\n\ngone.mp4\n", "name\nx\n", "source,name\nclip.mp4,own\n",
    "source,settings\nclip.mp4,--mode turbo", "\ufeffsource\nclip.mp4", "clip.mp4\nframes", "[" * 50_000, "source\nclip.mp4\0",
    '[{"source": "clip.mp4", "settings": {"device": "cuda", "gs.seed": -1, "root_path": "own"}}]',
)  # fmt: skip


def scenes(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """A list of scenes that is damaged, names what is not there, or asks for what cannot be."""
    ground.lay(folder, "scene", "clip.mp4", "frames")
    path = folder / draws.choice(("list.json", "list.csv", "list.txt"))
    path.write_text(draws.choice(_ENTRIES))
    about = spoil.spoil(draws, path) if draws.random() < 0.5 else path.read_text()[:80]
    common = draws.choice((
        (), ("--",), ("--", "--mode", "turbo"), ("--", "--gs.num-iters", draws.choice(INTEGERS)), ("--", "--nonsense"), ("--", "clip.mp4"),
        ("--", "--root-path", "own"), ("--", "--config-file", "own/manifest.json"), ("--", "--dry-run"), ("--", "--help"),
    ))  # fmt: skip
    source = draws.choice((path.name, path.name, path.name, *TEXTS))
    line = (source, *usual("batch")[1:], *(("--config.out", draws.choice(TEXTS)) if draws.random() < 0.3 else ()), *common)
    return Case("list of scenes", "batch", line, about)


def trajectory(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """A path of cameras for the evaluation."""
    ground.lay(folder, "scene")
    path = folder / "path.json"
    path.write_text(json.dumps(_short_path(json.loads((ground.reference / "gs_video" / "0000_extend_transforms.json").read_text()))))
    about = spoil.json_in(draws, path) if draws.random() < 0.8 else spoil.spoil(draws, path)
    line = (*usual("eval_gs"), "--config.transforms-path", "path.json", "--config.no-render-optimised-poses", "--config.overwrite")
    return Case("trajectory", "eval_gs", line, about)


def _short_path(path: dict[str, Any]) -> dict[str, Any]:
    return {**path, "frames": path["frames"][:3]}


def target(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """Results that are to go where something else is."""
    ground.lay(folder, "scene", "clip.mp4", "frames")
    name, flag = draws.choice(
        (
            ("train_inverse_deformation", "--config.out-path"), ("train_gs", "--config.out-dir"), ("eval_gs", "--config.out-dir"),
            ("global_optimization", "--config.out-subdir"), ("utils.export_checkpoint_to_ply", "--config.out-ply"),
            ("preprocess_video", "--scene_root"), ("run_reconstruction", "--config.root-path"), ("run_reconstruction",
            "--config.progress-file"),
            ("frame_to_model_icp", "--config.out-suffix"), ("utils.synthetic", "--out"),
        )
    )  # fmt: skip
    place = draws.choice(
        (
            *TEXTS,
            "own/frames",
            "own/link",
            "scene/" + RUN,
            "scene/exports/npz",
            "scene/frames",
            f"scene/{RUN}/gs_3dgs/model_final.pt",
            f"{folder}/own",
        )
    )
    (folder / "own" / "link").symlink_to("frames")
    line = [*usual(name), flag, place]
    if name in _MODULES.values():
        line.append("--overwrite" if name == "preprocess_video" else "--config.overwrite")
    if name == "utils.export_checkpoint_to_ply":
        line += ["--config.format", draws.choice(get_args(ExportFormat))]
    return Case("target", name, tuple(line), f"{flag} {place[:40]}")


# ------------------------------------------------------------------------------------------------ clips and frames


def clip(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """A clip that is damaged, none, or of an odd size, length or kind."""
    ground.lay(folder, "clip.mp4")
    how = draws.choice(("damaged", "damaged", "kind", "size", "size", "length", "picture", "named", "several"))
    path = folder / draws.choice(("c.mp4", "c.mov", "c.webm", "c.mkv", "c.gif", "c"))
    if how in ("damaged", "kind"):
        shutil.copy(ground.clip, path)
        about = spoil.bytes_of(draws, path) if how == "damaged" else spoil.kind_of(draws, path)
    elif how == "named":
        path = folder / draws.choice(
            (" .mp4", "a\nb.mp4", "\udcff.mp4", "%d.mp4", "concat:a.mp4", "file:x.mp4", "-.mp4", "x.mp4.", "é" * 100 + ".mp4")
        )
        shutil.copy(ground.clip, path)
        about = f"named {path.name!r}"
    elif how == "several":
        write_clip(path.with_suffix(".mkv"), (48, 64), 9, draws)
        return _of_clip(draws, ("clip.mp4", "c.mkv"), "two sizes")
    elif how == "picture":
        path = folder / draws.choice(("c.mp4", "c.gif"))
        path.write_bytes(cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes())
        about = "a picture"
    else:
        sizes = ((1, 1), (2, 2), (2, 10000), (10000, 2), (20, 8000), (16, 16), (56, 3000), (3, 64), (47, 61), (4000, 60), (1, 64))
        size = draws.choice(sizes) if how == "size" else (48, 64)
        count = draws.choice((1, 2, 3, 9)) if how == "length" else 9
        path = path.with_suffix(".mkv")
        write_clip(path, size, count, draws)
        about = f"{count} frames of {size[1]}x{size[0]}"
    return _of_clip(draws, (path.name,), about)


def _of_clip(draws: random.Random, names: tuple[str, ...], about: str) -> Case:
    small = ["--max_frames", "4", "--process_res", "112"]
    if draws.random() < 0.3:
        return Case("clip", "run_reconstruction", ("--config.input-video", *names, *_DRIVER), about)
    return Case("clip", "preprocess_video", ("--input_video", *names, "--scene_root", "made", *small), about)


def write_clip(path: Path, size: tuple[int, int], count: int, draws: random.Random) -> None:
    """A lossless clip of `size` (h, w): still, noise, or noise that moves."""
    import av

    noise = np.random.default_rng(draws.randrange(1000)).integers(0, 255, (size[0], size[1] + count, 3), np.uint8)
    kind = draws.choice(("still", "moving", "flicker", "black"))
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = "bgr0"
        for i in range(count):
            image = (
                noise[:, : size[1]]
                if kind == "still"
                else noise[:, i : i + size[1]]
                if kind == "moving"
                else noise[:, : size[1]] ^ np.uint8(i)
            )
            image = np.zeros_like(image) if kind == "black" else image
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))


def frames(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """A folder of frames in which something is wrong."""
    ground.lay(folder, "frames")
    shots = folder / "frames"
    files = sorted(shots.iterdir())
    path = draws.choice(files)
    how = draws.choice(("damaged", "damaged", "kind", "kind", "size", "declared", "format", "names", "many", "few", "inside"))
    about = how
    if how == "damaged":
        about = spoil.bytes_of(draws, path)
    elif how == "kind":
        about = spoil.kind_of(draws, path)
    elif how == "size":
        shape = draws.choice(((1, 1), (1, 2000), (2000, 1), (3000, 3000), (2, 2), (109, 192)))
        for each in draws.choice(([path], files)):
            cv2.imwrite(str(each), np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8))
        about = f"of {shape[1]}x{shape[0]}"
    elif how == "declared":
        raw = bytearray(path.read_bytes())
        raw[16:24] = struct.pack(">II", *draws.choice(((60000, 60000), (2**31 - 1, 1), (0, 0), (2**32 - 1, 2**32 - 1), (33000, 33000))))
        path.write_bytes(raw)
        about = "declares another size"
    elif how == "format":
        images = (np.zeros((108, 192), np.uint16), np.zeros((108, 192, 4), np.uint8), np.full((108, 192, 3), np.nan, np.float32))
        name = draws.choice((".png", ".tiff", ".exr", ".webp", ".jpg", ".bmp", ".hdr"))
        image = draws.choice(images)
        for each in files:
            try:
                cv2.imwrite(str(each.with_suffix(name)), image)
            except cv2.error:
                pass
        about = f"{image.dtype} {image.shape} as {name}"
    elif how == "names":
        for i, each in enumerate(files):
            each.rename(
                shots
                / draws.choice((f"\udcff{i}.png", f"{'9' * 200}{i}.png", f"a\n{i}.png", f"²{i}.png", f".{i}.png", f"{i}.PNG", f"x{i}.txt"))
            )
    elif how == "many":
        for i in range(3):
            shutil.copytree(ground.frames, shots / draws.choice(("cam", "cam/deep", "masks", "ä", "depth")) / str(i), dirs_exist_ok=True)
    elif how == "few":
        for each in files[draws.choice((0, 1, 2)) :]:
            each.unlink()
    else:
        return Case(
            "frames",
            "preprocess_video",
            ("--frames_dir", "frames", "--scene_root", draws.choice(("frames", "frames/made", "."))),
            "scene inside",
            guarded=("own", "frames"),
        )
    if draws.random() < 0.2:
        return Case(
            "frames",
            "run_reconstruction",
            ("frames", *_DRIVER),
            about,
        )
    return Case(
        "frames", "preprocess_video", ("--frames_dir", "frames", "--scene_root", "made", "--max_frames", "4", "--process_res", "112"), about
    )


def cameras(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """Cameras of another program that are damaged."""
    ground.lay(folder, "frames", "colmap")
    kind = draws.choice(("text", "text", "binary", "binary", "json", "json", "json", "npz"))
    line = ["--frames_dir", "frames", "--scene_root", "made", "--max_frames", "4", "--process_res", "112", "--cameras"]
    about = []
    if kind in ("text", "binary"):
        model = folder / "colmap"
        for path in model.iterdir():
            if path.suffix != (".txt" if kind == "text" else ".bin"):
                path.unlink()
        path = draws.choice(sorted(model.iterdir()))
        given = "colmap"
    elif kind == "json":
        path, given = folder / "transforms.json", "transforms.json"
        shutil.copy(ground.folder / "transforms.json", path)
    else:
        path, given = folder / "poses.npz", "poses.npz"
        with np.load(ground.reference / "exports" / "npz" / "results.npz") as results:
            arrays = {name: results[name] for name in ("extrinsics", "intrinsics", "depth") if name in results}
        np.savez(path, **arrays)
    for _ in range(draws.choice((1, 1, 2))):
        if path.is_file() and not path.is_symlink():
            try:
                about.append(spoil.spoil(draws, path))
            except (ValueError, KeyError, OSError, EOFError, RecursionError, zipfile.BadZipFile):
                break  # it is beyond further damage
    return Case("cameras", "preprocess_video", (*line, given), f"{kind}: {'; '.join(about)}")


def masks(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """Masks that do not fit."""
    ground.lay(folder, "frames")
    place = folder / "masks"
    place.mkdir()
    names = [p.name for p in sorted((folder / "frames").iterdir())]
    value = draws.choice((0, 255, 7))
    shape = draws.choice(((108, 192), (54, 96), (192, 108), (1, 1), (108, 192, 3), (108, 192, 4), (2000, 10)))
    for name in draws.choice((names, names[:1], ["all.png"], [f"x{n}" for n in names])):
        cv2.imwrite(str(place / name), np.full(shape, value, np.uint8))
    about = f"{shape} of {value}"
    if draws.random() < 0.6:
        about += ", " + spoil.spoil(draws, draws.choice(sorted(place.iterdir())))
    line = ("--frames_dir", "frames", "--scene_root", "made", "--max_frames", "4", "--process_res", "112", "--masks", "masks")
    return Case("masks", "preprocess_video", line, about)


def workspace(draws: random.Random, ground: Ground, folder: Path) -> Case:
    """The web page over a workspace in which something is wrong."""
    ground.lay(folder)
    job = folder / "worlds" / "20260101-000000-clip"
    job.mkdir(parents=True)
    shutil.copy(ground.clip, job / "clip.mp4")
    record = {
        "id": job.name,
        "name": "clip.mp4",
        "source": "clip.mp4",
        "about": "",
        "created": 1.0,
        "queued": 1.0,
        "mode": "fast",
        "state": "done",
    }
    (job / "job.json").write_text(json.dumps(record))
    path = draws.choice(
        (job / "job.json", job / "job.json", job / "job.json", job / "clip.mp4", folder / "worlds" / ".lock", job, folder / "worlds")
    )
    about = spoil.spoil(draws, path) if path.is_file() else f"{path.name} {spoil.kind_of(draws, path)}"
    return Case("workspace", "web", (*usual("web")[:2], "--port", str(draws.randrange(20000, 60000))), about)


KINDS: dict[str, tuple[int, tuple[Maker, ...]]] = {
    "settings": (31, (settings, settings, settings, settings, settings, settings, synthetic)),
    "command line": (10, (words,)),
    "file of the scene": (22, (scene_file,)),
    "list of scenes": (3, (scenes,)),
    "trajectory": (5, (trajectory,)),
    "target": (6, (target,)),
    "clip": (6, (clip,)),
    "frames": (6, (frames,)),
    "cameras": (8, (cameras,)),
    "masks": (2, (masks,)),
    "workspace": (1, (workspace,)),
}
"""Kind -> its share of the cases in hundredths, and what makes one."""


def case_of(seed: int, number: int, ground: Ground, folder: Path, kinds: tuple[str, ...] = ()) -> Case:
    """The case of a seed and number, with its files laid out in a new folder."""
    draws = random.Random(f"{seed} {number}")
    names = list(kinds or KINDS)
    kind = draws.choices(names, [KINDS[name][0] for name in names])[0]
    made = draws.choice(KINDS[kind][1])(draws, ground, folder)
    return replace(made, kind=kind)
