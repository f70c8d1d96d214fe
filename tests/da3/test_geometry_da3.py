"""The Depth Anything 3 adapter: licences and missing weights always; the real architecture with random weights where it is installed."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import preprocess_video
from configs.preprocess import PreprocessConfig
from utils.da3 import backend as geometry_da3
from utils.da3.backend import Da3Geometry, frames_in_memory, half, infer
from utils.da3.chunks import Chunk
from utils.da3.weights import (
    COMMERCIAL_METRIC_MODEL,
    COMMERCIAL_MODEL,
    DEFAULT_MODEL,
    choose_weights,
    load_network,
    locate,
    metric_weights,
    ready,
)
from utils.device.accelerator import without_accelerator
from utils.errors import BackendError, ConfigError, CorruptArtifactError, MissingDependencyError
from utils.geometry_backend import GEOMETRY, ClipFrames
from utils.scene.artifacts import load_scene, save_results
from utils.scene.layout import SceneLayout
from utils.scene.media import working_size, write_image
from utils.types import NULL_REPORTER

CPU = torch.device("cpu")


class Notes:
    def __init__(self):
        self.lines = []

    def step(self, report):
        pass

    def note(self, message):
        self.lines.append(message)


def clip(frames=5, size=(90, 120), longest=112):
    rng = np.random.default_rng(0)
    images = np.stack(
        [np.full((*size, 3), 40 * i % 200, np.uint8) + rng.integers(0, 40, (*size, 3), dtype=np.uint8) for i in range(frames)]
    )
    names = tuple(f"{i:06d}.png" for i in range(frames))
    return ClipFrames(images=images, chosen=np.arange(frames), size=working_size(size, longest), names=names)


# ------------------------------------------------------------------------------------------------ without the package


def test_registered():
    assert GEOMETRY.load("da3") is Da3Geometry


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (DEFAULT_MODEL, "CC-BY-NC-4.0"),
        ("depth-anything/DA3-LARGE-1.1", "CC-BY-NC-4.0"),
        ("depth-anything/DA3-BASE", "Apache-2.0"),
        ("depth-anything/DA3-SMALL", "Apache-2.0"),
    ],
)
def test_licences(name, expected):
    assert choose_weights(name, False).license == expected
    assert Da3Geometry(model_name=name).provenance == {"weights": name, "weights_license": expected}


def test_commercial_safe_takes_permissive_weights_only():
    assert choose_weights(DEFAULT_MODEL, True).name == COMMERCIAL_MODEL
    assert Da3Geometry(commercial_safe=True).provenance["weights_license"] == "Apache-2.0"
    for name in ("depth-anything/DA3-GIANT", "somebody/finetuned-da3"):
        with pytest.raises(ConfigError, match="permissive"):
            choose_weights(name, True)


def test_models_without_cameras_are_refused():
    with pytest.raises(ConfigError, match="no cameras"):
        choose_weights("depth-anything/DA3METRIC-LARGE", False)
    with pytest.raises(ConfigError, match="metric"):
        metric_weights("depth-anything/DA3-BASE")


def test_a_missing_folder_says_so(tmp_path):
    for name in ("./models/da3", str(tmp_path / "gone")):
        with pytest.raises(MissingDependencyError, match="does not exist"):
            locate(choose_weights(name, False), NULL_REPORTER)
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "da3-small"}))
    with pytest.raises(MissingDependencyError, match=r"model\.safetensors"):
        locate(choose_weights(str(tmp_path), False), NULL_REPORTER)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CorruptArtifactError, match="does not name"):
        choose_weights(str(tmp_path), False)


def test_weights_that_cannot_be_downloaded_name_the_way_to_get_them(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="not on this machine") as caught:
        locate(choose_weights(COMMERCIAL_MODEL, False), NULL_REPORTER)
    assert f"hf download {COMMERCIAL_MODEL} config.json model.safetensors --local-dir" in caught.value.hint


def test_the_hub_cache_is_used_without_a_network(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / ("models--" + COMMERCIAL_MODEL.replace("/", "--"))
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    assert locate(choose_weights(COMMERCIAL_MODEL, False), NULL_REPORTER) == snapshot
    assert not ready(DEFAULT_MODEL)
    assert ready(COMMERCIAL_MODEL) == (importlib.util.find_spec("depth_anything_3") is not None)


def stand_in(limit, calls):
    """Replaces the network's run: a clip in one world per piece, out of memory above `limit` frames."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(2, 4, (64, 84, 112)).astype(np.float32)

    def run(network, images, start, device, use_ray_pose=False, seed=0):
        calls.append((start, len(images)))
        if len(images) > limit:
            raise torch.OutOfMemoryError
        n, scale = len(images), 1 + 0.1 * start
        c2w = np.tile(np.eye(4), (n, 1, 1))
        c2w[:, 0, 3] = 0.1 * np.arange(start, start + n) * scale
        K = np.tile(np.array([[90.0, 0, 56], [0, 90, 42], [0, 0, 1]]), (n, 1, 1))
        return Chunk(start=start, c2w=c2w, K=K, depth=depth[start : start + n] * np.float32(scale), confidence=depth[:n] * 0 + 2)

    return run, depth


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(geometry_da3, "load_network", lambda *a: None)
    monkeypatch.setattr(geometry_da3, "_width", lambda network: 384)


