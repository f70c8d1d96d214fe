"""Many clips of one place as one world, with truth: `python -m benchmarks.many_clips --clips 8 16 32`.

A synthetic room is walked through for as long as all clips together take, there and back again; every 8 frames are a clip, and the
clips come in a random order, so that only what they show tells which belong together. Printed for each number of clips: pairs that
retrieval by learned features chooses for matching in stage 0, how many of those between clips do share their view, and of stages 1 and 2
the share of the removable inconsistency that they remove, seconds and peak memory. Each number runs in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.alignment.metrics import evaluate, find_correspondences, removed
from benchmarks.alignment.variants import aligned_outcome
from configs.stage1_align import FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.matching.pairs import overlaps
from utils.matching.retrieval import alike_pairs, frame_vectors, pairs_of_clips
from utils.matching.xfeat.weights import available
from utils.registration.joint import align_jointly
from utils.registration.sequential import align_sequential, unaligned
from utils.sfm.learned_matches import learned_features
from utils.synthetic import SyntheticWorld, WorldConfig, make_world
from utils.types import Array, Scene

FRAMES = 8  # of a clip
SHARED = 0.3  # of the view, by the true cameras and depth, with which two frames show the same


def shuffled(clips: int) -> Array:
    """(F,) rows of the walk's frames in the order of the clips."""
    order = np.random.default_rng(0).permutation(clips)
    return np.concatenate([np.arange(FRAMES) + FRAMES * clip for clip in order])


def in_order(scene: Scene, rows: Array) -> Scene:
    """The frames in another order, numbered by it."""
    chosen = scene.select(rows)
    return replace(chosen, cameras=replace(chosen.cameras, frame_ids=np.arange(len(rows))))


def retrieval(world: SyntheticWorld, scene: Scene, rows: Array, clips: Array) -> dict[str, float]:
    """Pairs chosen by what the frames show, and whether those between clips are right."""
    begun = time.perf_counter()
    features = [own.descriptors.cpu().numpy() for own in learned_features(scene.images)]
    found = time.perf_counter()
    vectors = frame_vectors(features)
    pairs, across = pairs_of_clips(vectors, clips), np.array([p for p in alike_pairs(vectors, clips) if clips[p[0]] != clips[p[1]]])
    chosen = time.perf_counter()
    truth = in_order(replace(world.predicted_scene(), cameras=world.cameras, depth=world.depth), rows)
    start = unaligned(truth)
    shared = overlaps(AlignedGeometry(truth, start.cameras, start.fields), np.arange(len(truth))) > SHARED
    return {
        "pairs": len(pairs),
        "right": float(shared[across[:, 0], across[:, 1]].mean()),
        "by_chance": float(shared[clips[:, None] != clips].mean()),
        "features_s": found - begun,
        "choosing_s": chosen - found,
    }


def measure(clips: int, size: tuple[int, int]) -> dict[str, Any]:
    """All figures for one number of clips."""
    world = make_world(WorldConfig(layout="room", frames=FRAMES * clips, size=size))
    rows = shuffled(clips)
    back = np.argsort(rows)
    scene, numbers = in_order(world.predicted_scene(), rows), np.repeat(np.arange(clips), FRAMES)
    result = retrieval(world, scene, rows, numbers) if available() else {}
    usable, truth = world.valid[rows], find_correspondences(world)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    first = align_sequential(scene, usable, FrameToModelICPConfig(), clips=numbers)
    middle = time.perf_counter()
    second = align_jointly(scene, first, usable, GlobalOptimizationConfig(), clips=numbers)
    seconds = {"stage1_s": middle - begun, "stage2_s": time.perf_counter() - middle}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    points = {
        "before": aligned_outcome(scene, unaligned(scene), {}).points[back],
        "after": aligned_outcome(scene, second, {}).points[back],
        "oracle": world.oracle_points(),
    }
    lengths = {name: evaluate(world, own, usable[back], None, truth)["consistency_median_percent"] for name, own in points.items()}
    share = removed(lengths["before"], lengths["after"], lengths["oracle"])
    left = {"left_out": int((~second.aligned).sum()), "peak_gb": memory / 2**20, "before_gb": before / 2**20}
    return {"clips": clips, "frames": len(scene), **result, **lengths, "removed_percent": share, **seconds, **left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--size", type=int, nargs=2, default=(72, 128), metavar=("H", "W"))
    args = parser.parse_args()
    if len(args.clips) == 1:
        print(json.dumps({k: round(v, 3) for k, v in measure(args.clips[0], tuple(args.size)).items()}), flush=True)
        return
    for clips in args.clips:
        command = [sys.executable, "-m", "benchmarks.many_clips", "--clips", str(clips), "--size", *map(str, args.size)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
