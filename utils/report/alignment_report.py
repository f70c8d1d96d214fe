"""What an alignment stage leaves: the artifact, and for people `report.json`, pictures and TensorBoard scalars."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from configs.stage1_align import FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.registration.displacement import displacements
from utils.registration.result import Registration, summary
from utils.report.alignment_pictures import displacement_plot, residual_matrix, top_down
from utils.reporting import TensorBoardReporter
from utils.scene.artifacts import ALIGNMENT_SCHEMA, save_alignment, write_json
from utils.scene.manifest import PICTURES, write_manifest, writing
from utils.scene.transaction import publish
from utils.types import Alignment, Array, Reporter, Scene


def publish_alignment(
    out: Path,
    scene: Scene,
    result: Registration,
    alignment: Alignment,
    config: FrameToModelICPConfig | GlobalOptimizationConfig,
    inputs: dict[str, str],
    started: float,
    extra: dict[str, Any],
    report: Reporter,
) -> None:
    """Writes the artifact with its report, pictures and manifest; the folder appears when all of it is there.

    Args:
        out: folder of the result.
        scene: the frames of the alignment, before it.
        result: what the solve found.
        alignment: what is published.
        config: of the stage.
        inputs: names and ids of what it was made from.
        started: `time.perf_counter()` at the start of the stage.
        extra: further entries of the report.
        report: receives the figures of each frame if it writes TensorBoard scalars.
    """
    with publish(out, ALIGNMENT_SCHEMA, home=config.root_path, report=report) as folder:
        with ThreadPoolExecutor(1) as pool:  # the report is drawn while the points are written
            saved = pool.submit(save_alignment, folder, alignment, config)
            write_alignment_report(folder, scene, result, alignment, time.perf_counter() - started, extra, report)
            digests = saved.result()
        write_manifest(
            folder,
            schema=ALIGNMENT_SCHEMA,
            config=config,
            inputs=inputs,
            backends={"matcher": config.matching.matcher},
            seconds=time.perf_counter() - started,
            digests=digests,
        )


def write_alignment_report(
    folder: Path, scene: Scene, result: Registration, alignment: Alignment, seconds: float, extra: dict[str, Any], report: Reporter
) -> None:
    """Writes report and pictures into the artifact folder that is being made.

    Args:
        folder: of the stage, unpublished.
        scene: the frames of the alignment, before it.
        result: what the solve found.
        alignment: what is published.
        seconds: wall time of the stage so far.
        extra: further entries of the report.
        report: receives the figures of each frame if it writes TensorBoard scalars.
    """
    moved = displacements(scene, result.cameras, result.fields)
    content = summary(result, alignment.cloud, seconds)
    content |= {"displacement_median": _plain(moved[:, 0]), "displacement_p95": _plain(moved[:, 1]), **extra}
    write_json(folder / "report.json", content)
    images = {
        "residuals": residual_matrix(result.diagnostics.pairs, result.cameras.frame_ids),
        "displacement": displacement_plot(moved, result.cameras.frame_ids, result.aligned),
    }
    if len(alignment.cloud):
        images["top_down"] = top_down(scene, alignment)
    with writing(folder / PICTURES):
        (folder / PICTURES).mkdir(exist_ok=True)
        for name, image in images.items():
            (folder / PICTURES / f"{name}.png").write_bytes(cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes())
    if isinstance(report, TensorBoardReporter):
        names = ("residual_before", "residual_after", "fitness", "matches", "displacement_median", "displacement_p95")
        report.by_frame(result.cameras.frame_ids.tolist(), {name: content[name] for name in names})


def _plain(values: Array) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
