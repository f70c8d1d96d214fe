"""Colour drift on synthetic worlds: the estimated maps against the true ones, and the colour spread of points seen twice.

    python -m benchmarks.colour_drift --layouts room --seeds 0 --frames 16 --severity medium high
    python -m benchmarks.colour_drift --layouts room corridor object outdoor --seeds 0 1 2 --json drift.jsonl

One JSON line a world. `map_error`: root mean square over colours, in levels of 255, of the maps against the truth, `identity` for no
maps. `spread`: median distance, in levels of 255, between the colours of matched points in pairs of frames that took no part in the
solve; as shown, after the estimated and after the true correction.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from configs.stage1_align import FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.matching.flow.dis import FlowMatcher
from utils.matching.pairs import overlaps
from utils.points.confidence import confident_pixels
from utils.registration import AlignedGeometry, align_jointly, align_sequential, usable_pixels
from utils.registration.colour import corrected
from utils.registration.heldout import heldout_pairs
from utils.runtime import run_stage
from utils.synthetic import WorldConfig, make_world
from utils.types import Array


def true_maps(gain: Array, offset: Array) -> Array:
    """(F, 3, 4) maps of a world in the gauge of the estimate: their mean is the identity."""
    maps = np.tile(np.eye(4), (len(gain), 1, 1))
    maps[:, [0, 1, 2], [0, 1, 2]] = gain
    maps[:, :3, 3] = offset
    centred: Array = maps @ np.linalg.inv(maps.mean(0))
    return centred[:, :3]


def map_error(maps: Array, truth: Array) -> float:
    """Root mean square over colours, in levels of 255."""
    colors = np.random.default_rng(0).uniform(0.1, 0.9, (500, 3))
    shown = [np.einsum("fab,nb->fna", m[:, :, :3], colors) + m[:, None, :, 3] for m in (maps, truth)]
    return float(255 * np.sqrt(np.mean((shown[0] - shown[1]) ** 2)))


def measure(config: WorldConfig) -> dict[str, Any]:
    """Aligns a world and compares its colour maps with the truth."""
    stage1, stage2 = FrameToModelICPConfig(), GlobalOptimizationConfig()
    world = make_world(config)
    scene = world.predicted_scene()
    usable = usable_pixels(scene, confident_pixels(scene, stage1.alignment), stage1.filter)
    started = time.perf_counter()
    result = align_jointly(scene, align_sequential(scene, usable, stage1), usable, stage2)
    seconds = time.perf_counter() - started
    assert result.color_maps is not None
    truth = true_maps(world.inconsistency.gain, world.inconsistency.offset)
    geometry, frames = AlignedGeometry(scene, result.cameras, result.fields), np.flatnonzero(result.aligned)
    solved = {(p.source, p.target) for p in result.diagnostics.pairs}
    pairs = heldout_pairs(overlaps(geometry, frames), frames, solved, stage2.matching, 12)
    matcher = FlowMatcher(scene, usable, 2, stage2.matching)
    matches = [matcher.match(i, j, geometry) for i, j in pairs]
    identity = np.tile(np.eye(3, 4), (len(scene), 1, 1))

    def spread(maps: Array) -> float:
        found = []
        for m in matches:
            ends = ((m.source, m.source_px), (m.target, m.target_px))
            a, b = (corrected(scene.images[f][tuple(p[:, ::-1].astype(int).T)], maps[f]).astype(float) for f, p in ends)
            found.append(np.linalg.norm(a - b, axis=1))
        return float(np.median(np.concatenate(found)))

    return {
        "map_error_identity": map_error(identity, truth),
        "map_error": map_error(result.color_maps, truth),
        "spread_shown": spread(identity),
        "spread": spread(result.color_maps),
        "spread_truth": spread(truth),
        "seconds": seconds,
    }


def main() -> None:
    """Prints and writes one line a world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=["room"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--frames", nargs="+", type=int, default=[16])
    parser.add_argument("--severity", nargs="+", default=["medium"])
    parser.add_argument("--size", nargs=2, type=int, default=[108, 192], metavar=("H", "W"))
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    args = parser.parse_args()
    for layout, seed, frames, severity in product(args.layouts, args.seeds, args.frames, args.severity):
        config = WorldConfig(layout=layout, seed=seed, frames=frames, severity=severity, size=tuple(args.size))
        line = {"layout": layout, "seed": seed, "frames": frames, "severity": severity}
        line |= {name: round(value, 3) for name, value in measure(config).items()}
        print(json.dumps(line), flush=True)
        if args.json:
            with args.json.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    run_stage(main)