def test_out_of_memory_goes_on_with_shorter_pieces(monkeypatch, no_network):
    calls, notes = [], Notes()
    run, depth = stand_in(9, calls)
    monkeypatch.setattr(geometry_da3, "infer", run)
    scene = Da3Geometry(model_name="depth-anything/DA3-SMALL", device="cpu").estimate(clip(20), notes)
    assert [n for _, n in calls if n > 9] == [20, 13]
    assert sum("out of memory" in line for line in notes.lines) == 2
    assert np.allclose(scene.depth, depth[:20], rtol=1e-3)
    assert np.allclose(scene.cameras.centers[:, 0], 0.1 * np.arange(20), atol=1e-3)
    assert any("Apache-2.0" in line for line in notes.lines)


def test_hopeless_memory_is_an_error(monkeypatch, no_network):
    monkeypatch.setattr(geometry_da3, "infer", stand_in(0, [])[0])
    with pytest.raises(BackendError, match="do not fit into the memory"):
        Da3Geometry(device="cpu").estimate(clip(6), NULL_REPORTER)


def test_frames_in_memory_grows_with_memory_and_shrinks_with_size(monkeypatch):
    monkeypatch.setattr(geometry_da3, "_free_memory", lambda: 24 * 2**30)
    small, large = frames_in_memory((280, 504), 384, CPU), frames_in_memory((280, 504), 1536, CPU)
    assert small > 3 * large > 3 and frames_in_memory((560, 1008), 1536, CPU) < large


def test_memory_of_a_gpu_counts_within_the_limit_set_for_this_process(monkeypatch):
    gib, size = 2**30, (280, 504)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * gib)
    counts = []
    for fraction in (1.0, 0.5, 0.25, 0.0):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device, share=fraction: share)
        counts.append(frames_in_memory(size, 1536, torch.device("cuda")))
    monkeypatch.setattr(geometry_da3, "_free_memory", lambda: 60 * gib)
    assert counts[0] == frames_in_memory(size, 1536, CPU) > counts[1] > 1.9 * counts[2] and counts[3] == 4


def test_bfloat16_where_the_gpu_has_it(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native and not including_emulation)
        assert half(torch.device("cuda")) == (torch.bfloat16 if native else torch.float16)


