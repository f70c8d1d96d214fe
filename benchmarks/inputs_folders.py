"""Folders of frames and data sets of every kind that people bring, made small and by seed, each with its right answer."""

import struct
from pathlib import Path

import cv2
import numpy as np

from benchmarks.inputs_clips import SIZE, Kind, Outcome, cube, psnr, wrong
from benchmarks.inputs_world import Cube
from utils.scene.media import read_image, write_image

FOLDERS: list[Kind] = []


def folder_kind(name: str, **settings):
    """Registers a builder; it fills a folder."""

    def register(build):
        FOLDERS.append(Kind(name, build, settings))
        return build

    return register


def written(folder: Path, truth: Cube, names: list[str]) -> Path:
    """The frames of the box under these names."""
    for name, image in zip(names, truth.images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, image)
    return folder


def in_order(truth: Cube, names: list[str], *, said: str = "", least: float = 30.0):
    """Asks for exactly these frames in this order, each like the truth."""

    def ask(out: Outcome) -> str:
        got = [Path(name).name for name in out.source.names]
        if got != [Path(name).name for name in names]:
            return f"frames {got[:4]} ..., {len(got)} of {len(names)}"
        shown = [read_image(path) for path in out.source.frames]
        if shown[0].shape != truth.images[0].shape:
            return f"{shown[0].shape[1]}x{shown[0].shape[0]}"
        quality = min(psnr(image, true) for image, true in zip(shown, truth.images, strict=True))
        return wrong((quality > least, f"{quality:.1f} dB"), (not said or out.says(said), f"said {out.notes}"))

    return ask


@folder_kind("frames numbered without leading zeros")
def natural_order(folder: Path, rng: np.random.Generator):
    truth, first = cube(rng, 14), int(rng.integers(0, 9))
    names = [f"frame{first + i}.png" for i in range(14)]
    return written(folder / "frames", truth, names), in_order(truth, names)


@folder_kind("hidden files of other systems beside frames")
def hidden(folder: Path, rng: np.random.Generator):
    truth, names = cube(rng, 10), [f"{i:06d}.png" for i in range(10)]
    place = written(folder / "frames", truth, names)
    for name in names[:: int(rng.integers(1, 4))]:
        (place / f"._{name}").write_bytes(b"\0\5\x16\7" + bytes(100))
    (place / ".DS_Store").write_bytes(b"\0")
    return place, in_order(truth, names)


@folder_kind("depth or masks beside frames")
def beside(folder: Path, rng: np.random.Generator):
    truth, names = cube(rng, 10), [f"{i:03d}.jpg" for i in range(10)]
    place, which = written(folder / "frames", truth, names), int(rng.integers(3))
    for i, depth in enumerate(truth.depth):
        gray = np.clip(40 * depth, 0, 255).astype(np.uint8)
        write_image(place / [f"{i:03d}.png", f"{i:03d}_depth.png", f"mask_{i:03d}.png"][which], gray)
    return place, in_order(truth, names, said="left out", least=27.0)


@folder_kind("suffixes in mixed case")
def mixed(folder: Path, rng: np.random.Generator):
    truth = cube(rng, 12)
    names = [f"img_{i}.{['png', 'PNG', 'jpg', 'JPG', 'jpeg'][rng.integers(5)]}" for i in range(12)]
    return written(folder / "frames", truth, names), in_order(truth, names, least=27.0)


@folder_kind("a sub-folder for each camera, names repeated")
def cameras(folder: Path, rng: np.random.Generator):
    truth, per = cube(rng, 16), 8
    names = [f"{side}/{i:06d}.png" for side in ("back", "front") for i in range(per)]
    return written(folder / "images", truth, names), in_order(truth, names, said="2 sub-folders")


def with_orientation(path: Path, orientation: int) -> None:
    """Writes an EXIF orientation into a JPEG file."""
    tag = b"MM\0\x2a" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tag
    raw = path.read_bytes()
    path.write_bytes(raw[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + raw[2:])


# How pixels are stored under an orientation, so that they are upright when it is heeded.
_STORED = {
    3: lambda image: np.rot90(image, 2),
    6: lambda image: np.rot90(image, 1),
    8: lambda image: np.rot90(image, 3),
    2: lambda image: image[:, ::-1],
}


def stored_turned(folder: Path, truth: Cube, names: list[str], orientation: int) -> Path:
    """JPEG frames whose EXIF turns them upright."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, truth.images, strict=True):
        write_image(folder / name, np.ascontiguousarray(_STORED[orientation](image)))
        with_orientation(folder / name, orientation)
    return folder


@folder_kind("pictures turned by EXIF")
def turned(folder: Path, rng: np.random.Generator):
    truth, names = cube(rng, 10), [f"{i:03d}.jpg" for i in range(10)]
    place = stored_turned(folder / "frames", truth, names, [2, 3, 6, 8][rng.integers(4)])
    return place, in_order(truth, names, least=27.0)


@folder_kind("transparent frames")
def transparent(folder: Path, rng: np.random.Generator):
    truth, names = cube(rng, 10), [f"{i:03d}.png" for i in range(10)]
    place = written(folder / "frames", truth, names)
    inside = np.zeros(SIZE, bool)
    inside[int(rng.integers(10, 30)) : -20, 20:-20] = True
    for name, image in zip(names, truth.images, strict=True):
        raw = np.dstack([image[..., ::-1], np.where(inside, 255, 0).astype(np.uint8)])
        cv2.imwrite(str(place / name), raw)

    def ask(out: Outcome) -> str:
        if out.source.masks is None:
            return "no masks"
        agree = min(float(((read_image(path)[..., 0] > 127) == inside).mean()) for path in out.source.masks.glob("*.png"))
        return wrong((agree == 1, f"masks agree in {agree:.1%}"), (out.says("transparent"), "not said"))

    return place, ask
