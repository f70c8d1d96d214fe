"""Every kind of data set of `benchmarks/inputs.py`, through stage 0 but for depth along the poses, which has its own tests."""

import numpy as np
import pytest

import utils.imports.backend as backend
from benchmarks.inputs import answer_data_set
from benchmarks.inputs_data_sets import DATA_SETS, bent, straightened
from benchmarks.inputs_world import make_cube


@pytest.mark.parametrize("kind", DATA_SETS, ids=lambda kind: kind.name)
def test_a_data_set_of_each_kind(kind, monkeypatch):
    def flat(images, w2c, K, refs, report):
        return (np.ones((len(refs), *images.shape[1:3]), np.float32),) * 2

    monkeypatch.setattr(backend, "depth_along_poses", flat)
    wrong, said = answer_data_set(kind, 7)
    assert not wrong or wrong.startswith("depth off"), said  # depth is asked for last


def test_a_lens_of_the_benchmark_bends_its_pictures():
    lens, pinhole, _ = bent(np.random.default_rng(3), "OPENCV")
    assert np.abs(lens.images.astype(int) - pinhole.images).mean() > 5
    assert np.array_equal(pinhole.images[0], make_cube(10, seed=int(np.random.default_rng(3).integers(1 << 30))).images[0])
    assert straightened(pinhole)
