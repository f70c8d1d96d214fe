"""Stage 3.2 shell: reads an alignment and its inverse, trains, publishes `gs_<renderer>/`."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from configs.stage3_gs import GSConfig
from train_gs.blocks.train import BlockTraining, Coarse, coarse_config
from train_gs.data import TrainingData
from train_gs.floaters import with_coverage, without_veils
from train_gs.measure import averages, measure
from train_gs.memory import Load, number_of_blocks, within_memory
from train_gs.population import with_spare_slots
from train_gs.refine import carried_over
from train_gs.saved import Preview, Saved
from train_gs.shared import together, trainer_for
from train_gs.start.clear_views import in_the_way, in_the_way_between
from train_gs.start.initialize import initial_splats
from train_gs.start.shell import joined, shell_splats
from train_gs.supervision import Supervision, supervision
from train_gs.train import Trainer, train
from utils.deformation.artifact import INVERSE_SCHEMA, load_inverse, save_inverse
from utils.deformation.inverse import IdentityInverseWarp, InverseWarp
from utils.device.accelerator import cap_memory, release_memory
from utils.exports.ply import write_splat_ply
from utils.exports.stage import export_splats
from utils.runtime import seed_everything
from utils.scene import artifacts
from utils.scene.checkpoints import forget_parts
from utils.scene.folders import frames_of_scene, list_frames
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.lock import one_writer
from utils.scene.manifest import content_hash, fingerprints, is_current, portable, significant, write_manifest
from utils.scene.masks import used_pixels
from utils.scene.media import read_frames
from utils.scene.transaction import Output, publish, require_replaceable
from utils.splatting.checkpoint import GS_SCHEMA, MODEL, TrainedScene, save_checkpoint, unfinished
from utils.splatting.rasterize.contract import choose_rasterizer, load_rasterizer
from utils.splatting.sh import C0
from utils.types import NULL_REPORTER, Alignment, Array, Reporter, Scene, Splats


@one_writer(lambda config: config.root_path)
def run(config: GSConfig, report: Reporter = NULL_REPORTER) -> Path:
    """Trains the splats of a run; returns the folder of the result."""
    layout = SceneLayout(config.root_path).named_run(config.run)
    out = config.out_dir or layout.gs(config.renderer)
    inputs = _inputs(config, layout)
    if not config.overwrite and is_current(out, GS_SCHEMA, config, inputs):
        report.note(f"splatting: {out} is current, skipped")
        forget_parts(out)
        return out
    require_replaceable([Output(out, GS_SCHEMA)], reads=_read(config, layout), sources=_originals(config))
    started = time.perf_counter()
    seed_everything(config.seed)
    device, backend, reason = resolve_backend(config)
    scene = artifacts.load_scene(config.root_path)
    alignment = artifacts.load_alignment(layout.root / config.global_opt_subdir)
    warp = load_inverse(_inverse_dir(config, layout)) if config.deform else IdentityInverseWarp()
    clips = artifacts.clip_of_frames(config.root_path, len(scene))
    roles = supervision(config, scene, alignment, warp, clips, report)
    data = training_data(scene, roles, config)
    cap_memory(device, config.max_gpu_gb)
    settings = replace(config, reference_frame=roles.reference)
    attempts = _Attempts(settings, scene, roles, data, device, backend, reason, out, inputs, report)
    finished = within_memory(attempts.train, config.target_num_points, math.prod(data.cameras.size), report)
    timings = {"load": time.perf_counter() - started - sum(finished.seconds.values()), **finished.seconds}
    warp, data = finished.warp, finished.data
    if finished.hidden:
        report.note(f"splatting: {finished.hidden} splats floated, known to no frame, and are gone")
    trained, rasterizer = finished.scene, load_rasterizer(backend, device)
    if config.clear_views > 0:
        trained = without_veils(trained, data, rasterizer)
    trained = with_coverage(trained, data, warp, config)
    rows = measure(trained, data, rasterizer, warp, turn=config.deform_inverse_rotations)
    summary = {**averages(rows), "splats": len(trained.splats), "iterations": config.num_iters, "backend": backend}
    if finished.blocks > 1:
        summary["blocks"] = finished.blocks
    if finished.stopped_at is not None:
        report.note(f"splatting: stopped at step {finished.stopped_at} of {finished.steps}, the loss no longer falls")
        summary["stopped_at"] = finished.stopped_at
    with publish(out, GS_SCHEMA, home=config.root_path, report=report) as folder:
        if finished.refined or (config.deform and roles.extended):
            save_inverse(folder, warp)
        _write(folder, config, trained, {**summary, "seconds": timings, "frames": rows, "curve": finished.history})
        write_manifest(
            folder,
            schema=GS_SCHEMA,
            config=config,
            inputs=inputs,
            backends={"rasterizer": reason},
            seed=config.seed,
            seconds=time.perf_counter() - started,
        )
    forget_parts(out)
    report.note("splatting: " + ", ".join(f"{k} {v:.2f} dB" for k, v in averages(rows).items()))
    return out


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A training that is over.

    Attributes:
        scene: on the device.
        warp: the inverse deformation of all frames as it was refined.
        data: what it was trained on.
        hidden: splats that floated.
        history: loss curve.
        refined: whether the inverse deformation was refined.
        steps: that it was to take.
        stopped_at: step at which it stopped early.
        seconds: by part.
        blocks: that the world was trained in.
    """

    scene: TrainedScene
    warp: InverseWarp
    data: TrainingData
    hidden: int
    history: list[dict[str, float]]
    refined: bool
    steps: int
    stopped_at: int | None
    seconds: dict[str, float]
    blocks: int = 1


