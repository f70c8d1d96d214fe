"""The trial that decides how much of the alignment's deformation is rendered through."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.test_train_gs import SIZE, make_config, make_world
from train_gs import strength
from train_gs.stage import make_trainer, training_data
from train_gs.strength import chosen_strength, reduced, scaled
from utils.deformation.inverse import IdentityInverseWarp, inverse_of_alignment
from utils.errors import ConfigError
from utils.types import Alignment, Scene


def trial(scene: Scene, alignment: Alignment) -> float:
    """What a real trial chooses."""
    config = make_config(num_iters=200, deform_strength=None)
    make: Any = lambda data, warp, tried: make_trainer(alignment, data, warp, "numba", torch.device("cpu"), tried)
    return chosen_strength(make, training_data(scene, alignment, config), inverse_of_alignment(alignment), config)


def test_a_true_deformation_is_kept_and_a_made_up_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strength, "_STEPS", 60)
    scene, bent = make_world()
    assert trial(scene, bent) == 1.0
    scene, straight = make_world(0.0)
    assert trial(scene, replace(straight, fields=bent.fields)) == 0.0


def test_the_scene_is_made_smaller_and_the_field_weaker(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, alignment = make_world()
    data, warp = training_data(scene, alignment, make_config()), inverse_of_alignment(alignment)
    assert reduced(data) is data
    monkeypatch.setattr(strength, "_LONGEST_SIDE", 16)
    used = torch.ones(len(scene), *SIZE, dtype=torch.bool)
    used[0, 0, 0] = False
    small = reduced(replace(data, used=used))
    assert small.images.shape[1:3] == small.cameras.size == (12, 16)
    assert small.used is not None
    assert not small.used[0, 0, 0]
    assert small.used[0, 1:].all()
    torch.testing.assert_close(scaled(warp, 0.5).field.nodes, 0.5 * warp.field.nodes)  # type: ignore[attr-defined]
    assert scaled(warp, 1.0) is warp


def test_weaker_ones_are_tried_as_long_as_they_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, alignment = make_world(0.0)
    config = make_config(num_iters=1000, deform_strength=None)
    data, warp = training_data(scene, alignment, config), inverse_of_alignment(alignment)
    tried: list[float] = []
    never: Any = None

    def choose(values: dict[float, float]) -> float:
        tried.clear()
        full = float(warp.field.nodes.abs().sum())

        def explained(make: object, small: object, weaker: Any, settings: object) -> float:
            share = 1.0 if not full else round(float(weaker.field.nodes.abs().sum()) / full, 3)
            tried.append(share)
            return values[share]

        monkeypatch.setattr(strength, "_explained", explained)
        return chosen_strength(never, data, warp, config)

    warp.field.nodes += 0.01
    assert choose({1.0: 25.0, 0.5: 25.02, 0.0: 30.0}) == 1.0  # no clear gain: the trial ends
    assert tried == [1.0, 0.5]
    assert choose({1.0: 25.0, 0.5: 25.5, 0.0: 25.1}) == 0.5
    assert choose({1.0: 25.0, 0.5: 25.5, 0.0: 26.0}) == 0.0
    assert chosen_strength(never, data, IdentityInverseWarp(), config) == 1.0
    assert chosen_strength(never, data, warp, replace(config, deform_strength=0.25)) == 0.25
    assert chosen_strength(never, data, warp, replace(config, num_iters=400)) == 1.0
    with pytest.raises(ConfigError):
        make_config(deform_strength=1.5)
