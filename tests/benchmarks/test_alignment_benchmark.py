"""The alignment benchmark: its variants, its own matchers against the truth, JSON lines and tables."""

import json
import sys
import time
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.alignment import __main__ as alignment
from benchmarks.alignment import jobs, open3d, timing
from benchmarks.alignment.tables import read_lines, tables
from benchmarks.alignment.variants import ABLATIONS, VARIANTS, ExactMatcher, PlainFlowMatcher, ProjectiveMatcher, grid_of
from configs.stage1_align import FrameToModelICPConfig, MatchingConfig, SolverConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.registration import AlignedGeometry
from utils.registration.sequential import unaligned
from utils.synthetic import WorldConfig

pytestmark = pytest.mark.slow

MATCHING = MatchingConfig(matches_per_frame=1500)
SOLVER = SolverConfig(lattice=(8, 5, 3), cg_iterations=15)
CONFIG = WorldConfig(frames=4, size=(64, 112))


@pytest.fixture(scope="module")
def task():
    stage1 = FrameToModelICPConfig(matching=MATCHING, solver=SOLVER)
    return alignment.make_task(CONFIG, stage1, GlobalOptimizationConfig(matching=MATCHING, coarse=SOLVER, fine=SOLVER))


def geometry_of(task):
    start = unaligned(task.scene)
    return AlignedGeometry(task.scene, start.cameras, start.fields)


def true_distance(task, match):
    """Distance between the true points that both ends of matches show, in median depths."""
    rows = [np.floor(px[:, ::-1]).astype(int) for px in (match.source_px, match.target_px)]
    a, b = (task.world.canonical[f][r[:, 0], r[:, 1]] for f, r in zip((match.source, match.target), rows, strict=True))
    return np.linalg.norm(a - b, axis=1) / task.world.median_depth


def test_exact_matches_show_one_point_and_flow_without_a_start_does_not_beat_them(task):
    exact = ExactMatcher(task, MATCHING).match(0, 2, geometry_of(task))
    assert len(exact) > 200
    assert np.nanmedian(true_distance(task, exact)) < 0.008  # half a pixel: the nearest pixel is compared
    plain = PlainFlowMatcher(task.scene, task.usable, grid_of(task, MATCHING), MATCHING).match(0, 2, geometry_of(task))
    assert len(plain) < len(exact) or np.nanmedian(true_distance(task, plain)) > np.nanmedian(true_distance(task, exact))


def test_partners_by_projection_are_where_the_geometry_puts_them(task):
    geometry = geometry_of(task)
    match = ProjectiveMatcher(task, MATCHING).match(1, 0, geometry)
    assert len(match) > 200
    placed = geometry.project(0, geometry.lift(1, match.source_px, match.source_depth))
    assert np.abs(placed[:, :2] - match.target_px).max() < 0.01


def test_exact_matches_remove_most_and_the_input_nothing(task):
    lines = {line["variant"]: line for line in alignment.run_world(task, ("input", "ours", "exact", "none", "rigid", "oracle"))}
    assert lines["input"]["removed"] == 0 and lines["oracle"]["removed"] == 100
    assert lines["exact"]["removed"] > 80 and lines["ours"]["removed"] > 60
    assert lines["exact"]["removed"] > max(lines["none"]["removed"], lines["rigid"]["removed"])
    assert lines["ours"]["ate"] > 0 and lines["ours"]["seconds"] > 0


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_ablations_run(task, name):
    settings = replace(SOLVER, cg_iterations=2, robust_scales=(6.0,))
    stage1 = replace(task.stage1, solver=settings)
    outcome = VARIANTS[name](replace(task, stage1=stage1, stage2=replace(task.stage2, coarse=settings, fine=settings)))
    assert outcome.points.shape == (*task.usable.shape, 3)
    assert np.abs(outcome.points - VARIANTS["input"](task).points)[task.usable].max() > 0


def test_open3d_is_named_if_it_is_not_there(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)  # makes the import fail
    (line,) = alignment.run_world(task, ("open3d",))
    assert "not installed" in line["error"] and "removed" not in line
    assert "open3d (Open3D is not installed)" in tables([line])


def test_open3d_undoes_a_pose_error(task):
    pytest.importorskip("open3d", reason="Open3D is not installed", exc_type=ImportError)
    c2w = task.world.cameras.c2w.copy()
    c2w[2, :3, 3] += 0.02 * task.world.median_depth
    exact = replace(task.scene, depth=task.world.depth, cameras=replace(task.world.cameras, c2w=c2w))
    moved = open3d.align_open3d(exact, task.usable, (1, 2))
    relative = [np.linalg.norm(c.centers[2] - c.centers[0] - (task.world.cameras.centers[2] - task.world.cameras.centers[0]))
                for c in (moved, exact.cameras)]  # fmt: skip
    assert relative[0] < 0.5 * relative[1]


