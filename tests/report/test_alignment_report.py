"""What an alignment tells about itself: held-out agreement, pictures, scalars, contradictions."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig, MatchingConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from frame_to_model_icp import stage as stage1
from global_optimization import stage as stage2
from run_reconstruction import alignment_words
from tests.box_world import make_box_world
from tests.registration.test_registration import STAGE1, STAGE2, ExactMatcher
from tests.registration.test_stage1 import FAST, write_box
from utils.cameras.projection import transform, unproject_depth
from utils.deformation.lattice.numba import zero_fields
from utils.errors import ConfigError
from utils.matching.flow.dis import FlowMatcher
from utils.registration import AlignedGeometry, align_jointly, build_cloud
from utils.registration.displacement import displacements
from utils.registration.heldout import held_blocks, heldout_pairs, measure_heldout, reprojection
from utils.registration.result import PairDiagnostics, to_alignment
from utils.registration.sequential import unaligned
from utils.report.alignment_pictures import displacement_plot, residual_matrix
from utils.report.alignment_report import write_alignment_report
from utils.report.html import write_report
from utils.scene import artifacts
from utils.types import NULL_REPORTER, Scene


class Notes:
    def __init__(self):
        self.lines = []

    def step(self, report):
        pass

    def note(self, message):
        self.lines.append(message)


def stages(root, **settings):
    data = AlignmentDataConfig(num_frames=6, stride=1)
    first = stage1.run(FrameToModelICPConfig(root_path=root, alignment=data, tensorboard=settings.get("tensorboard", False), **FAST))
    solvers = {"matching": FAST["matching"], "coarse": FAST["solver"], "fine": FAST["solver"]}
    return stage2.run(GlobalOptimizationConfig(root_path=root, run=first.parent.name, **solvers, **settings))


# ---------------------------------------------------------------------------------------------- held-out pairs


def test_held_out_pairs_have_a_distance_that_is_never_matched():
    overlap = np.full((20, 20), 0.5)
    overlap[0, 3] = overlap[3, 0] = 0.0
    used = {(4, 1), (5, 11)}
    pairs = heldout_pairs(overlap, np.arange(20), used, MatchingConfig(), 8)
    assert len(pairs) == 8 == len(set(pairs))
    assert not {b - a for a, b in pairs} & {1, 2, 4, 8, 16}
    assert len({b - a for a, b in pairs}) >= 3
    everything = heldout_pairs(overlap, np.arange(20), used, MatchingConfig(), 1000)
    assert not {(0, 3), (1, 4), (5, 11)} & set(everything)
    some = heldout_pairs(overlap, np.array([0, 2, 3, 7, 9]), set(), MatchingConfig(), 5)
    assert set(np.ravel(some)) <= {0, 2, 3, 7, 9}
    assert heldout_pairs(overlap, np.arange(2), set(), MatchingConfig(), 5) == []
    assert heldout_pairs(overlap, np.arange(20), set(), MatchingConfig(), 0) == []


@pytest.mark.parametrize("share", [0.0, 0.05, 0.125, 0.5])
def test_held_blocks_take_their_share(share):
    assert held_blocks((288, 512), share).mean() == pytest.approx(share, abs=0.02)


def test_reprojection_is_zero_for_exact_geometry_and_known_for_a_shift():
    world = make_box_world(4, (48, 80), warp=0.0)
    geometry = AlignedGeometry(world.scene, world.scene.cameras, zero_fields(world.scene.depth, world.scene.valid, (3, 3, 2)))
    match = ExactMatcher(world).match(0, 2, None)
    pixels, depth = reprojection(geometry, match)
    assert np.median(pixels) < 0.01 and np.median(depth) < 1e-3
    pixels, _ = reprojection(geometry, replace(match, target_px=match.target_px + np.float32([3, 4])))
    assert np.median(pixels) == pytest.approx(5, abs=0.02)
    shifted = world.scene.cameras.c2w.copy()
    shifted[2, :3, 3] += 0.1 * shifted[2, :3, 0]  # the target camera a little to the right: everything moves left by f x / z
    moved = replace(geometry, cameras=replace(geometry.cameras, c2w=shifted))
    pixels, _ = reprojection(moved, match)
    np.testing.assert_allclose(np.median(pixels), np.median(72 * 0.1 / match.target_depth), rtol=0.05)


def test_blocks_are_measured_apart():
    world = make_box_world(4, (48, 80))
    geometry = AlignedGeometry(world.scene, world.scene.cameras, zero_fields(world.scene.depth, world.scene.valid, (3, 3, 2)))
    matches = [ExactMatcher(world).match(0, 1, None)]
    blocks = np.zeros((48, 80), bool)
    blocks[:16, 16:32] = True
    found = measure_heldout(matches, geometry, geometry, blocks)
    assert 0 < found["pairs_and_pixels"]["matches"] < 0.3 * found["pairs"]["matches"]
    assert found["pairs"]["before_px"] == found["pairs"]["after_px"]
    assert "pairs_and_pixels" not in measure_heldout(matches, geometry, geometry, np.zeros((48, 80), bool))
    assert measure_heldout([], geometry, geometry, blocks) == {}


def test_pixels_kept_out_are_not_matched(tmp_path, monkeypatch):
    write_box(tmp_path, frames=6, size=(48, 80))
    solved, inner = [], FlowMatcher.__init__
    monkeypatch.setattr(
        FlowMatcher, "__init__", lambda self, scene, usable, *rest: (solved.append(usable), inner(self, scene, usable, *rest))[1]
    )
    out = stages(tmp_path, heldout_pixels=0.2)
    blocks = held_blocks((48, 80), 0.2)
    _, *rounds, measured = solved
    assert not any(usable[:, blocks].any() for usable in rounds) and measured[:, blocks].any()
    report = json.loads((out / "report.json").read_text())
    assert report["heldout"]["pairs_and_pixels"]["after_px"] < 0.5 * report["heldout"]["pairs_and_pixels"]["before_px"]
    with pytest.raises(ConfigError):
        GlobalOptimizationConfig(heldout_pixels=0.9)


# ---------------------------------------------------------------------------------------------- the report of a run


def test_report_pictures_scalars_and_words(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    world = write_box(tmp_path, frames=6, size=(48, 80))
    out = stages(tmp_path, tensorboard=True)
    report = json.loads((out / "report.json").read_text())
    assert report["heldout"]["pairs"]["after_px"] < 0.4 * report["heldout"]["pairs"]["before_px"]
    assert all(
        {p["source"], p["target"]} <= set(range(6)) and abs(p["target"] - p["source"]) in (3, 5) for p in report["heldout"]["by_pair"]
    )
    alignment = artifacts.load_alignment(out)
    np.testing.assert_allclose(
        report["displacement_median"], displacements(world.scene, alignment.cameras, alignment.fields)[:, 0], rtol=1e-3
    )
    assert {p.stem for p in (out / "pictures").glob("*.png")} == {"residuals", "displacement", "top_down"}
    assert all(cv2.imread(str(p)).std() > 5 for p in (out / "pictures").glob("*.png"))
    (line,) = alignment_words(out)
    assert "kept out of the solve" in line and "px" in line
    html = write_report(tmp_path).read_text()
    assert (
        "Agreement with held-out pairs" in html
        and "reprojection, 90 % (px)" in html
        and html.count("how far pixels are moved</figcaption>") == 2
    )
    for name in ("after_non_rigid_icp", "after_global_optimization"):
        events = EventAccumulator(str(out.parent / "tensorboard" / name)).Reload()
        values = [e.value for e in events.Scalars("frames/residual_after")]
        np.testing.assert_allclose(values, json.loads((out.parent / name / "report.json").read_text())["residual_after"], rtol=1e-5)


def test_missing_tensorboard_is_told_once_and_nothing_else_changes(tmp_path, monkeypatch):
    from utils import reporting

    monkeypatch.setattr(reporting.importlib.util, "find_spec", lambda name: None)
    notes = Notes()
    with reporting.tensorboard(True, tmp_path / "events", notes) as board:
        assert board is notes
    assert len(notes.lines) == 1 and "pip install" in notes.lines[0] and not (tmp_path / "events").exists()
    with reporting.tensorboard(False, tmp_path / "events", NULL_REPORTER) as board:
        assert board is NULL_REPORTER


def test_displacement_is_the_distance_between_places_before_and_after():
    world = make_box_world(3, (48, 80))
    scene = world.scene
    fields = zero_fields(scene.depth, scene.valid, (3, 3, 2))
    assert np.nanmax(displacements(scene, scene.cameras, fields)) < 1e-5
    moved = scene.cameras.c2w.copy()
    moved[1, :3, 3] += (0.3, 0, 0)
    found = displacements(scene, replace(scene.cameras, c2w=moved), fields)
    assert found[1, 0] == pytest.approx(np.median(0.3 / scene.depth[1, ::3, ::3]), rel=1e-3)
    assert found[0].max() < 1e-5 and found[1, 1] > found[1, 0]


def test_residual_matrix_puts_pairs_where_they_belong():
    image = residual_matrix([PairDiagnostics(0, 1, 10, 0.1, 0.001, 1.0), PairDiagnostics(1, 2, 10, 0.001, 0.001, 1.0)], np.arange(3))
    half, strip = (image.shape[1] - 4) // 2, 22
    cell = half // 3
    at = lambda side, row, column: image[strip + row * cell + cell // 2, side * (half + 4) + column * cell + cell // 2].astype(int)
    assert at(0, 0, 1)[0] > at(0, 0, 1)[2] and (at(0, 0, 1) == at(0, 1, 0)).all()  # red before
    assert at(1, 0, 1)[2] > at(1, 0, 1)[0] or (at(1, 0, 1) == at(0, 1, 2)).all()  # blue after
    assert not at(0, 0, 2).any() and not at(1, 1, 1).any()
    assert residual_matrix([], np.arange(3)).ndim == 3


def test_displacement_plot_draws_higher_bars_for_more():
    image = displacement_plot(np.array([[0.01, 0.02], [0.001, 0.002], [np.nan, np.nan]]), np.arange(3), np.array([True, True, False]))
    orange = (image == (230, 159, 0)).all(-1).sum(0)
    thirds = np.array_split(orange[52:], 3)
    assert thirds[0].max() > 5 * max(thirds[1].max(), 1) and not thirds[2].any()


# ---------------------------------------------------------------------------------------------- contradictions


def revisit(relief: float, frames: int = 20, size: tuple[int, int] = (48, 80)) -> Scene:
    """Out along an arc and back; on the way back a relief finer than any lattice grows on the walls: images the same, shape not."""
    world = make_box_world(frames // 2, size, warp=0.002)
    out, back = world.scene, world.scene.select(np.arange(frames // 2)[::-1])
    points = np.stack([transform(c, unproject_depth(d, k)) for c, d, k in zip(world.true.c2w, world.true_depth, world.true.K, strict=True)])
    bumps = np.sign(np.prod(np.sin(12 * points), -1))[::-1]
    grown = back.depth * (1 + relief * np.linspace(0, 1, frames // 2)[:, None, None] * bumps)
    c2w = np.concatenate([out.cameras.c2w, back.cameras.c2w])
    cameras = replace(out.cameras, c2w=c2w, K=np.tile(out.cameras.K[:1], (frames, 1, 1)), frame_ids=10 * np.arange(frames))
    depth = np.concatenate([out.depth, grown.astype(np.float32)])
    return Scene(cameras=cameras, images=np.concatenate([out.images, back.images]), depth=depth, confidence=np.ones_like(depth))


@pytest.mark.parametrize("relief", [0.0, 0.06])
def test_a_place_that_is_shown_in_two_ways_is_named(tmp_path, relief):
    scene, notes = revisit(relief), Notes()
    result = align_jointly(scene, unaligned(scene), scene.valid, STAGE2, notes)
    found = {(p.source, p.target) for p in result.diagnostics.contradictions()}
    told = [line for line in notes.lines if "warning" in line]
    if not relief:
        assert not found and not told
        return
    assert (0, 19) in found and all(a < 10 <= b and b - a > 8 for a, b in found)
    assert result.aligned.all()
    assert len(told) == 1 and "0 and 1" in told[0] and "could not be made to agree" in told[0]
    cloud = build_cloud(scene, result.cameras, result.fields, result.aligned, scene.valid, STAGE1.filter)
    write_alignment_report(tmp_path, scene, result, to_alignment(scene, result, cloud), 1.0, {}, notes)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [0, 190] in [c["frames"] for c in report["contradictions"]]
    (line,) = [words for words in alignment_words(tmp_path) if "agree" in words]
    assert line.startswith("warning") and "1 and 191" in line
