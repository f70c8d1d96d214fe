"""Stage 3.1 shell: reads an alignment, makes its inverse, measures the round trip, publishes `inverse_deformation/`."""

import time
from pathlib import Path

import numpy as np
import torch

from configs.stage3_inverse_deformation import InverseDeformationConfig
from train_inverse_deformation.network import fit_network
from train_inverse_deformation.validate import RoundTrip, round_trip, surface_points
from utils.deformation.artifact import INVERSE_SCHEMA, save_inverse
from utils.deformation.inverse import InverseWarp, inverse_of_alignment
from utils.deformation.lattice.reference import LatticeField
from utils.scene import artifacts
from utils.scene.layout import SceneLayout
from utils.scene.lock import one_writer
from utils.scene.manifest import is_current, write_manifest
from utils.scene.transaction import Output, publish, require_replaceable
from utils.types import NULL_REPORTER, Alignment, Reporter, Scene, StepReport


@one_writer(lambda config: config.root_path)
def run(config: InverseDeformationConfig, report: Reporter = NULL_REPORTER) -> Path:
    """Makes the inverse deformation of a run; returns its folder."""
    scene_layout = SceneLayout(config.root_path)
    layout = scene_layout.named_run(config.run)
    source = layout.part(config.checkpoint_subdir, "checkpoint_subdir")
    out = config.out_path or layout.inverse_deformation
    inputs = {"results": artifacts.scene_id(config.root_path)}
    inputs[config.checkpoint_subdir] = artifacts.artifact_id(source, artifacts.ALIGNMENT_SCHEMA, made_from=dict(inputs))
    if not config.overwrite and is_current(out, INVERSE_SCHEMA, config, inputs):
        report.note(f"inverse deformation: {out} is current, skipped")
        return out
    require_replaceable([Output(out, INVERSE_SCHEMA)], reads=[scene_layout.results_npz, source])
    started = time.perf_counter()
    alignment = artifacts.load_alignment(source, with_cloud=False)
    scene = artifacts.load_scene(config.root_path).select(alignment.cameras.frame_ids)
    warp = make_inverse(alignment, scene, config, report)
    trips = validate(warp, alignment, scene, config, report)
    with publish(out, INVERSE_SCHEMA, home=config.root_path, report=report) as folder:
        save_inverse(folder, warp)
        artifacts.write_json(folder / "report.json", {"seconds": time.perf_counter() - started, "round_trip": trips})
        write_manifest(
            folder,
            schema=INVERSE_SCHEMA,
            config=config,
            inputs=inputs,
            backends={"inverse": config.method},
            seed=config.seed,
            seconds=time.perf_counter() - started,
        )
    middle, high = np.median([t.median for t in trips]), np.median([t.p99 for t in trips])
    report.note(
        f"inverse deformation: {config.method}, round-trip error at points it has not seen: median {middle:.1e}, "
        f"99th percentile {high:.1e} of the depth"
    )
    return out


def make_inverse(alignment: Alignment, scene: Scene, config: InverseDeformationConfig, report: Reporter) -> InverseWarp:
    """The inverse by the method of the settings."""
    if config.method == "fixed_point":
        return inverse_of_alignment(alignment)
    return fit_network(LatticeField.from_fields(alignment.fields, alignment.cameras, torch.float32), scene, config, report)


def validate(warp: InverseWarp, alignment: Alignment, scene: Scene, config: InverseDeformationConfig, report: Reporter) -> list[RoundTrip]:
    """Round-trip error of every view at random surface points."""
    field = LatticeField.from_fields(alignment.fields, alignment.cameras, torch.float32)
    trips = []
    for position, frame_id in enumerate(alignment.cameras.frame_ids):
        rng = np.random.default_rng(config.seed + int(frame_id))
        points = surface_points(scene, position, config.validation_points, rng)
        trips.append(round_trip(warp, field, alignment.cameras, position, points))
        report.step(StepReport(stage="inverse deformation", step=position, total=len(alignment.cameras), values={"p99": trips[-1].p99}))
    return trips
