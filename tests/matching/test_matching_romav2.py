"""The RoMa v2 adapter: cache, directions and pixels with a stand-in network; the real package with random weights where installed."""

import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.stage1_align import FrameToModelICPConfig, MatchingConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from tests.box_world import make_box_world
from utils.errors import CorruptArtifactError, MissingDependencyError
from utils.matching import romav2 as matching_romav2
from utils.matching.flow.dis import FlowMatcher
from utils.matching.romav2 import PairWarp, RomaEngine, RomaMatcher, highest_precision, load_model, to_pixels
from utils.registration import MATCHERS, align_jointly, align_sequential
from utils.types import NULL_REPORTER, CameraSet, Scene

CPU = torch.device("cpu")
SIZE = (28, 42)
CONFIG = MatchingConfig(matcher="romav2", roma_setting="turbo")


def scene(frames=3, seed=0):
    h, w = SIZE
    rng = np.random.default_rng(seed)
    cameras = CameraSet(
        c2w=np.tile(np.eye(4), (frames, 1, 1)),
        K=np.tile(np.array([[40.0, 0, w / 2], [0, 40, h / 2], [0, 0, 1]]), (frames, 1, 1)),
        size=SIZE,
        frame_ids=np.arange(frames),
    )
    y, x = np.mgrid[:h, :w]
    depth = np.stack([2 + 0.01 * x + 0.02 * y + i for i in range(frames)]).astype(np.float32)
    images = rng.integers(0, 255, (frames, h, w, 3), dtype=np.uint8)
    return Scene(cameras=cameras, images=images, depth=depth, confidence=depth * 0 + 2)


class ShiftNetwork:
    """Answers as the network would if image b were image a moved by 3 (b - a) pixels right and 2 (b - a) down; numbers in the corner.

    Looks both ways, or one way only.
    """

    def __init__(self, both_ways=True, memory=99):
        self.f = self.encode
        self.both_ways = both_ways
        self.memory = memory
        self.encoded = 0
        self.batches = []

    def encode(self, images):
        self.encoded += len(images)
        return [images.mean(dim=(1, 2, 3))[:, None], images[:, :, 0, 0]]

    def __call__(self, a, b, fine_a, fine_b):
        assert (fine_a is None) == (fine_b is None)
        first, second = self.f(a)[0], self.f(b)[0]
        self.batches.append(len(a))
        if len(a) > self.memory:
            raise torch.OutOfMemoryError
        shift = torch.round((second - first) * 255 / 40)[:, 0]
        out = {}
        for name, sign in (("AB", 1), ("BA", -1)):
            side = 64
            line = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
            grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
            move = sign * shift[:, None] * torch.tensor([3.0 * 2 / SIZE[1], 2.0 * 2 / SIZE[0]])
            warp = grid[None] + move[:, None, None]
            confidence = torch.where(warp.abs().amax(-1, keepdim=True) < 1, 4.0, -4.0).expand(-1, -1, -1, 4)
            out[f"warp_{name}"], out[f"confidence_{name}"] = warp, confidence
        if not self.both_ways:
            out["warp_BA"] = out["confidence_BA"] = None
        return out


def shifted_scene(frames=3):
    """Images that tell the stand-in their number by their brightness."""
    images = np.stack([np.full((*SIZE, 3), 20 + 40 * i, np.uint8) for i in range(frames)])
    return replace(scene(frames), images=images)


@pytest.fixture
def network(monkeypatch):
    net = ShiftNetwork()
    monkeypatch.setattr(matching_romav2, "load_model", lambda setting: net)
    return net


def matcher(cache=None, frames=3, usable=None, **settings):
    world = shifted_scene(frames)
    usable = world.valid if usable is None else usable
    return RomaMatcher(world, usable, 2, replace(CONFIG, roma_cache=cache, **settings))


def test_registered():
    assert MATCHERS.load("romav2") is RomaMatcher


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0), (0, 2)])
def test_matches_follow_the_shift_in_both_directions(network, source, target, both_ways):
    network.both_ways = both_ways
    found = matcher().match(source, target, None)
    assert (found.source, found.target) == (source, target) and len(found) > 100
    step = target - source
    assert np.allclose(found.target_px - found.source_px, [3 * step, 2 * step], atol=0.05)
    assert np.allclose(found.source_px % 1, 0.5)
    h, w = SIZE
    assert ((found.target_px > 0) & (found.target_px < [w, h])).all()
    j, i = np.floor(found.source_px).astype(int).T
    depth = shifted_scene().depth
    assert np.allclose(found.source_depth, depth[source][i, j])
    expected = 2 + 0.01 * (found.target_px[:, 0] - 0.5) + 0.02 * (found.target_px[:, 1] - 0.5) + target
    assert np.allclose(found.target_depth, expected, atol=2e-3)


