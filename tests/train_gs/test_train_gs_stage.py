"""Stages 3.1 and 3.2 from artifacts to artifacts: publishing, skipping, stale inputs, resuming, full-resolution frames."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import train_gs.stage
import train_inverse_deformation.stage
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from tests.train_gs.test_train_gs import FRAMES, SIZE, make_config, make_world
from train_gs.data import TrainingData
from train_gs.train import Trainer
from utils.deformation.artifact import load_inverse, trained_inverse
from utils.errors import ConfigError, InputError, MissingArtifactError
from utils.scene import artifacts
from utils.scene.layout import SceneLayout
from utils.scene.manifest import write_manifest
from utils.scene.transaction import publish
from utils.splatting.checkpoint import load_checkpoint


class Notes:
    """Keeps what a stage tells the user."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, report: object) -> None:
        """Ignored."""

    def note(self, message: str) -> None:
        """Kept."""
        self.lines.append(message)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A scene with an alignment in run `r`."""
    scene, alignment = make_world()
    layout = SceneLayout(tmp_path / "scene")
    layout.npz_dir.mkdir(parents=True)
    artifacts.save_results(layout.npz_dir, scene)
    with publish(layout.run("r").after_global_optimization, "alignment/2") as folder:
        artifacts.save_alignment(folder, alignment, {})
        write_manifest(folder, schema=artifacts.ALIGNMENT_SCHEMA, config={}, inputs={})
    return layout.root


def settings(root: Path, **changes: object) -> GSConfig:
    return make_config(**{"root_path": root, "run": "r", "num_iters": 12, "save_every": 5, **changes})


def test_both_stages_publish_skip_and_notice_changes(root: Path) -> None:
    inverse = InverseDeformationConfig(root_path=root, run="r", validation_points=200)
    with pytest.raises(MissingArtifactError, match="inverse_deformation"):
        train_gs.stage.run(settings(root))
    folder = train_inverse_deformation.stage.run(inverse)
    report = json.loads((folder / "report.json").read_text())
    assert len(report["round_trip"]) == FRAMES
    assert max(t["p99"] for t in report["round_trip"]) < 1e-4
    y = torch.tensor([[0.1, 0.2, 3.0]])
    assert (load_inverse(folder).linearize(y, 0).q0 - y).abs().max() > 0.1

    notes = Notes()
    out = train_gs.stage.run(settings(root), notes)
    assert out == root / "r" / "gs_3dgs"
    trained = load_checkpoint(out)
    assert len(trained.cameras) == FRAMES
    assert trained.cameras.size == SIZE
    report = json.loads((out / "report.json").read_text())
    assert {"train_psnr", "heldout_psnr", "heldout_psnr_rigid", "curve", "frames", "seconds"} <= set(report)
    assert not (root / "r" / "gs_3dgs.resume").exists()

    again = Notes()
    train_gs.stage.run(settings(root), again)
    assert any("skipped" in line for line in again.lines)
    train_inverse_deformation.stage.run(inverse, again)
    assert sum("skipped" in line for line in again.lines) == 2
    changed = Notes()
    train_gs.stage.run(settings(root, num_iters=13), changed)
    assert not any("skipped" in line for line in changed.lines)


def test_killed_training_resumes_and_keeps_the_earlier_result(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rigid = settings(root, deform=False)
    train_gs.stage.run(replace(rigid, num_iters=3))
    before = (root / "r" / "gs_3dgs" / "model_final.pt").read_bytes()

    step = Trainer.step

    def interrupted(self: Trainer) -> dict[str, float]:
        if self.iteration == 7:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_gs.stage.run(rigid)
    assert (root / "r" / "gs_3dgs" / "model_final.pt").read_bytes() == before
    assert load_checkpoint(root / "r" / "gs_3dgs.resume" / "preview.pt").renderer == "3dgs"
    monkeypatch.setattr(Trainer, "step", step)
    notes = Notes()
    train_gs.stage.run(rigid, notes)
    assert any("resumes at step 5" in line for line in notes.lines)
    resumed = load_checkpoint(root / "r" / "gs_3dgs")
    straight = load_checkpoint(train_gs.stage.run(replace(rigid, overwrite=True)))
    assert torch.equal(resumed.splats.means, straight.splats.means)


def test_full_resolution_frames(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    scene, _ = make_world()
    for i, image in enumerate(scene.images):
        large = cv2.resize(image, (SIZE[1] * 2, SIZE[0] * 2), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{i:06d}.png"), large[..., ::-1])
    out = train_gs.stage.run(settings(root, deform=False, original_images_dir=folder, num_iters=4))
    trained = load_checkpoint(out)
    assert trained.cameras.size == (SIZE[0] * 2, SIZE[1] * 2)
    np.testing.assert_allclose(trained.cameras.K[0, 0, 0], 60.0)
    half = load_checkpoint(train_gs.stage.run(settings(root, deform=False, original_images_dir=folder, image_scale=0.5, num_iters=2)))
    assert half.cameras.size == SIZE
    (folder / "000000.png").unlink()
    with pytest.raises(InputError, match="5 images"):
        train_gs.stage.run(settings(root, deform=False, original_images_dir=folder, num_iters=5))


def test_a_refined_deformation_is_published(root: Path) -> None:
    """Later stages render through what the splats were trained through, not through the alignment's."""
    folder = train_inverse_deformation.stage.run(InverseDeformationConfig(root_path=root, run="r", validation_points=200))
    aligned = load_inverse(folder).field.nodes
    out = train_gs.stage.run(settings(root, refine_deformation=True))
    assert (trained_inverse(out, folder).field.nodes - aligned).abs().max() > 0
    out = train_gs.stage.run(settings(root, refine_deformation=False))
    torch.testing.assert_close(trained_inverse(out, folder).field.nodes, aligned, rtol=0, atol=0)


def test_a_reference_frame_that_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(ConfigError, match="reference_frame is 99, the alignment has 6"):
        train_gs.stage.run(settings(root, reference_frame=99, deform=False))


def test_where_memory_is_short_smaller_images_are_trained_on_and_measured(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[int, ...]] = []
    whole = train_gs.stage.make_trainer

    def short(alignment: object, data: TrainingData, *rest: object) -> Trainer:
        built.append(data.cameras.size)
        if len(built) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(alignment, data, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(train_gs.stage, "make_trainer", short)
    monkeypatch.setattr("train_gs.memory.LARGE", 100)
    out = train_gs.stage.run(settings(root, deform=False, num_iters=3, target_num_points=20_000))
    smaller = (round(0.7 * SIZE[0]), round(0.7 * SIZE[1]))
    assert built == [SIZE, smaller] and load_checkpoint(out).cameras.size == smaller
    assert json.loads((out / "report.json").read_text())["train_psnr"] > 5


def test_an_early_stop_is_told(root: Path) -> None:
    still = {f"lr_{name}": 0.0 for name in ("sh0", "shN", "opacities", "scales", "quats", "positions", "cams", "appearance", "deformation")}
    notes = Notes()
    out = train_gs.stage.run(settings(root, deform=False, num_iters=200, plateau_rounds=2, **still), notes)
    stopped = json.loads((out / "report.json").read_text())["stopped_at"]
    assert stopped < 40 and any(f"stopped at step {stopped} of 200" in line for line in notes.lines)
    through = train_gs.stage.run(settings(root, deform=False, num_iters=12, overwrite=True), notes)
    assert "stopped_at" not in json.loads((through / "report.json").read_text())