def test_without_the_accelerator_the_network_runs_on_the_cpu(monkeypatch, no_network):
    """`--device cpu` of the whole run, on a machine that has a GPU."""
    devices = []
    run, _ = stand_in(9, [])
    monkeypatch.setattr(
        geometry_da3, "infer", lambda n, images, start, device, *rest: (devices.append(device), run(n, images, start, device))[1]
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with without_accelerator():
        Da3Geometry(model_name="depth-anything/DA3-SMALL").estimate(clip(5), NULL_REPORTER)
    assert devices == [CPU]


def test_the_licence_is_said_once_and_stored(monkeypatch, no_network, tmp_path):
    """From the command's settings to the manifest; out of memory once, since a second attempt must not repeat it."""
    run, _ = stand_in(9, [])
    monkeypatch.setattr(geometry_da3, "infer", run)
    monkeypatch.setattr(geometry_da3, "accelerator", lambda: None)
    shots, notes = tmp_path / "shots", Notes()
    shots.mkdir()
    for i, image in enumerate(clip(12).images):
        write_image(shots / f"{i:02d}.png", image)
    settings = {"frames_dir": shots, "backend": "da3", "process_res": 112, "every_frame": False, "as_is": True}
    for commercial_safe, weights, license in ((False, DEFAULT_MODEL, "CC-BY-NC-4.0"), (True, COMMERCIAL_MODEL, "Apache-2.0")):
        notes.lines.clear()
        root = preprocess_video.run(PreprocessConfig(**settings, commercial_safe=commercial_safe, scene_root=tmp_path / weights), notes)
        assert sum(line == f"weights {weights}, licence: {license}" for line in notes.lines) == 1 and any(
            "out of memory" in line for line in notes.lines
        )
        stored = json.loads((SceneLayout(root).npz_dir / "manifest.json").read_text())["backends"]
        assert (stored["geometry"], stored["weights"], stored["weights_license"]) == ("da3", weights, license)
        assert stored.get("metric_weights") == (COMMERCIAL_METRIC_MODEL if commercial_safe else None)
        assert stored.get("metric_weights_license", "Apache-2.0") == "Apache-2.0"
    with pytest.raises(ConfigError, match="permissive"):
        metric_weights("somebody/metric", commercial_safe=True)


# ------------------------------------------------------------------------------------------------ the real architecture


def random_model(folder, preset="da3-small", seed=0):
    """A local model folder as the package would save it: random weights, keys with the wrapper's prefix, shared ones once."""
    pytest.importorskip("depth_anything_3")
    from depth_anything_3.cfg import create_object, load_config
    from depth_anything_3.registry import MODEL_REGISTRY
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    network = create_object(load_config(MODEL_REGISTRY[preset])).eval()
    state, seen = {}, set()
    for key, value in network.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            state["model." + key] = value.contiguous()
    folder.mkdir(exist_ok=True)
    save_file(state, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model_name": preset}))
    return network


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    pytest.importorskip("depth_anything_3")
    folder = tmp_path_factory.mktemp("da3") / "small"
    return folder, random_model(folder)


def test_the_adapter_gives_what_the_network_gives(small):
    """Bit for bit after loading from disk, with w2c inverted once and images in 0..255 normalised."""
    folder, network = small
    frames = clip(3)
    scene = Da3Geometry(model_name=str(folder), device="cpu").estimate(frames, NULL_REPORTER)
    assert scene.cameras.size == (84, 112)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (torch.from_numpy(scene.images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        output = network(pixels[None], None, None, [], False, False, "saddle_balanced")
    assert np.allclose(scene.depth, output["depth"][0].numpy(), rtol=1e-5)
    assert np.allclose(scene.confidence, output["depth_conf"][0].numpy(), rtol=1e-5)
    assert np.allclose(scene.cameras.w2c[:, :3], output["extrinsics"][0].numpy(), atol=1e-5)
    assert np.allclose(scene.cameras.K, output["intrinsics"][0].numpy(), rtol=1e-5)


def test_the_results_npz_contract(small, tmp_path):
    scene = Da3Geometry(model_name=str(small[0]), device="cpu").estimate(clip(4, size=(90, 160)), NULL_REPORTER)
    h, w = scene.cameras.size
    assert (h, w) == (56, 112) and h % 14 == 0 and w % 14 == 0
    assert np.allclose(scene.cameras.K[:, 0, 2], w / 2) and np.allclose(scene.cameras.K[:, 1, 2], h / 2)
    assert scene.confidence.min() >= 1 and scene.depth.dtype == np.float32
    folder = SceneLayout(tmp_path).npz_dir
    folder.mkdir(parents=True)
    save_results(folder, scene)
    with np.load(folder / "results.npz") as stored:
        assert {k: stored[k].dtype.name for k in stored.files} == {
            "image": "uint8",
            "depth": "float32",
            "conf": "float32",
            "extrinsics": "float32",
            "intrinsics": "float32",
        }
    assert np.allclose(load_scene(tmp_path).cameras.c2w, scene.cameras.c2w, atol=1e-5)


def test_runs_repeat_and_leave_the_generator_alone(small):
    torch.manual_seed(5)
    first = Da3Geometry(model_name=str(small[0]), device="cpu").estimate(clip(3), NULL_REPORTER)
    drawn = torch.rand(1)
    again = Da3Geometry(model_name=str(small[0]), device="cpu").estimate(clip(3), NULL_REPORTER)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert np.array_equal(first.depth, again.depth) and np.array_equal(first.cameras.c2w, again.cameras.c2w)


def test_long_clips_run_in_pieces(small, monkeypatch):
    """With random weights the pieces need not agree; only that they are cut, run, and cover the clip."""
    seen = []
    monkeypatch.setattr(geometry_da3, "join_chunks", lambda pieces: (seen.extend(pieces) or whole(pieces), []))

    def whole(pieces):
        rows = {p.start + i: (p, i) for p in pieces for i in range(len(p))}
        gathered = {n: np.stack([getattr(p, n)[i] for _, (p, i) in sorted(rows.items())]) for n in ("c2w", "K", "depth", "confidence")}
        return Chunk(start=0, **gathered)

    scene = Da3Geometry(model_name=str(small[0]), device="cpu", chunk_frames=4, overlap_frames=2).estimate(clip(7), NULL_REPORTER)
    assert [(p.start, p.stop) for p in seen] == [(0, 4), (2, 6), (3, 7)]
    assert len(scene) == 7


def test_wrong_weights_are_named(small, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text(json.dumps({"model_name": "da3-small"}))
    state = load_file(str(small[0] / "model.safetensors"))
    state.pop("model.cam_dec.fc_t.weight")
    save_file(state, str(tmp_path / "model.safetensors"))
    weights = choose_weights(str(tmp_path), False)
    with pytest.raises(CorruptArtifactError, match=r"1 parameters are missing.*cam_dec\.fc_t\.weight"):
        load_network(weights, None, CPU, NULL_REPORTER)
    (tmp_path / "model.safetensors").write_bytes(b"truncated")
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        load_network(weights, None, CPU, NULL_REPORTER)
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "da9-huge"}))
    with pytest.raises(CorruptArtifactError, match="da9-huge"):
        load_network(replace(weights), None, CPU, NULL_REPORTER)


def test_a_second_network_brings_scale_and_sky(small, tmp_path, monkeypatch):
    """The nested network of the package, put together from two sets of weights; a small one stands in for the metric branch."""
    from depth_anything_3 import registry

    tiny = tmp_path / "da3metric-large.yaml"
    tiny.write_text(
        """
__object__: {path: depth_anything_3.model.da3, name: DepthAnything3Net, args: as_params}
net:
  __object__: {path: depth_anything_3.model.dinov2.dinov2, name: DinoV2, args: as_params}
  name: vits
  out_layers: [5, 7, 9, 11]
  alt_start: -1
  qknorm_start: -1
  rope_start: -1
  cat_token: false
head:
  __object__: {path: depth_anything_3.model.dpt, name: DPT, args: as_params}
  dim_in: 384
  output_dim: 1
  features: 64
  out_channels: [48, 96, 192, 384]
"""
    )
    monkeypatch.setitem(registry.MODEL_REGISTRY, "da3metric-large", str(tiny))
    random_model(tmp_path / "metric", "da3metric-large", seed=1)
    weights, metric = choose_weights(str(small[0]), False), metric_weights(str(tmp_path / "metric"))
    network = load_network(weights, metric, CPU, NULL_REPORTER)
    sky_of = network.da3_metric.forward

    def with_sky(x, *args, **kwargs):
        """Random weights know no sky: the upper third is declared to be it."""
        output = sky_of(x, *args, **kwargs)
        output.sky = torch.zeros_like(output.sky)
        output.sky[:, :, : output.sky.shape[2] // 3] = 1
        return output

    monkeypatch.setattr(network.da3_metric, "forward", with_sky)
    monkeypatch.setattr(geometry_da3, "load_network", lambda *a: network)
    backend = Da3Geometry(model_name=str(small[0]), metric_model_name=str(tmp_path / "metric"), device="cpu")
    scene = backend.estimate(clip(3), NULL_REPORTER)
    sky = np.zeros(scene.depth.shape, bool)
    sky[:, : 84 // 3] = True
    assert (scene.confidence[sky] == 1).all() and (scene.confidence[~sky] > 1).all()
    assert len(np.unique(scene.depth[sky])) == 1
    assert scene.depth[sky][0] == pytest.approx(min(np.quantile(scene.depth[~sky], 0.99), 200), rel=0.02)
    plain = Da3Geometry(model_name=str(small[0]), device="cpu")
    monkeypatch.undo()
    plain = plain.estimate(clip(3), NULL_REPORTER)
    ratio = scene.depth[~sky] / plain.depth[~sky]
    assert ratio.std() < 1e-3 * ratio.mean()
    centers = np.linalg.norm(scene.cameras.w2c[:, :3, 3], axis=1) / np.linalg.norm(plain.cameras.w2c[:, :3, 3], axis=1)
    assert np.allclose(centers, ratio.mean(), rtol=1e-3)


def test_infer_takes_a_piece(small):
    chunk = infer(load_network(choose_weights(str(small[0]), False), None, CPU, NULL_REPORTER), clip(2).images[:, :84, :112], 5, CPU)
    assert (chunk.start, chunk.stop) == (5, 7) and chunk.depth.shape == (2, 84, 112)