def test_unusable_pixels_do_not_match(network):
    usable = np.ones((3, *SIZE), bool)
    usable[0, :, :20] = False
    found = matcher(usable=usable).match(0, 1, None)
    assert len(found) and found.source_px[:, 0].min() > 20


def test_unlikely_pixels_do_not_match(network):
    assert len(matcher(roma_min_overlap=0.99).match(0, 1, None)) == 0


def test_every_image_is_encoded_once_and_the_network_is_given_back(network):
    many = matcher(frames=5)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    many.prepare(pairs)
    assert network.encoded == 5
    assert network.f == network.encode
    many.match(4, 0, None)
    assert network.encoded == 5


def test_a_full_gpu_makes_batches_smaller(monkeypatch):
    net = ShiftNetwork(memory=2)
    monkeypatch.setattr(RomaEngine, "_first_batch", lambda self: 5)
    engine = RomaEngine(net, "turbo", shifted_scene(4).images, CPU)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    done = dict(engine.warps(pairs, NULL_REPORTER))
    assert list(done) == pairs and net.batches == [5, 2, 2, 1]
    for (a, b), warp in done.items():
        assert np.allclose(warp.there[14, 21], [3 * (b - a), 2 * (b - a)], atol=0.05)


def test_cache_is_by_content_and_serves_other_orders(network, tmp_path):
    first = matcher(tmp_path).match(0, 2, None)
    assert network.encoded == 2 and len(list(tmp_path.glob("pair_*.npz"))) == 1
    again = matcher(tmp_path).match(0, 2, None)
    assert network.encoded == 2
    assert np.array_equal(first.target_px, again.target_px)
    matcher(tmp_path).match(2, 0, None)
    assert network.encoded == 2, "the other order is the same file"
    matcher(tmp_path, roma_setting="fast").match(0, 2, None)
    assert network.encoded == 4, "another setting is another file"
    other = RomaMatcher(shifted_scene(2), np.ones((2, *SIZE), bool), 2, replace(CONFIG, roma_cache=tmp_path))
    other.match(0, 1, None)
    assert network.encoded == 6, "another image is another file, whatever its number"
    assert not list(tmp_path.glob("*.part"))


def test_a_broken_cache_file_is_named(network, tmp_path):
    matcher(tmp_path).match(0, 1, None)
    path = next(tmp_path.glob("pair_*.npz"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CorruptArtifactError, match=path.name):
        matcher(tmp_path).match(0, 1, None)


def test_precision_comes_back():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    with pytest.raises(ZeroDivisionError), highest_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before)


def test_to_pixels_knows_centres_and_aspect():
    """Identity is no displacement; the right edge (+1) is W, not W - 1."""
    line = torch.linspace(-1 + 1 / 50, 1 - 1 / 50, 50)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
    ((there, overlap),) = to_pixels(grid, torch.zeros(1, 50, 50, 4), SIZE)
    inner = there[2:-2, 2:-2]
    assert np.abs(inner).max() < 1e-3 and np.allclose(overlap, 0.5)
    ((there, _),) = to_pixels(grid + torch.tensor([2.0, 0]), torch.zeros(1, 50, 50, 1), SIZE)
    assert np.allclose(there[2:-2, 2:-2], [SIZE[1], 0], atol=1e-3)


def test_missing_weights_say_where_to_put_them(monkeypatch, tmp_path):
    package = types.ModuleType("romav2")

    def offline():
        raise OSError("no route to host")

    package.RoMaV2 = offline
    monkeypatch.setitem(sys.modules, "romav2", package)
    monkeypatch.setattr(matching_romav2, "ensure_torchvision", lambda: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingDependencyError, match="no route") as caught:
        load_model("turbo")
    assert str(tmp_path / "checkpoints" / "romav2.0.1.pt") in caught.value.hint and "flow" in caught.value.hint


def test_both_stages_name_all_pairs_before_the_first_match():
    world = make_box_world(frames=4, size=(36, 64))
    asked, announced = [], []

    class Recorder(FlowMatcher):
        def prepare(self, pairs, report):
            assert not asked
            announced.extend(pairs)

        def match(self, source, target, geometry):
            asked.append((min(source, target), max(source, target)))
            return super().match(source, target, geometry)

    usable, config = world.scene.valid, FrameToModelICPConfig(root_path=Path())
    first = align_sequential(world.scene, usable, config, matcher=Recorder(world.scene, usable, 2, config.matching))
    assert asked and set(asked) <= set(announced)
    joint = GlobalOptimizationConfig(root_path=Path(), run="")
    asked.clear()
    announced.clear()
    recorder = Recorder(world.scene, usable, 2, config.matching)
    align_jointly(world.scene, first, usable, replace(joint, rounds=1), matcher=recorder)
    assert asked and set(asked) == set(announced)


