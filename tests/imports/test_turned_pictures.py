"""Pictures that EXIF lays on their side, and cameras of them as stored or as turned: told by the sizes."""

import numpy as np
import pytest

from benchmarks.inputs import look
from benchmarks.inputs_folders import stored_turned
from benchmarks.inputs_world import make_cube
from tests.imports.test_importers import write_colmap
from utils.scene.media import read_image, stored_on_its_side, write_image

NAMES = tuple(f"IMG_{i}.jpg" for i in range(6))


class World:
    """Cameras for `write_colmap`."""

    def __init__(self, c2w, K, size):
        self.true = type("Cameras", (), {"c2w": c2w, "K": np.repeat(K[None], len(c2w), axis=0), "size": size})


@pytest.fixture
def cube():
    return make_cube(len(NAMES), (144, 192), seed=1)


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("turned", [True, False])
def test_the_size_of_the_cameras_says_whether_exif_counts(cube, tmp_path, orientation, turned):
    """COLMAP reads pictures as they are stored, other programs as they are turned."""
    frames = stored_turned(tmp_path / "images", cube, list(NAMES), orientation)
    assert stored_on_its_side(frames / NAMES[0])
    upright, stored = (144, 192), (192, 144)
    write_colmap(tmp_path / "sparse", World(cube.c2w, cube.K, upright if turned else stored), NAMES)
    out = look(frames, tmp_path, cameras=tmp_path / "sparse")
    shown = [read_image(path) for path in out.source.frames]
    assert shown[0].shape[:2] == (upright if turned else stored)
    if turned:
        assert out.source.frames[0].parent == frames and not out.says("EXIF")
        return
    assert out.says("as stored, 144x192") and out.source.names[0] == "IMG_0.png"
    back = np.rot90(shown[3], {6: 3, 8: 1}[orientation])
    assert np.abs(back.astype(int) - cube.images[3]).mean() < 6


def test_pictures_without_exif_are_read_once(cube, tmp_path):
    for name, image in zip(NAMES, cube.images, strict=True):
        (tmp_path / "images").mkdir(exist_ok=True)
        write_image(tmp_path / "images" / name, image)
    assert not stored_on_its_side(tmp_path / "images" / NAMES[0])
    write_colmap(tmp_path / "sparse", World(cube.c2w, cube.K, (192, 144)), NAMES)
    assert not look(tmp_path / "images", tmp_path, cameras=tmp_path / "sparse").says("EXIF")
