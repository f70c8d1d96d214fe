"""Learned dense correspondences: RoMa v2 (package romav2, MIT; its backbone DINOv3 has a licence of its own).

The network gives, for a pair of images, where each pixel of one lies in the other and how likely it is to be seen there. A match counts
under the same tests as those of optical flow: it is likely, the other direction leads back to where it came from, and both ends have a
usable depth.

Pairs do not depend on the alignment, so each is computed once: it is kept in a file named by the content of both images, and stage 2
finds what stage 1 has computed. The network is in memory only while `prepare` runs.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from configs.stage1_align import MatchingConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.device.torchvision_compat import ensure_torchvision
from utils.errors import BackendError, CorruptArtifactError, MissingDependencyError
from utils.matching.checks import select_matches
from utils.matching.contract import MatchSet
from utils.scene.manifest import content_hash
from utils.third_party import available
from utils.types import NULL_REPORTER, Array, Reporter, Scene, StepReport

# Part of every cache file's name; changes when what is stored changes.
_FORMAT = "romav2/1"
# The network's resolutions: side of the coarse pass, and of the refinement after it (0: none).
SETTINGS = {"turbo": (320, 0), "fast": (512, 0), "base": (640, 0), "precise": (800, 1280)}
# Displacements are stored in these fractions of a pixel, as 16 bit numbers: +-1024 pixels, rounded to 0.016 at most.
_STEPS_PER_PIXEL = 32
_LARGEST_BATCH = 16
# Share of the free memory that a batch may fill, and bytes per pixel of the finest pass: once, and for each pair. Measured on a GPU
# with the settings base and precise, whose peaks they exceed a little.
_MEMORY_SHARE = 0.6
_BYTES_ONCE, _BYTES_PER_PAIR = 4600, 900

_CHECKPOINT = "romav2.0.1.pt"
_CHECKPOINT_URL = f"https://github.com/Parskatt/RoMaV2/releases/download/v2.0.1/{_CHECKPOINT}"
_BACKBONE = "facebookresearch_dinov3_adc254450203739c8149213a7a69d8d905b4fcfa"
_BACKBONE_URL = "https://github.com/facebookresearch/dinov3/archive/adc254450203739c8149213a7a69d8d905b4fcfa.zip"


@dataclass(frozen=True)
class PairWarp:
    """Dense matches of a pair, first image to second ("there") and second to first ("back").

    Attributes:
        there: (h, w, 2) float32 displacement in pixels.
        there_overlap: (h, w) float32 probability of being seen in the other image.
        back: (h, w, 2) float32.
        back_overlap: (h, w) float32.
    """

    there: Array
    there_overlap: Array
    back: Array
    back_overlap: Array

    def reversed(self) -> "PairWarp":
        """The same pair in the other order."""
        return PairWarp(self.back, self.back_overlap, self.there, self.there_overlap)


class RomaMatcher:
    """Matches from RoMa v2; see the module. `prepare` computes many pairs at once, `match` computes what is missing."""

    def __init__(self, scene: Scene, usable: Array, grid: int, config: MatchingConfig):
        self._cache = config.roma_cache
        self._min_overlap = config.roma_min_overlap
        self._images = scene.images
        self._depth = np.where(scene.valid, scene.depth, 0).astype(np.float32)
        self._usable = usable
        self._grid = grid
        self._max_cycle = config.max_cycle_error_px
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        automatic = "precise" if self._device.type == "cuda" else "turbo"
        self._setting = automatic if config.roma_setting == "auto" else config.roma_setting
        self._hashes = [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in scene.images]
        self._kept: dict[tuple[int, int], PairWarp] = {}  # only without a cache folder
        self._lock = threading.Lock()
        h, w = scene.cameras.size
        y, x = np.mgrid[:h, :w].astype(np.float32)
        self._centers = np.stack([x + 0.5, y + 0.5], axis=-1)

    def prepare(self, pairs: Sequence[tuple[int, int]], report: Reporter = NULL_REPORTER) -> None:
        """Computes the pairs that are not known yet; the network is loaded once and freed at the end.

        Every image is encoded once, whatever number of pairs it is in.
        """
        wanted = sorted({(min(p), max(p)) for p in pairs})
        missing = [p for p in wanted if not self._known(p)]
        if not missing:
            return
        report.note(f"RoMa v2 ({self._setting}): {len(missing)} of {len(wanted)} pairs to compute, the others are known")
        with highest_precision(), torch.random.fork_rng():
            engine = RomaEngine(load_model(self._setting), self._setting, self._images, self._device)
            try:
                for done, (pair, warp) in enumerate(engine.warps(missing, report)):
                    self._keep(pair, warp)
                    report.step(StepReport("RoMa v2", done, len(missing)))
            finally:
                del engine
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()

    def match(self, source: int, target: int, geometry: AlignedGeometry) -> MatchSet:
        """Matches of one pair on a grid of source pixels; the alignment so far is not used."""
        first, second = min(source, target), max(source, target)
        with self._lock:  # pairs are matched on several threads, but there is one network
            if not self._known((first, second)):
                self.prepare([(first, second)])
        warp = self._load((first, second))
        if source > target:
            warp = warp.reversed()
        grid = self._grid
        rows = select_matches(
            self._centers,
            warp.there,
            self._centers,
            warp.back,
            self._usable[source] & (warp.there_overlap >= self._min_overlap),
            self._usable[target],
            self._depth[source],
            self._depth[target],
            grid,
            ((source * 7 + target * 3) % grid, (source * 5 + target * 2) % grid),
            self._max_cycle,
        )
        return MatchSet(source, target, rows[:, 0:2], rows[:, 2:4], rows[:, 4], rows[:, 5])

    def _path(self, pair: tuple[int, int]) -> Path:
        assert self._cache is not None
        key = content_hash(_FORMAT, self._setting, self._images.shape[1:3], self._hashes[pair[0]], self._hashes[pair[1]])
        return self._cache / f"pair_{key}.npz"

    def _known(self, pair: tuple[int, int]) -> bool:
        return pair in self._kept if self._cache is None else self._path(pair).is_file()

    def _keep(self, pair: tuple[int, int], warp: PairWarp) -> None:
        if self._cache is None:
            self._kept[pair] = warp
            return
        path = self._path(pair)
        path.parent.mkdir(parents=True, exist_ok=True)
        packed: dict[str, Any] = {name: _pack(value) for name, value in dataclasses.asdict(warp).items()}
        part = path.with_suffix(f".{os.getpid()}.part")  # a killed run leaves no half file under the final name
        with part.open("wb") as stream:
            np.savez_compressed(stream, **packed)
        part.replace(path)

    def _load(self, pair: tuple[int, int]) -> PairWarp:
        if self._cache is None:
            return self._kept[pair]
        path = self._path(pair)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return PairWarp(**{field.name: _unpack(stored[field.name]) for field in dataclasses.fields(PairWarp)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CorruptArtifactError(f"{path} cannot be read: {error}", "delete it; it is computed again") from error


def _pack(values: Array) -> Array:
    """Displacements as int16 in 1/32 pixel, probabilities as uint8: what a file holds."""
    if values.ndim == 3:
        limit = np.iinfo(np.int16).max
        return np.clip(np.round(values * _STEPS_PER_PIXEL), -limit, limit).astype(np.int16)
    return np.round(values * 255).astype(np.uint8)


def _unpack(values: Array) -> Array:
    return values.astype(np.float32) / (_STEPS_PER_PIXEL if values.dtype == np.int16 else 255)


# ------------------------------------------------------------------------------------------------ network


@contextlib.contextmanager
def highest_precision() -> Iterator[None]:
    """Full float32 products, which the network insists on; the former setting comes back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def load_model(setting: str) -> Any:
    """The network with its weights, on the GPU if there is one.

    Raises:
        MissingDependencyError: package, weights or backbone are missing.
    """
    ensure_torchvision()
    available("romav2")
    try:
        from romav2 import RoMaV2
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the matcher 'romav2' needs the package '{error.name}', which is not installed",
            "pip install -e '.[roma]' in this program's folder, or choose the matcher 'flow', which needs no weights",
        ) from error
    logging.getLogger("romav2").setLevel(logging.WARNING)  # it reports its own start
    hub = Path(torch.hub.get_dir())
    try:
        model = RoMaV2()
    except OSError as error:  # no network: URLError is one
        raise MissingDependencyError(
            f"the weights of RoMa v2 are not on this machine and could not be downloaded: {error}",
            f"save {_CHECKPOINT_URL} as {hub / 'checkpoints' / _CHECKPOINT} and unpack {_BACKBONE_URL} as {hub / _BACKBONE};"
            " or choose the matcher 'flow', which needs no weights",
        ) from error
    model.apply_setting(setting)
    return model.eval().requires_grad_(False)


