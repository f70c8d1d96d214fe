"""Views recorded as a CUDA graph are the views drawn alone, in their order, with room for their pairs or without."""

from pathlib import Path

import pytest
import torch

from tests.trained_world import write_trained_world
from utils.runtime import cuda_device_present
from utils.splatting import recorded, render
from utils.splatting.checkpoint import load_checkpoint
from utils.splatting.render import SplatView, locate_checkpoint, resolve_rasterizer

pytestmark = pytest.mark.skipif(not cuda_device_present(), reason="needs a GPU")


@pytest.fixture
def view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SplatView:
    write_trained_world(tmp_path)
    _, checkpoint = locate_checkpoint(tmp_path, "", None)
    rasterizer, device, _ = resolve_rasterizer("triton", "cuda")
    monkeypatch.setattr(render, "LEAST_VIEWS", 2)
    return SplatView(load_checkpoint(checkpoint), rasterizer, device)


@pytest.mark.parametrize("spare", [1.3, 0.2])
def test_recorded_views_are_those_drawn_alone(view: SplatView, spare: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "_SPARE", spare)  # too little: views are drawn again
    cameras = view.trained.cameras
    positions = [*range(len(cameras)), 0, 1]
    alone = [view.render(cameras.c2w[i], cameras.K[i], cameras.size) for i in positions]
    for _ in range(2):
        outputs = list(view.render_all(cameras, positions))
        assert len(outputs) == len(alone)
        for output, expected in zip(outputs, alone, strict=True):
            for name in ("rgb", "alpha", "depth"):
                torch.testing.assert_close(getattr(output, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    assert view.rasterizer.budget.capacity == 0


def test_a_recording_that_breaks_off_leaves_no_trace(view: SplatView, monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = view.trained.cameras
    alone = [view.render(cameras.c2w[i], cameras.K[i], cameras.size).rgb for i in range(len(cameras))]

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory for a recording")

    monkeypatch.setattr(recorded, "_copied", no_memory)
    outputs = [output.rgb for output in view.render_all(cameras)]
    for output, expected in zip(outputs, alone, strict=True):
        torch.testing.assert_close(output, expected)
