"""What frames know of splats: on the surface, before it, behind it, out of view; directions; and through a deformation."""

import numpy as np
import torch

from utils.deformation.inverse import FixedPointInverseWarp
from utils.deformation.lattice.reference import LatticeField
from utils.splatting.coverage import Coverage, measure_coverage
from utils.types import CameraSet, LatticeFields

SIZE, DEPTH = (24, 32), 3.0


def cameras(count: int = 4, step: float = 0.2) -> CameraSet:
    """Side by side, looking at the wall z = 3."""
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, 0, 3] = step * np.arange(count)
    K = np.tile(np.array([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]]), (count, 1, 1))
    return CameraSet(c2w=c2w, K=K, size=SIZE, frame_ids=np.arange(count))


WALL = np.full((4, *SIZE), DEPTH, np.float32)
POINTS = torch.tensor([[0.3, 0.0, 3.0], [0.3, 0.0, 1.2], [0.3, 0.0, 5.0], [50.0, 0.0, 3.0], [0.3, 0.0, -1.0]])


def counts(coverage: Coverage) -> list[list[int]]:
    return [coverage.views.tolist(), coverage.directions.tolist(), coverage.in_front.tolist()]


def test_on_before_behind_and_out_of_view() -> None:
    found = measure_coverage(POINTS, cameras(), WALL, np.arange(4), None)
    # 0.2 at a distance of 3 are 3.8 degrees: the third camera is the first that is 5 degrees from the first
    assert counts(found) == [[4, 0, 0, 0, 0], [2, 0, 0, 0, 0], [0, 4, 0, 0, 0]]
    assert found.floating.tolist() == [False, True, False, False, False]
    assert counts(found.select(torch.tensor([1]))) == [[0], [0], [4]]
    some = measure_coverage(POINTS, cameras(), WALL, np.array([0, 3]), None)
    assert counts(some)[0][0] == 2


def test_pixels_without_depth_and_edges_say_nothing() -> None:
    unknown = WALL.copy()
    unknown[:, :, :] = 0
    assert counts(measure_coverage(POINTS, cameras(), unknown, np.arange(4), None)) == [[0] * 5] * 3
    edge = WALL.copy()
    edge[:, 12, 18] = 1.2  # something else stands a pixel or two beside where the second splat falls in the first frame
    found = measure_coverage(POINTS[1:2] * torch.tensor([0.1, 1, 1]), cameras(1), edge[:1], np.arange(1), None)
    assert found.in_front.item() == 0


def test_size_of_the_cameras_does_not_matter() -> None:
    large = cameras().resized((240, 320))
    assert counts(measure_coverage(POINTS, large, WALL, np.arange(4), None))[0][0] == 4


def test_a_deformed_frame_knows_what_it_shows() -> None:
    """All frames see the wall at 3 where the world has it at 2: with the deformation they know the world's wall."""
    nodes = np.zeros((4, 2, 2, 2, 3), np.float32)
    bounds = np.tile([0.1, 1.0], (4, 1))
    nodes[:, 0, :, :, 2], nodes[:, 1, :, :, 2] = -1.0, -1.0
    warp = FixedPointInverseWarp(LatticeField.from_fields(LatticeFields(nodes=nodes, inv_depth_range=bounds), cameras()))
    wall = torch.tensor([[0.3, 0.0, 2.0]])
    assert measure_coverage(wall, cameras(), WALL, np.arange(4), warp).views.item() >= 3
    assert measure_coverage(wall, cameras(), WALL, np.arange(4), None).views.item() == 0
