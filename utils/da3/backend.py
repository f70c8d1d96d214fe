"""The learned geometry backend: Depth Anything 3 (Lin et al., 2025) for cameras, depth and confidence of all frames at once.

Clips too long for the memory are cut into overlapping pieces (see `da3_chunks`). The result follows the layout of the authors' own
export: confidence from 1 upwards, 1 exactly on sky; K in pixels of the working grid; metres where the model is metric.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.cameras.projection import invert_rigid, orthonormalized, to_4x4
from utils.da3.chunks import Chunk, chunk_ranges, join_chunks
from utils.da3.weights import COMMERCIAL_METRIC_MODEL, DEFAULT_MODEL, Weights, choose_weights, load_network, metric_weights
from utils.device.accelerator import accelerator
from utils.errors import BackendError, ConfigError, GeometryError, MissingDependencyError
from utils.geometry_backend import ClipFrames
from utils.types import Array, CameraSet, Reporter, Scene, StepReport

# Statistics of the images the backbone was trained on (ImageNet).
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PATCH = 14
# Bytes that one more token needs per channel while the network runs, and the share of free memory that may be filled. Measured for
# 64 frames of 504x280 on a GPU, da3-giant and da3-base: 91 to 95 in use, up to 176 reserved by the allocator.
_BYTES_PER_CHANNEL = 160
_MEMORY_SHARE = 0.7
# A piece needs this many frames to be worth placing.
_SHORTEST_PIECE = 4
# Which frame the network measures the others from: the one most like all others (its authors' default).
_REFERENCE = "saddle_balanced"


@dataclass(frozen=True, kw_only=True)
class Da3Geometry:
    """Depth Anything 3; see the module.

    Attributes:
        model_name: hub name, or a folder with config.json and model.safetensors.
        metric_model_name: a second model for metric scale and sky, for models that have neither.
        commercial_safe: only weights whose licence allows commercial use.
        device: cuda, cpu, or auto.
        chunk_frames: frames estimated at once; None: as many as the memory holds.
        overlap_frames: frames that neighbouring pieces share at least.
        use_ray_pose: cameras from the predicted rays instead of the camera head; slower, by the authors' tables more accurate.
        seed: fixes the samples that the network draws.
    """

    model_name: str = DEFAULT_MODEL
    metric_model_name: str | None = None
    commercial_safe: bool = False
    device: str = "auto"
    chunk_frames: int | None = None
    overlap_frames: int = 12
    use_ray_pose: bool = False
    seed: int = 0
    _metric: list[Weights] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.chunk_frames is not None and self.chunk_frames < _SHORTEST_PIECE:
            raise ConfigError(f"chunk_frames is {self.chunk_frames}", f"give at least {_SHORTEST_PIECE}")
        if self.overlap_frames < 1:
            raise ConfigError(f"overlap_frames is {self.overlap_frames}", "neighbouring pieces must share at least 1 frame")

    @property
    def provenance(self) -> dict[str, str]:
        """What the manifest should say about the weights, the second ones too where `estimate` has used some."""
        weights = choose_weights(self.model_name, self.commercial_safe)
        said = {"weights": _short(weights), "weights_license": weights.license}
        for metric in self._metric:
            said |= {"metric_weights": _short(metric), "metric_weights_license": metric.license}
        return said

    def estimate(self, frames: ClipFrames, report: Reporter) -> Scene:
        """Cameras, depth and confidence of all chosen frames.

        Raises:
            MissingDependencyError: package or weights are missing.
            GeometryError: pieces of the clip contradict each other, or nothing but sky is seen.
        """
        if any(side % _PATCH for side in frames.size):
            raise ConfigError(f"the working size {frames.size} is no multiple of {_PATCH}", "choose another process_res")
        device = (accelerator() or torch.device("cpu")) if self.device == "auto" else torch.device(self.device)
        network = self._load(device, report)
        images = np.stack([frames.picture(int(i)) for i in frames.chosen])
        longest = self.chunk_frames or frames_in_memory(frames.size, _width(network), device)
        pieces = self._pieces(network, images, min(longest, len(images)), device, report)
        del network
        if device.type == "cuda":
            torch.cuda.empty_cache()
        joined, fits = join_chunks(pieces)
        for index, fit in enumerate(fits):
            report.note(
                f"piece {index + 2} of {len(pieces)} fits its predecessor to {fit.residual:.1%} of the depth, scale {fit.scale:.3f}"
            )
        cameras = CameraSet(c2w=joined.c2w, K=joined.K, size=frames.size, frame_ids=np.arange(len(images)))
        return Scene(cameras=cameras, images=images, depth=joined.depth, confidence=joined.confidence)

    def _load(self, device: torch.device, report: Reporter) -> Any:
        self._metric.clear()
        weights = choose_weights(self.model_name, self.commercial_safe)
        report.note(f"weights {weights.name}, licence: {weights.license}")
        metric: Weights | None = None
        if self.metric_model_name is not None:
            metric = metric_weights(self.metric_model_name, self.commercial_safe)
            report.note(f"weights {metric.name}, licence: {metric.license}")
        elif self.commercial_safe and self.model_name == DEFAULT_MODEL:
            metric = metric_weights(COMMERCIAL_METRIC_MODEL)
            try:
                network = load_network(weights, metric, device, report)
            except MissingDependencyError as error:
                report.note(f"no metric scale and no sky: {error.message}")
                return load_network(weights, None, device, report)
            self._metric.append(metric)
            report.note(f"weights {metric.name}, licence: {metric.license}")
            return network
        if metric is not None:
            self._metric.append(metric)
        return load_network(weights, metric, device, report)

    def _pieces(self, network: Any, images: Array, longest: int, device: torch.device, report: Reporter) -> list[Chunk]:
        """Geometry of all pieces; when the memory runs out, all again in pieces of two thirds the length."""
        while True:
            ranges = chunk_ranges(len(images), longest, min(self.overlap_frames, longest // 2))
            if len(ranges) > 1:
                report.note(f"{len(images)} frames in {len(ranges)} pieces of {longest}")
            try:
                pieces = []
                for index, (start, stop) in enumerate(ranges):
                    pieces.append(infer(network, images[start:stop], start, device, self.use_ray_pose, self.seed))
                    report.step(StepReport("depth anything 3", index, len(ranges)))
                return pieces
            except torch.OutOfMemoryError as error:
                if longest <= _SHORTEST_PIECE:
                    raise BackendError(
                        f"{longest} frames of {images.shape[2]}x{images.shape[1]} do not fit into the memory of {device}",
                        "lower process_res, choose a smaller model (depth-anything/DA3-BASE) or the backend 'sfm'",
                    ) from error
            # Outside the handler: its traceback keeps the failed run's tensors alive.
            torch.cuda.empty_cache()
            shorter = max(_SHORTEST_PIECE, longest * 2 // 3)
            report.note(f"out of memory with {longest} frames at once, trying {shorter}")
            longest = shorter


def infer(network: Any, images: Array, start: int, device: torch.device, use_ray_pose: bool = False, seed: int = 0) -> Chunk:
    """Runs the network on (N, H, W, 3) uint8 images, whose first one is frame `start`.

    Half precision on a GPU, float32 on the CPU.
    """
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (_MEAN, _STD))
    pixels = (torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.inference_mode(), torch.random.fork_rng(), torch.autocast(device.type, dtype=half(device), enabled=device.type == "cuda"):
        torch.manual_seed(seed)  # the network estimates percentiles from random samples
        try:
            output = network(pixels[None], None, None, [], False, use_ray_pose, _REFERENCE)
        except AssertionError as error:
            raise GeometryError(f"frames {start} to {start + len(images) - 1}: {error}", "use frames that show more than sky") from error
    size = images.shape[1:3]
    depth = _host(output["depth"]).reshape(len(images), *size)
    confidence = _host(output["depth_conf"]).reshape(len(images), *size)
    w2c, K = to_4x4(_host(output["extrinsics"])[0].astype(np.float64)), _host(output["intrinsics"])[0].astype(np.float64)
    if not (np.isfinite(w2c).all() and np.isfinite(K).all()):
        raise GeometryError(
            f"no finite camera for frames {start} to {start + len(images) - 1}", "report the clip, or use the backend 'sfm'"
        )
    known = np.isfinite(depth) & (depth > 0) & np.isfinite(confidence)
    return Chunk(
        start=start,
        c2w=invert_rigid(orthonormalized(w2c)),
        K=K,
        depth=np.where(known, depth, 0).astype(np.float32),
        confidence=np.where(known, np.maximum(confidence, 1), 1).astype(np.float32),
    )


def half(device: torch.device) -> torch.dtype:
    """What the network computes in: bfloat16 where the GPU has it, else float16; unused on the CPU."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _short(weights: Weights) -> str:
    """The hub name, or the name of a local folder without the path to it."""
    return Path(weights.name).name if Path(weights.name).is_dir() else weights.name


def _host(tensor: torch.Tensor) -> Array:
    return tensor.float().cpu().numpy()


def _width(network: Any) -> int:
    """Channels of the (larger) backbone."""
    return int(getattr(network, "da3", network).backbone.pretrained.embed_dim)


def frames_in_memory(size: tuple[int, int], width: int, device: torch.device) -> int:
    """How many frames of `size` a network of `width` channels can take at once."""
    tokens = (size[0] // _PATCH) * (size[1] // _PATCH) + 1
    free = _free_on(device) if device.type == "cuda" else _free_memory()
    return max(_SHORTEST_PIECE, int(_MEMORY_SHARE * free / (_BYTES_PER_CHANNEL * width * tokens)))


def _free_on(device: torch.device) -> int:
    """Free memory of a GPU in bytes, within what this process may take of it."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total - torch.cuda.memory_reserved(device)
    return int(min(free, max(allowed, 0)))


def _free_memory() -> int:
    """Free memory of the host in bytes; 8 GB where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 * 2**30
