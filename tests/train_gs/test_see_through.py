"""Points that frames see through: the twins agree."""

import numpy as np
import torch

from tests.twins import implementations
from train_gs.start import see_through
from train_gs.start.see_through import reference
from utils.synthetic.inconsistency import rotation_matrices


@implementations("numba")
def test_twins_agree(twin: str) -> None:
    rng = np.random.default_rng(3)
    frames, h, w, makers = 5, 24, 40, 3
    turns = rotation_matrices(rng.normal(0, 0.4, (frames, 3)))
    w2c = np.concatenate([turns, rng.normal(0, 0.5, (frames, 3, 1))], 2)
    K = np.array([[30.0, 0, 20], [0, 30.0, 12], [0, 0, 1]])
    given = (
        torch.from_numpy(rng.normal(0, 3, (20_000, 3))).float(),
        torch.from_numpy(K @ w2c).float(),
        torch.from_numpy(rng.uniform(0, 6, (frames, h, w))).float(),
        torch.from_numpy(rng.uniform(0.2, 0.9, (frames, makers))).float(),
        torch.from_numpy(rng.integers(0, makers, 20_000)),
    )
    expected = reference.seen_through(*given)
    found = getattr(see_through, twin).seen_through(*given)
    assert 0.02 < expected.float().mean() < 0.9
    assert (found != expected).sum() <= 2  # a pixel's edge in float32


def test_no_points() -> None:
    for twin in (reference, see_through.numba):
        nothing = torch.zeros(0, 3), torch.zeros(1, 3, 4), torch.ones(1, 4, 4), torch.ones(1, 1), torch.zeros(0, dtype=torch.long)
        assert len(twin.seen_through(*nothing)) == 0
