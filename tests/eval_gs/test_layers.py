"""Double walls are found, single ones and things far behind each other are not."""

import numpy as np
import pytest

from eval_gs.layers import multi_layer
from utils.types import CameraSet

CAMERAS = CameraSet(c2w=np.eye(4)[None], K=np.array([[[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]]), size=(48, 64), frame_ids=np.arange(1))


def wall(depth: float, left: float = 0.0, right: float = 64.0) -> np.ndarray:
    """Two points per cell and more on a wall that fills these columns of the view."""
    x, y = np.meshgrid(np.arange(left, right, 1.0) + 0.5, np.arange(48) + 0.5)
    return np.stack([(x - 32) / 60 * depth, (y - 24) / 60 * depth, np.full_like(x, depth)], -1).reshape(-1, 3)


@pytest.mark.parametrize(("behind", "expected"), [(1.005, 0.0), (1.05, 0.5), (1.1, 0.5), (1.5, 0.0)])
def test_share_of_rays_with_a_second_wall_close_behind(behind: float, expected: float) -> None:
    cloud = np.concatenate([wall(3.0), wall(3.0 * behind, right=32.0)])
    assert multi_layer(cloud, CAMERAS) == pytest.approx(expected, abs=0.06)


def test_a_slanted_wall_and_stray_points_are_no_second_wall() -> None:
    slanted = wall(3.0)
    slanted *= 1 + 0.2 * slanted[:, :1]  # along the rays
    strays = wall(3.3)[::17]
    assert multi_layer(np.concatenate([slanted, strays]), CAMERAS) < 0.02
    assert multi_layer(np.zeros((0, 3)), CAMERAS) == 0.0