@dataclass(frozen=True)
class _Attempts:
    """Everything that a training needs but its size, see `within_memory`.

    Attributes:
        config: of the stage, with the reference frame among the frames of `roles`.
        scene: all frames.
        roles: of the frames.
        data: at the image scale of the config.
        device: to train on.
        backend: name of the rasteriser.
        reason: why it was chosen.
        out: folder of the result, beside which an interrupted run's state lies.
        inputs: content ids of what the stage reads.
        report: progress.
    """

    config: GSConfig
    scene: Scene
    roles: Supervision
    data: TrainingData
    device: torch.device
    backend: str
    reason: str
    out: Path
    inputs: dict[str, str]
    report: Reporter

    def train(self, load: Load) -> Finished:
        """One training of this size from the start or from where an interrupted run was.

        Raises:
            torch.OutOfMemoryError: the device has too little memory for it.
        """
        config = replace(self.config, target_num_points=load.splats, image_scale=self.config.image_scale * load.scale)
        data = self.data if load.scale == 1.0 else training_data(self.scene, self.roles, config)
        blocks = number_of_blocks(config, data, self.device)
        key = content_hash(significant(portable(config)), self.inputs, *([blocks] if blocks > 1 else []))
        if blocks == 1:
            return self._whole(data, config, key)
        self.report.note(f"splatting: {config.target_num_points} splats in {blocks} blocks, after a coarse training of the whole")
        coarse = self._whole(data, coarse_config(config, blocks), key, keep=True)
        release_memory()  # of the coarse training, which is over
        begun = time.perf_counter()
        coarse = replace(coarse, scene=replace(coarse.scene, splats=coarse.scene.splats.to("cpu")), warp=coarse.warp.to("cpu"))
        splats = starting_splats(self.roles.alignment, data, config)
        job = BlockTraining(self.backend, self.device, config, unfinished(self.out), key, self.report)
        trained = job.train(splats, Coarse(coarse.scene, coarse.warp, data), blocks)
        trained = replace(trained, splats=trained.splats.to(self.device))
        seconds = {**coarse.seconds, "blocks": time.perf_counter() - begun}
        return replace(coarse, scene=trained, warp=coarse.warp.to(self.device), seconds=seconds, blocks=blocks)

    def _whole(self, data: TrainingData, config: GSConfig, key: str, *, keep: bool = False) -> Finished:
        """A training of the whole world at once; with `keep` its last state stays on disk."""
        begun = time.perf_counter()
        trainer = make_trainer(self.roles.alignment, data, self.roles.warp, self.backend, self.device, config)
        self.report.note(
            f"splatting: {len(trainer.parameters.means)} splats, {len(trainer.training_views)} frames to train on and "
            f"{int(data.heldout.sum())} held out, {data.cameras.size[1]}x{data.cameras.size[0]}, {self.reason}"
        )
        state = Saved(unfinished(self.out) / "state.pt", key)
        state.restore(trainer, self.report)
        prepared, resumed = time.perf_counter(), trainer.done
        preview = Preview(self.out, self.report)
        try:
            with together(trainer, self.backend):
                trained = train(trainer, self.report, state.save, preview.update)
        finally:
            preview.finish()
        if keep and not resumed:
            state.save(trainer)
        trainer.release()
        finished = Finished(
            scene=trained,
            warp=carried_over(trainer.trained_warp(), trained.cameras, data.sources),
            data=data,
            hidden=trainer.hidden or 0,
            history=trainer.history,
            refined=trainer.refinement is not None,
            steps=trainer.config.num_iters,
            stopped_at=trainer.iteration if trainer.plateau.reached else None,
            seconds={"prepare": prepared - begun, "train": time.perf_counter() - prepared},
        )
        del trainer, state  # they refer to each other in a circle, which holds more than a GiB of a GPU until it is collected
        release_memory()
        return finished


def make_trainer(
    alignment: Alignment, data: TrainingData, warp: InverseWarp, backend: str, device: torch.device, config: GSConfig
) -> Trainer:
    """The optimisation before its first step."""
    return trainer_for(starting_splats(alignment, data, config), data, warp, backend, device, config)


