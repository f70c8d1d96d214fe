"""The splatting benchmark's variants and tables; and one tiny world through it."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.alignment.metrics import Similarity
from benchmarks.splatting import Registered, common_deformation, parse_arguments, without_common
from benchmarks.splatting_jobs import SETS, commands
from benchmarks.splatting_oracle import mean_displacement, true_registration
from benchmarks.splatting_tables import read_lines, tables
from benchmarks.splatting_variants import INGREDIENTS, VARIANTS, ablation
from configs.stage3_gs import GSConfig
from utils.cameras.projection import pixel_centers, project, transform, unproject
from utils.deformation.inverse import FixedPointInverseWarp, camera_from_world
from utils.deformation.lattice.reference import LatticeField
from utils.registration import forward_points
from utils.synthetic.world import WorldConfig, make_world


def line(seed: int, variant: str, psnr: float, count: float = 1.0) -> dict:
    world = {"layout": "room", "seed": seed, "severity": "medium", "frames": 8, "size": [48, 80]}
    budget = {"count": count, "renderer": "3dgs", "iterations": 5, "wanted": 100}
    return {"world": world, "budget": budget, "variant": variant, "psnr": psnr, "heldout": psnr + 5, "splats": 90, "seconds": 1.0}


def test_tables_show_medians_and_gains_within_a_world(tmp_path: Path) -> None:
    lines = [line(0, "naive", 10.0), line(0, "ours", 99.0), line(0, "ours", 14.0), line(1, "naive", 20.0), line(1, "ours", 21.0)]
    lines += [line(0, "ours", 16.0, count=3.0)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(entry) for entry in lines[:3]))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(entry) for entry in lines[3:]) + "\n\n")
    read = read_lines([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert len(read) == 5  # the later of two lines of one run counts
    text = tables(read)
    assert "| ours | 2 | 17.50 | 22.50 | 90 | 1 |" in text
    assert "ours: novel PSNR dB +2.50 (+1.00), held-out frame PSNR dB +2.50 (+1.00)" in text
    assert "ours, 3 x splats: novel PSNR dB +6.00" in text


def test_every_variant_is_a_valid_setting_and_the_ablation_differs_from_the_defaults() -> None:
    defaults = GSConfig()
    for variant in VARIANTS.values():
        GSConfig(**variant.changes)
    names = ablation()
    assert names[0] == "ours"
    assert len(set(names)) == len(names)
    assert len(names) in (1 + len(INGREDIENTS), 2 + len(INGREDIENTS))  # LPIPS only where it can be had
    for name in names[1:]:
        assert GSConfig(**VARIANTS[name].changes) != defaults or VARIANTS[name].inverse != "fixed_point"


def test_one_tiny_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import splatting

    out = tmp_path / "lines.jsonl"
    flags = "--layouts room --seeds 0 --frames 4 --size 64x48 --iterations 3 --splats 300 --counts 0.5 --variants naive without_appearance"
    monkeypatch.setattr("sys.argv", ["splatting", *flags.split(), "--json", str(out)])
    splatting.main()
    read = read_lines([out])
    assert [entry["variant"] for entry in read] == ["naive", "without_appearance"]
    assert all(entry["splats"] <= 150 and entry["psnr"] > 3 for entry in read)
    assert "without_appearance" in tables(read)


def test_a_deformation_that_all_frames_share_is_taken_out() -> None:
    world = make_world(WorldConfig(frames=4, size=(36, 64), severity="none"))
    bend = lambda points: 0.02 * world.scale * np.sin(points[..., ::-1] / world.scale)
    truth = np.nan_to_num(world.canonical.astype(np.float64))
    registered = Registered(world, truth + bend(truth), world.valid, Similarity(1.0, np.eye(3), np.zeros(3)))
    camera, K = world.novel_cameras, world.novel_cameras.K[2]
    x, y = pixel_centers(camera.size)
    seen = transform(camera.c2w[2], unproject(x, y, world.novel_depth[2].astype(np.float64), K))
    u, v, _ = project(transform(camera.w2c[2], seen + bend(seen)), K)
    ramp = np.broadcast_to((3 * x)[..., None], (*x.shape, 3)).astype(np.uint8)  # its red is 3 x
    moved = without_common(registered, *common_deformation(registered), 2, ramp)[..., 0] / 3
    inside = (u > 2) & (u < 62) & (v > 2) & (v < 34) & (world.novel_depth[2] > 0)
    assert np.abs(u - x)[inside].mean() > 0.5  # the bend is worth taking out
    assert np.median(np.abs(moved - u)[inside]) < 0.25


def test_truth_puts_every_frame_in_one_place() -> None:
    """With the true registration, the points of all frames lie at the truth but for depth noise; with the mean kept, they agree with it."""
    world = make_world(WorldConfig(layout="room", frames=5, size=(48, 80), severity="high", seed=1))
    scene = world.predicted_scene()
    error = {}
    for keep_mean in (False, True):
        result = true_registration(world, scene, keep_mean=keep_mean)
        points = forward_points(scene, result.cameras, result.fields)
        known = world.valid & np.isfinite(points).all(-1)
        target = world.canonical[known].astype(np.float64)
        error[keep_mean] = float(np.median(np.linalg.norm(points[known] - target, axis=1))) / world.median_depth
        if keep_mean:
            target += mean_displacement(world, target, world.object_id[known])
            assert float(np.median(np.linalg.norm(points[known] - target, axis=1))) < 0.01 * world.median_depth
    assert error[False] < 0.01 < error[True]


def test_the_true_fields_can_be_rendered_through() -> None:
    """Depth noise is not in the true fields: they would fold where a slope's depth is noisy, and have no inverse."""
    world = make_world(WorldConfig(layout="outdoor", frames=2, size=(72, 128), seed=1))
    scene = world.predicted_scene()
    result = true_registration(world, scene, keep_mean=False)
    warp = FixedPointInverseWarp(LatticeField.from_fields(result.fields, result.cameras))
    points = torch.from_numpy(forward_points(scene, result.cameras, result.fields)[1][world.valid[1]]).float()
    solved = warp.linearize(camera_from_world(points, torch.from_numpy(result.cameras.c2w[1]).float()), 1)
    assert float((solved.residual > 1e-4).float().mean()) < 0.01


def test_every_job_is_a_valid_command_with_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = commands(list(SETS), tmp_path)
    flags = []
    for line in lines:
        words = shlex.split(line)
        flags.append(words[words.index("benchmarks.splatting") + 1 : words.index(">")])
    for given in flags:
        monkeypatch.setattr("sys.argv", ["splatting", *given])
        args = parse_arguments()
        assert len(args.layouts) == len(args.seeds) == len(args.severity) == 1
    assert len({tuple(given) for given in flags}) == len({given[-1] for given in flags}) == len(lines)
