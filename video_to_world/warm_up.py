"""Compiles the kernels of the stages after geometry ahead of time, in processes of their own, while geometry is still at work.

A first run on a machine would else spend most of a minute in Triton and Numba. Both keep what they compile on disk (Triton in
`~/.triton/cache` or TRITON_CACHE_DIR, Numba beside the code or in NUMBA_CACHE_DIR), where the main program finds it. What runs is each
stage on a made scene of a few tiny frames, so nothing has to be listed by hand.
"""

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from utils.scene import artifacts
from utils.scene.layout import SceneLayout
from utils.types import NULL_REPORTER, CameraSet, Scene

PARTS = ("alignment", "splats")
_ROOT = Path(__file__).resolve().parent.parent
_FRAMES, _SIZE, _FOCAL, _STEP = 9, (72, 128), 110.0, 2


def tiny_scene(seed: int = 0) -> Scene:
    """A textured wall that the camera moves along, two pixels a frame; the seed makes the texture."""
    h, w = _SIZE
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (h // 4, (w + _FRAMES * _STEP) // 4 + 1, 3))
    wall = np.kron(coarse, np.ones((4, 4, 1)))[:h].astype(np.uint8)
    c2w = np.tile(np.eye(4), (_FRAMES, 1, 1))
    c2w[:, 0, 3] = np.arange(_FRAMES) * _STEP / _FOCAL
    K = np.tile(np.array([[_FOCAL, 0, w / 2], [0, _FOCAL, h / 2], [0, 0, 1]]), (_FRAMES, 1, 1))
    tilt = 1 + 0.1 * np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    return Scene(
        cameras=CameraSet(c2w=c2w, K=K, size=_SIZE, frame_ids=np.arange(_FRAMES)),
        images=np.stack([wall[:, i * _STEP : i * _STEP + w] for i in range(_FRAMES)]),
        depth=np.tile(tilt, (_FRAMES, 1, w)),
        confidence=np.ones((_FRAMES, h, w), np.float32),
    )


def compile_part(part: str, folder: Path, gs: GSConfig) -> None:
    """Runs the stages of a part on the made scene in `folder`."""
    from frame_to_model_icp import stage as stage1
    from global_optimization import stage as stage2
    from train_gs import stage as stage32
    from train_inverse_deformation import stage as stage31

    SceneLayout(folder).npz_dir.mkdir(parents=True)
    artifacts.save_results(SceneLayout(folder).npz_dir, tiny_scene())
    first = FrameToModelICPConfig(root_path=folder, alignment=AlignmentDataConfig(num_frames=_FRAMES, stride=1))
    if part == "alignment":
        run = stage1.run(first).parent.name
        stage2.run(GlobalOptimizationConfig(root_path=folder, run=run))
        return
    source = still_alignment(first)
    run, name = source.parent.name, source.name
    stage31.run(InverseDeformationConfig(root_path=folder, run=run, checkpoint_subdir=name))
    steps = 4 * _FRAMES
    few = replace(gs, num_iters=steps, sh_full_from_iter=steps // 2, target_num_points=3000, shell_share=0.0, relocate_every=0)
    few = replace(few, initial_fill=1.0, lpips_weight=0.0, inverse_deform_dir=None)
    stage32.run(replace(few, root_path=folder, run=run, global_opt_subdir=name))


def still_alignment(config: FrameToModelICPConfig) -> Path:
    """Publishes the made scene as aligned, with the lattice of stage 2, since kernels depend on its nodes; returns the folder."""
    from utils.deformation.lattice.numba import zero_fields
    from utils.registration import build_cloud
    from utils.registration.result import to_alignment
    from utils.registration.sequential import unaligned
    from utils.report.alignment_report import publish_alignment

    scene = artifacts.load_scene(config.root_path)
    result = replace(unaligned(scene), fields=zero_fields(scene.depth, scene.valid, GlobalOptimizationConfig().fine.lattice))
    cloud = build_cloud(scene, result.cameras, result.fields, result.aligned, scene.valid, config.filter)
    out = SceneLayout(config.root_path).run("still").after_global_optimization
    inputs = {"results": artifacts.scene_id(config.root_path)}
    publish_alignment(out, scene, result, to_alignment(scene, result, cloud), config, inputs, time.perf_counter(), {}, NULL_REPORTER)
    return out


def marker(renderer: str) -> Path:
    """A file that says that this program has compiled everything on this machine with these packages."""
    import torch

    folders = ("configs", "utils", "frame_to_model_icp", "global_optimization", "train_inverse_deformation", "train_gs")
    sources = sorted(path for folder in folders for path in (_ROOT / folder).rglob("*.py"))  # not a virtual environment beside them
    stamp = [f"{p.relative_to(_ROOT)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in sources]
    stamp += [renderer, torch.__version__, platform.python_version(), torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"]
    home = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    return home / f"video_to_world_{hashlib.sha256(chr(10).join(stamp).encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def warming_up(renderers: tuple[str, ...]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Inside, processes compile what is not compiled yet; those still at work at the end are stopped."""
    jobs = [(part, renderer) for renderer in renderers if not marker(renderer).exists() for part in PARTS]
    jobs = list(dict.fromkeys((part, renderer if part == "splats" else renderers[0]) for part, renderer in jobs))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "video_to_world.warm_up", part, renderer],
            cwd=_ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for part, renderer in jobs
    ]
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
            process.wait()


def main(part: str, renderer: str) -> None:
    """One process's work."""
    with tempfile.TemporaryDirectory() as folder:
        compile_part(part, Path(folder) / "scene", GSConfig(renderer=renderer))  # type: ignore[arg-type]
    if part == "splats":
        path = marker(renderer)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
