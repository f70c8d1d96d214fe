"""Stage 1: frame choice, the stage on disk, resume, and errors."""

import json
from dataclasses import replace

import numpy as np
import pytest

from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig, MatchingConfig, PointFilterConfig, SolverConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from frame_to_model_icp import stage
from frame_to_model_icp.selection import select_frames, split_frames
from global_optimization import stage as stage2
from tests.box_world import BoxWorld, make_box_world
from utils.errors import ConfigError, MissingArtifactError
from utils.points.edges import depth_edges
from utils.registration import align_sequential, forward_points
from utils.scene import artifacts
from utils.scene.layout import SceneLayout
from utils.scene.transaction import publish
from utils.synthetic import WorldConfig, make_world

FAST = {
    "matching": MatchingConfig(matches_per_frame=1500),
    "solver": SolverConfig(lattice=(10, 6, 3), cg_iterations=20),
}


def write_box(root, **settings) -> BoxWorld:
    world = make_box_world(**settings)
    with publish(SceneLayout(root).npz_dir, "geometry/1") as folder:
        artifacts.save_results(folder, world.scene)
    return world


@pytest.mark.parametrize(("total", "expected"), [(49, 49), (50, 50), (60, 50), (81, 50), (99, 50), (100, 50), (300, 50), (2, 2)])
def test_selection_never_wastes_frames(total, expected):
    index = select_frames(total, AlignmentDataConfig())
    assert len(index) == expected
    assert len(np.unique(index)) == expected
    assert index[0] == 0
    assert index[-1] == min(total - 1, 98)


def test_selection_honours_stride_and_offset():
    config = AlignmentDataConfig(num_frames=4, stride=3, offset=2)
    np.testing.assert_array_equal(select_frames(40, config), [2, 5, 8, 11])
    np.testing.assert_array_equal(select_frames(9, config), [2, 4, 6, 8])


def test_selection_refuses_a_single_frame():
    with pytest.raises(ConfigError, match="offset 9"):
        select_frames(10, AlignmentDataConfig(offset=9))


def test_held_out_frames_are_split_off():
    config = AlignmentDataConfig(num_frames=9, stride=2, holdout_every=4, holdout_frames=(3, 8))
    taking_part, heldout = split_frames(40, config)
    np.testing.assert_array_equal(heldout, [3, 4, 8, 12])
    np.testing.assert_array_equal(taking_part, [0, 2, 6, 10, 14, 16])
    with pytest.raises(ConfigError, match="held out"):
        split_frames(3, AlignmentDataConfig(holdout_frames=(0, 1)))
    with pytest.raises(ConfigError, match="frame 7, there are 3"):
        split_frames(3, AlignmentDataConfig(holdout_frames=(7,)))


def test_stages_see_nothing_of_frames_that_are_held_out(tmp_path):
    """Strict: with pictures and depth of the held-out frame ruined, both alignments are the same bits.

    `carry_over` is off: it measures on held-out frames how strong fields may be.
    """
    found = []
    for ruined in (False, True):
        root = tmp_path / str(ruined)
        scene = make_box_world(frames=5, size=(48, 80)).scene
        if ruined:
            scene.images[2], scene.depth[2] = 0, scene.depth[2, ::-1] * 2
        with publish(SceneLayout(root).npz_dir, "geometry/1") as folder:
            artifacts.save_results(folder, scene)
        data = AlignmentDataConfig(num_frames=5, stride=1, holdout_every=4)
        run = stage.run(FrameToModelICPConfig(root_path=root, alignment=data, **FAST)).parent.name
        small = SolverConfig(lattice=(4, 3, 2), cg_iterations=5)
        joint = GlobalOptimizationConfig(root_path=root, run=run, coarse=small, fine=small, gauge_lattice=(3, 3, 2), carry_over=False)
        found.append(artifacts.load_alignment(stage2.run(joint)))
    for alignment in found:
        np.testing.assert_array_equal(alignment.cameras.frame_ids, [0, 1, 3, 4])
        np.testing.assert_array_equal(alignment.heldout, [2])
        assert 2 not in alignment.cloud.frame
    np.testing.assert_array_equal(found[0].cameras.c2w, found[1].cameras.c2w)
    np.testing.assert_array_equal(found[0].fields.nodes, found[1].fields.nodes)


def test_stage_writes_an_alignment_and_skips_it_the_second_time(tmp_path):
    world = write_box(tmp_path, frames=5, size=(48, 80))
    config = FrameToModelICPConfig(root_path=tmp_path, alignment=AlignmentDataConfig(num_frames=4, stride=1, offset=1), **FAST)
    out = stage.run(config)
    assert out == tmp_path / "frame_to_model_icp_4_1_offset1" / "after_non_rigid_icp"
    alignment = artifacts.load_alignment(out)
    assert alignment.aligned.all()
    np.testing.assert_array_equal(alignment.cameras.frame_ids, [1, 2, 3, 4])
    assert set(np.unique(alignment.cloud.frame)) == {1, 2, 3, 4}
    # Every cloud point is the stored forward map of its pixel: what is saved is what was measured.
    points = forward_points(world.scene.select([1, 2, 3, 4]), alignment.cameras, alignment.fields).reshape(4, -1, 3)
    np.testing.assert_allclose(alignment.cloud.points, points[alignment.cloud.frame - 1, alignment.cloud.pixel], atol=2e-5)
    written = json.loads((out / "report.json").read_text())
    assert np.median(written["residual_after"]) < 0.3 * np.median(written["residual_before"])
    stamp = (out / "manifest.json").stat().st_mtime_ns
    stage.run(config)
    assert (out / "manifest.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("edges", [True, False])
def test_edges_are_matched_if_asked_for_and_sky_never(tmp_path, monkeypatch, edges):
    world = make_world(WorldConfig(layout="outdoor", frames=3, size=(48, 80)))
    scene = world.predicted_scene()
    with publish(SceneLayout(tmp_path).npz_dir, "geometry/1") as folder:
        artifacts.save_results(folder, scene)
    matched = []

    def align(scene, usable, *args, **kwargs):
        matched.append(usable)
        return align_sequential(scene, usable, *args, **kwargs)

    monkeypatch.setattr(stage, "align_sequential", align)
    settings = FAST | {"matching": replace(FAST["matching"], edges=edges)}
    out = stage.run(FrameToModelICPConfig(root_path=tmp_path, alignment=AlignmentDataConfig(num_frames=3, stride=1), **settings))
    steps = np.stack([depth_edges(depth, PointFilterConfig().edge_ratio) for depth in scene.depth])
    assert not matched[0][world.object_id < 0].any()
    assert matched[0][steps & (world.object_id >= 0)].any() == edges
    cloud = artifacts.load_alignment(out).cloud
    assert not steps.reshape(3, -1)[cloud.frame, cloud.pixel].any()


def test_stage_names_the_command_that_makes_its_input(tmp_path):
    with pytest.raises(MissingArtifactError) as error:
        stage.run(FrameToModelICPConfig(root_path=tmp_path))
    assert "preprocess_video.py" in error.value.hint
