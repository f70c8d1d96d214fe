"""The network inverse: it undoes a smooth field at points it has not seen, its Jacobian is exact, and it can be stored."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.stage3_inverse_deformation import InverseDeformationConfig
from tests.train_gs.test_train_gs import make_world
from train_inverse_deformation.network import fit_network
from train_inverse_deformation.stage import make_inverse
from train_inverse_deformation.validate import round_trip, surface_points
from utils.deformation.artifact import inverse_from_state
from utils.deformation.inverse import FixedPointInverseWarp, IdentityInverseWarp
from utils.deformation.lattice.reference import LatticeField
from utils.deformation.network import NetworkInverseWarp
from utils.errors import CorruptArtifactError
from utils.types import NULL_REPORTER

SETTINGS = {
    "num_steps": 150,
    "batch_size": 256,
    "views_per_step": 2,
    "n_neurons": 32,
    "n_hidden_layers": 2,
    "octaves": 2,
    "view_embed_dim": 8,
}


@pytest.fixture(scope="module")
def trained() -> NetworkInverseWarp:
    scene, alignment = make_world()
    field = LatticeField.from_fields(alignment.fields, alignment.cameras)
    return fit_network(field, scene, InverseDeformationConfig(method="network", lr=1e-2, **SETTINGS))


def test_it_undoes_the_deformation_at_points_it_has_not_seen(trained: NetworkInverseWarp) -> None:
    scene, alignment = make_world()
    field = LatticeField.from_fields(alignment.fields, alignment.cameras)
    for view in range(3):
        points = surface_points(scene, view, 300, np.random.default_rng(99))
        trip = round_trip(trained, field, alignment.cameras, view, points)
        nothing = round_trip(IdentityInverseWarp(), field, alignment.cameras, view, points)
        assert nothing.median > 0.03  # views are shifted to different sides, so their codes must matter
        assert trip.median < 0.1 * nothing.median


def test_jacobian_is_exact(trained: NetworkInverseWarp) -> None:
    warp = copy.deepcopy(trained).double()
    y = torch.tensor([[0.3, -0.2, 3.0], [-0.8, 0.5, 2.5]], dtype=torch.float64)

    def value(points: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return warp.apply_twist(points, warp.twist(points, 1))

    jacobian = warp.linearize(y, 1).jacobian
    assert jacobian is not None
    for axis in range(3):
        step = torch.zeros_like(y)
        step[:, axis] = 1e-5
        numeric = (value(y + step) - value(y - step)) / 2e-5
        torch.testing.assert_close(jacobian[:, :, axis], numeric, rtol=1e-4, atol=1e-6)


def test_state_round_trip_and_damage(trained: NetworkInverseWarp) -> None:
    again = inverse_from_state(trained.config(), dict(trained.state_dict()))
    y = torch.tensor([[0.3, -0.2, 3.0]])
    torch.testing.assert_close(again.linearize(y, 1).q0, trained.linearize(y, 1).q0)
    with pytest.raises(CorruptArtifactError, match="network"):
        inverse_from_state(trained.config(), {})


def test_settings_choose_the_method(tmp_path: Path) -> None:
    scene, alignment = make_world()
    few = InverseDeformationConfig(root_path=tmp_path, method="network", **{**SETTINGS, "num_steps": 1})
    assert isinstance(make_inverse(alignment, scene, few, NULL_REPORTER), NetworkInverseWarp)
    assert isinstance(make_inverse(alignment, scene, InverseDeformationConfig(), NULL_REPORTER), FixedPointInverseWarp)