class _Remembered(torch.nn.Module):
    """Stands in for the image encoder while pairs are matched: hands out the features of the images it is told to."""

    def __init__(self, features: list[list[Tensor]], device: torch.device):
        super().__init__()
        self.features = features
        self.device = device
        self.next: list[list[int]] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of the next list of images; a new list each time, since the network writes into it."""
        indices = self.next.pop(0)
        return [torch.cat([self.features[i][k] for i in indices]).to(self.device) for k in range(len(self.features[0]))]


class RomaEngine:
    """Runs the network over many pairs of one set of images.

    Args:
        model: the network, already at `setting`.
        setting: see `SETTINGS`.
        images: (F, h, w, 3) uint8.
        device: where the network is.
    """

    def __init__(self, model: Any, setting: str, images: Array, device: torch.device):
        self._model = model
        self._images = images
        self._device = device
        self._sides = SETTINGS[setting]

    def warps(self, pairs: Sequence[tuple[int, int]], report: Reporter) -> Iterator[tuple[tuple[int, int], PairWarp]]:
        """Dense matches pair by pair, in the order given; batches shrink when the memory runs out."""
        encoder = self._model.f
        used = sorted({i for pair in pairs for i in pair})
        position = {image: row for row, image in enumerate(used)}
        features = []
        with torch.inference_mode():
            for image in used:
                # On the host: a hundred images of features would take a gigabyte from the pairs.
                features.append([layer.cpu() for layer in encoder(self._resized([image], self._sides[0]))])
        self._model.f = _Remembered(features, self._device)
        try:
            batch, at = self._first_batch(), 0
            while at < len(pairs):
                part = list(pairs[at : at + batch])
                try:
                    done = self._run(part, position)
                except torch.OutOfMemoryError as error:
                    if batch == 1:
                        raise BackendError(
                            "one pair of images does not fit into the GPU's memory", "choose the setting 'base' or 'fast' of RoMa v2"
                        ) from error
                    batch = max(1, min(batch, len(part)) // 2)
                    report.note(f"RoMa v2: out of memory, going on with {batch} pairs at once")
                    done = []
                if not done:
                    torch.cuda.empty_cache()
                yield from zip(part, done, strict=False)
                at += len(done)
        finally:
            self._model.f = encoder

    def _first_batch(self) -> int:
        if self._device.type != "cuda":
            return 1
        free = torch.cuda.mem_get_info(self._device)[0]
        return max(1, min(_LARGEST_BATCH, int((_MEMORY_SHARE * free / max(self._sides) ** 2 - _BYTES_ONCE) / _BYTES_PER_PAIR)))

    def _resized(self, indices: Sequence[int], side: int) -> Tensor:
        """(B, 3, side, side) in 0..1: the network sees squares, whatever the aspect."""
        images = torch.from_numpy(np.ascontiguousarray(self._images[list(indices)])).to(self._device)
        images = images.permute(0, 3, 1, 2).float() / 255
        return functional.interpolate(images, size=(side, side), mode="bicubic", align_corners=False, antialias=True)

    def _run(self, pairs: Sequence[tuple[int, int]], position: dict[int, int]) -> list[PairWarp]:
        """One batch. A setting that looks one way only is run in both orders."""
        there, back = self._forward(pairs, position)
        if back is None:
            back = self._forward([(b, a) for a, b in pairs], position)[0]
        return [PairWarp(a[0], a[1], b[0], b[1]) for a, b in zip(there, back, strict=True)]

    def _forward(self, pairs: Sequence[tuple[int, int]], position: dict[int, int]) -> tuple[Any, Any]:
        """Displacement and overlap of each pair, first to second and, where the setting gives it, second to first."""
        first, second = [p[0] for p in pairs], [p[1] for p in pairs]
        self._model.f.next = [[position[i] for i in first], [position[i] for i in second]]
        coarse, fine = self._sides
        with torch.inference_mode():
            output = self._model(
                self._resized(first, coarse),
                self._resized(second, coarse),
                self._resized(first, fine) if fine else None,
                self._resized(second, fine) if fine else None,
            )
            size = self._images.shape[1:3]
            there = to_pixels(output["warp_AB"], output["confidence_AB"], size)
            back = to_pixels(output["warp_BA"], output["confidence_BA"], size) if output["warp_BA"] is not None else None
        return there, back


def to_pixels(warp: Tensor, confidence: Tensor, size: tuple[int, int]) -> list[tuple[Array, Array]]:
    """The network's answer on the pixels of the images.

    Args:
        warp: (B, s, s, 2) position in the other image, -1..1 from edge to edge; sample centres as for pixels.
        confidence: (B, s, s, C), the first channel is the logit of being visible there.
        size: (h, w) of both images.

    Returns:
        For each pair the displacement (h, w, 2) float32 in pixels and the probability (h, w) float32.
    """
    h, w = size
    both = torch.cat([warp.float(), confidence[..., :1].float().sigmoid()], dim=-1).permute(0, 3, 1, 2)
    at_pixels = functional.interpolate(both, size=(h, w), mode="bilinear", align_corners=False).permute(0, 2, 3, 1).cpu().numpy()
    y, x = np.mgrid[:h, :w].astype(np.float32) + np.float32(0.5)
    target = (at_pixels[..., :2] + 1) / 2 * np.array([w, h], np.float32)
    return [(t - np.stack([x, y], axis=-1), np.ascontiguousarray(o)) for t, o in zip(target, at_pixels[..., 2], strict=True)]