def test_lines_merge_and_tables_show_medians_and_the_least(tmp_path, capsys, monkeypatch):
    base = {
        "world": {"layout": "room", "frames": 8, "size": [64, 112], "severity": "medium"},
        "variant": "ours",
        "left_out": 0,
        "seconds": 1.0,
    }
    for key in ("consistency", "thickness", "error_to_truth", "f_score", "ate", "fit_scale"):
        base |= {key: 0.5, f"{key}_input": 1.0}
    for seed, removed in enumerate((90.0, 96.0, 97.0)):
        line = {**base, "world": base["world"] | {"seed": seed}, "removed": removed}
        (tmp_path / f"{seed}.jsonl").write_text(json.dumps({**line, "removed": 0.0}) + "\n" + json.dumps(line) + "\n")
    paths = sorted(tmp_path.glob("*.jsonl"))
    assert [line["removed"] for line in read_lines(paths)] == [90.0, 96.0, 97.0]
    monkeypatch.setattr(sys, "argv", ["alignment", "--table", *map(str, paths)])
    alignment.main()
    printed = capsys.readouterr().out
    assert "| room, 8 frames | 96.0 (90.0) |" in printed
    assert "| 8, ours | 3 | 96.0 (90.0) | 0.500 |" in printed and "0.50 (0.50)" in printed and "0/3" in printed


def line_of(variant, removed, consistency, seed=0, frames=8):
    world = {"layout": "room", "frames": frames, "size": [64, 112], "severity": "medium", "seed": seed}
    return {"world": world, "variant": variant, "removed": removed, "consistency": consistency, "left_out": 0, "seconds": 1.0} | {
        "error_to_truth": 0.5, "error_to_truth_input": 1.0, "ate": 0.1, "ate_input": 0.2, "thickness": 0.1, "fit_scale": 1.0}  # fmt: skip


def test_tables_compare_within_a_world():
    lines = [line_of("ours", 90, 0.1, seed=s) for s in (0, 1)] + [line_of("parity", 30, 0.2), line_of("parity", 45, 0.4, seed=1)]
    assert "| 8, ours over parity | 2/2 | 2.50 (2.00) | 3.00 (2.00) |" in tables(lines)


def test_ablations_are_rows_with_their_change():
    text = tables([line_of("ours", 90, 0.1), line_of("no-ridge", 70, 0.2)])
    assert "| no-ridge | 1 | 70.0 (70.0) | -20.0 |" in text and "room, 8" not in text


def test_job_lines_name_worlds_the_parser_takes(tmp_path, monkeypatch):
    lines = [job.line(tmp_path) for name in jobs.TABLES for job in jobs.TABLES[name]()]
    assert len(lines) == len(set(lines)) > 100
    for line in [*lines, f" benchmarks.alignment {jobs.WARM_UP} > x"]:
        arguments = line.split("benchmarks.alignment ")[1].split(" > ")[0].split()
        monkeypatch.setattr(sys, "argv", ["alignment", *arguments])
        args = alignment.parse_arguments()
        assert alignment.world_config(args, args.layouts[0], args.seeds[0], args.frames[0]).frames == args.frames[0]


def test_time_and_memory_of_a_clip_and_their_plot(monkeypatch):
    stage1 = FrameToModelICPConfig(matching=MATCHING, solver=SOLVER)
    stage2 = GlobalOptimizationConfig(matching=MATCHING, coarse=SOLVER, fine=SOLVER)
    line = timing.measure("room", 5, (64, 112), stage1, stage2)
    assert line["pairs"] > 5 and 0 < line["seconds"] and line["memory"] >= line["memory_before"] > 0.05
    assert "5 frames of 112x64" in timing.words(line)
    twice = line | {"frames": 10, "cpu": 2 * line["cpu"]}
    assert "power of 1.00" in timing.sweep_table([line, twice])
    root = ElementTree.fromstring(timing.drawing([line, twice]))
    assert len(root.findall(".//{*}polyline")) == 2


def test_peak_memory_sees_what_was_freed_again():
    with timing.PeakMemory() as memory:
        block = np.ones(40_000_000)
        time.sleep(0.1)
        del block
    assert memory.peak - memory.start > 0.2