def starting_splats(alignment: Alignment, data: TrainingData, config: GSConfig) -> Splats:
    """The splats before the first step, on the CPU."""
    cloud = alignment.cloud
    cloud = cloud.select(~np.isin(cloud.frame, data.cameras.frame_ids[~data.trained]))
    views = np.flatnonzero(data.trained)
    cameras = data.cameras.select(views)
    if config.clear_views > 0 and data.depth is not None:
        made_by = np.searchsorted(cameras.frame_ids, cloud.frame)
        blocking = in_the_way(cloud.points, cameras, data.depth[views], config.clear_views, made_by)
        clips = None if data.clips is None else data.clips[views]
        cloud = cloud.select(~(blocking | in_the_way_between(cloud.points, cameras, data.depth[views], clips)))
    shell = None
    if config.shell_share > 0:
        used = None if data.used is None else data.used.numpy()[views]
        shell = shell_splats(cloud.points, cameras, data.images.numpy()[views], config, data.median_depth, used)
    room = config.target_num_points - (0 if shell is None else len(shell))
    splats = initial_splats(cloud, cameras, replace(config, target_num_points=max(1, room)), data.median_depth)
    if shell is not None:
        splats = joined(splats, shell)
    if config.relocate_every:
        splats = with_spare_slots(splats, config.target_num_points)
    return splats


def training_data(scene: Scene, roles: Supervision, config: GSConfig) -> TrainingData:
    """Images and cameras of the frames at the resolution to train at."""
    ids = roles.alignment.cameras.frame_ids
    images = scene.images[ids]
    if config.original_images_dir is not None:
        images = _original_images(config.original_images_dir, ids, len(scene))
    h, w = images.shape[1:3]
    size = (max(1, round(h * config.image_scale)), max(1, round(w * config.image_scale)))
    if size != (h, w):
        images = np.stack([cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA) for image in images])
    return TrainingData(
        cameras=roles.alignment.cameras.resized(size),
        images=torch.from_numpy(images),
        heldout=roles.heldout,
        median_depth=scene.select(ids).median_depth,
        used=None if (used := used_pixels(scene, ids, size)) is None else torch.from_numpy(used),
        color_maps=roles.alignment.color_maps,
        depth=scene.depth[ids],
        blended=roles.blended,
        left_out=roles.left_out,
        clips=roles.clips,
    )


def resolve_backend(config: GSConfig) -> tuple[torch.device, str, str]:
    """Device, rasteriser and why, see `choose_rasterizer`."""
    name, device, reason = choose_rasterizer(config.rasterizer, config.device)
    return device, name, reason


def _original_images(folder: Path, frame_ids: Array, frames: int) -> Array:
    """(F, H, W, 3) uint8 images of these frames; the folder must hold exactly one image per frame of results.npz.

    Raises:
        InputError: another number of images, unreadable ones, or mixed sizes.
    """
    paths = frames_of_scene(folder, frames)
    return read_frames([paths[i] for i in frame_ids])


def _inverse_dir(config: GSConfig, layout: RunLayout) -> Path:
    return config.inverse_deform_dir or layout.inverse_deformation


def _inputs(config: GSConfig, layout: RunLayout) -> dict[str, str]:
    """Content ids of what the training reads."""
    source = layout.part(config.global_opt_subdir, "global_opt_subdir")
    inputs = {"results": artifacts.scene_id(config.root_path)}
    inputs[config.global_opt_subdir] = artifacts.artifact_id(source, artifacts.ALIGNMENT_SCHEMA, made_from=dict(inputs))
    if config.deform:
        inverse = _inverse_dir(config, layout)
        inputs["inverse_deformation"] = artifacts.artifact_id(inverse, INVERSE_SCHEMA, made_from=dict(inputs))
    clips = artifacts.clip_of_frames(config.root_path, artifacts.count_frames(config.root_path))
    if clips.any():
        inputs["clips"] = content_hash(clips.tolist())
    if config.original_images_dir is not None:
        inputs["original_images"] = content_hash(fingerprints(list_frames(config.original_images_dir)))
    return inputs


def _read(config: GSConfig, layout: RunLayout) -> list[Path]:
    """What of the scene the training reads."""
    return [SceneLayout(config.root_path).results_npz, layout.root / config.global_opt_subdir, _inverse_dir(config, layout)]


def _originals(config: GSConfig) -> list[Path]:
    return [] if config.original_images_dir is None else [config.original_images_dir]


def _write(folder: Path, config: GSConfig, trained: TrainedScene, summary: dict[str, Any]) -> None:
    artifacts.write_json(folder / "config.json", config)
    artifacts.write_json(folder / "report.json", summary)

    def points() -> None:
        colors = (0.5 + C0 * trained.splats.sh[:, 0]).clamp(0, 1) * 255 + 0.5
        artifacts.write_points_ply(
            folder / "canonical_points_final.ply", trained.splats.means.cpu().numpy(), colors.to(torch.uint8).cpu().numpy()
        )

    def splats() -> None:
        write_splat_ply(folder / f"splats_{trained.renderer}.ply", export_splats(trained, np.eye(3), 1.0, -1), trained.renderer)

    with ThreadPoolExecutor(3) as pool:  # writing releases the interpreter
        for written in [pool.submit(work) for work in (lambda: save_checkpoint(folder / MODEL, trained), splats, points)]:
            written.result()