# ------------------------------------------------------------------------------------------------ the real package


@pytest.fixture
def random_romav2(monkeypatch):
    """The real network with random weights; only its DINOv3 backbone, whose code is not in the package, is a small stand-in."""
    if importlib.util.find_spec("romav2") is None:  # importing it needs ensure_torchvision first
        pytest.skip("the package romav2 is not installed")
    from utils.device.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from romav2 import RoMaV2

    class Backbone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(24))
            self.embed = torch.nn.Conv2d(3, 1024, 16, 16)

        def get_intermediate_layers(self, x, n):
            tokens = self.embed(x.to(self.embed.weight.dtype)).flatten(2).mT
            return [tokens * (1 + k / 24) for k in n]

    torch.manual_seed(0)
    monkeypatch.setattr(torch.hub, "load", lambda *a, **k: Backbone())
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: {})
    monkeypatch.setattr(RoMaV2, "load_state_dict", lambda self, weights: None)
    monkeypatch.setitem(matching_romav2.SETTINGS, "turbo", (64, 0))
    monkeypatch.setitem(matching_romav2.SETTINGS, "precise", (64, 96))
    return RoMaV2


def small_sides(model, fine=None):
    model.H_lr = model.W_lr = 64
    model.H_hr = model.W_hr = fine
    return model


@pytest.mark.parametrize("setting", ["turbo", "precise"])
def test_the_engine_gives_what_the_package_gives(random_romav2, setting):
    """Features that are handed out from memory, in batches, against `RoMaV2.match` on each pair."""
    fine = 96 if setting == "precise" else None
    world = scene(3)
    with highest_precision():
        model = small_sides(load_model(setting), fine)
        encoder, calls = model.f, []
        hook = encoder.register_forward_hook(lambda *a: calls.append(1))
        engine = RomaEngine(model, setting, world.images, CPU)
        pairs = [(0, 1), (1, 2)]
        done = dict(engine.warps(pairs, NULL_REPORTER))
        hook.remove()
        assert len(calls) == 3 and model.f is encoder
        for a, b in pairs:
            expected = model.match(world.images[a], world.images[b])
            ((there, overlap),) = to_pixels(expected["warp_AB"], expected["confidence_AB"], SIZE)
            assert np.allclose(done[a, b].there, there, atol=1e-2)
            assert np.allclose(done[a, b].there_overlap, overlap, atol=1e-3)
            if setting == "turbo":
                back = model.match(world.images[b], world.images[a])
                ((back, _),) = to_pixels(back["warp_AB"], back["confidence_AB"], SIZE)
            else:
                ((back, _),) = to_pixels(expected["warp_BA"], expected["confidence_BA"], SIZE)
            assert np.allclose(done[a, b].back, back, atol=1e-2)


def test_the_matcher_runs_on_the_package(random_romav2, tmp_path, monkeypatch):
    load = matching_romav2.load_model
    monkeypatch.setattr(matching_romav2, "load_model", lambda setting: small_sides(load(setting)))
    world = scene(3)
    roma = RomaMatcher(world, world.valid, 2, replace(CONFIG, roma_cache=tmp_path, roma_min_overlap=0.0, max_cycle_error_px=100.0))
    roma.prepare([(0, 1), (1, 2)])
    assert len(list(tmp_path.glob("pair_*.npz"))) == 2
    found = roma.match(1, 0, None)
    assert np.isfinite(found.target_px).all() and found.source_depth.shape == (len(found),)


def test_warps_survive_the_disk_to_a_thirtieth_of_a_pixel():
    rng = np.random.default_rng(0)
    warp = PairWarp(*(rng.uniform(-300, 300, (4, 6, 2)).astype(np.float32), rng.random((4, 6)).astype(np.float32)) * 2)
    for name in ("there", "back_overlap"):
        value = getattr(warp, name)
        stored = matching_romav2._unpack(matching_romav2._pack(value))
        assert np.abs(stored - value).max() < (1 / 60 if value.ndim == 3 else 1 / 500)


def test_batches_follow_the_free_memory(monkeypatch):
    """One pair at least, no more than fit, on a GPU of 24 GB some and on one of 140 GB the most that pay."""
    engine = RomaEngine(ShiftNetwork(), "precise", shifted_scene(2).images, torch.device("cuda"))
    sizes = []
    for free in (2, 24, 140):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * 10**9, free * 10**9))
        sizes.append(engine._first_batch())
    assert sizes[0] == 1 < sizes[1] < sizes[2] == 16
