"""Stage 2 on disk: reads stage 1, improves it, notices stale input."""

import json

import numpy as np
import pytest

from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from frame_to_model_icp import stage as stage1
from global_optimization import stage
from tests.registration.test_stage1 import FAST, write_box
from utils.errors import ConfigError, StaleArtifactError
from utils.registration import forward_points
from utils.scene import artifacts
from utils.scene.layout import SceneLayout
from utils.scene.manifest import MANIFEST


def test_stage_improves_on_stage_1_and_notices_new_input(tmp_path):
    world = write_box(tmp_path, frames=5, size=(48, 80))
    first = stage1.run(FrameToModelICPConfig(root_path=tmp_path, alignment=AlignmentDataConfig(num_frames=5, stride=1), **FAST))
    config = GlobalOptimizationConfig(
        root_path=tmp_path, run=first.parent.name, matching=FAST["matching"], coarse=FAST["solver"], fine=FAST["solver"]
    )
    out = stage.run(config)
    assert out == first.parent / "after_global_optimization"
    results = [artifacts.load_alignment(folder) for folder in (first, out)]
    errors = [world.consistency(forward_points(world.scene, r.cameras, r.fields)) for r in results]
    assert errors[1] < 1.05 * errors[0]
    rotation = results[1].cameras.c2w[:, :3, :3]
    np.testing.assert_allclose(np.swapaxes(rotation, 1, 2) @ rotation, np.tile(np.eye(3), (5, 1, 1)), atol=1e-9)
    write_box(tmp_path, frames=5, size=(48, 80), seed=1)
    with pytest.raises(StaleArtifactError):
        stage.run(config)


@pytest.mark.parametrize(("backends", "expected"), [
    ({"geometry": "sfm"}, "off"), ({"geometry": "da3"}, "on"), ({"geometry": "import", "depth": "stored"}, "on"),
    ({"geometry": "import", "depth": "measured"}, "off"), (None, "on"),
])  # fmt: skip
def test_the_mean_gauge_is_for_predicted_depth(tmp_path, monkeypatch, backends, expected):
    write_box(tmp_path, frames=3, size=(48, 80))
    if backends is not None:
        manifest = SceneLayout(tmp_path).npz_dir / MANIFEST
        manifest.write_text(json.dumps({"backends": backends}))
    first = stage1.run(FrameToModelICPConfig(root_path=tmp_path, alignment=AlignmentDataConfig(num_frames=3, stride=1), **FAST))
    seen = []

    def align(scene, start, usable, config, *_args, **_kwargs):
        seen.append(config.mean_gauge)
        return start

    monkeypatch.setattr(stage, "align_jointly", align)
    for given in ("auto", "on", "off"):
        stage.run(GlobalOptimizationConfig(root_path=tmp_path, run=first.parent.name, heldout_pairs=0, mean_gauge=given, overwrite=True))
    assert seen == [expected, "on", "off"]


def test_stage_asks_for_a_run(tmp_path):
    with pytest.raises(ConfigError, match="no alignment run"):
        stage.run(GlobalOptimizationConfig(root_path=tmp_path))
