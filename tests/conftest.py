"""Loads `utils` before any test imports torch: process-wide thread settings are made there. Every test draws the same numbers."""

import pytest

import utils  # noqa: F401


@pytest.fixture(autouse=True)
def same_draws():
    """What a test draws without a generator of its own does not depend on the tests before it."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)
