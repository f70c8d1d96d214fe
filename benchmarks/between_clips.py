"""How alike several clips of one place are: the best that a world made of the other clips could show of each.

    python -m benchmarks.between_clips CLIP CLIP ... [--frames 24] [--width 336]

For each frame of a clip, those frames of the other clips that look most like it are warped onto it by dense flow between the two pictures;
the best PSNR counts. The flow sees the picture that is asked for, which a renderer does not, so what stays different is not a matter of
cameras or depth: the clips show different things.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from train_gs.train import psnr_of
from utils.scene.media import decode, resize_area
from utils.types import Array

_ASKED = 8
"""Frames of other clips that are tried for each frame."""
_SMALL = (63, 84)
"""(h, w) at which frames are compared to choose those."""


def frames_of(path: Path, count: int, width: int) -> Array:
    """(count, h, w, 3) uint8, evenly over a clip."""
    pictures = list(decode(path))
    h, w = pictures[0].shape[:2]
    chosen = np.linspace(0, len(pictures) - 1, count).round().astype(int)
    return np.stack([resize_area(pictures[i], (round(h * width / w), width)) for i in chosen])


def warped(other: Array, onto: Array) -> Array:
    """(h, w, 3) a picture of another clip moved onto one of this by dense flow, its border repeated beyond it."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    field = flow.calc(*(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (onto, other)), None)
    y, x = np.mgrid[: onto.shape[0], : onto.shape[1]].astype(np.float32)
    return cv2.remap(other, x + field[..., 0], y + field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def best_of_others(own: Array, others: Array) -> Array:
    """(F,) PSNR in dB of frames (F, h, w, 3) as the best frame of other clips (G, h, w, 3), warped, shows them."""
    coarse = [np.stack([resize_area(image, _SMALL) for image in images]).astype(np.float64) for images in (own, others)]
    found = []
    for image, small in zip(own, coarse[0], strict=True):
        likest = np.argsort(np.square(coarse[1] - small).mean((1, 2, 3)))[:_ASKED]
        errors = [np.square((warped(others[k], image).astype(np.float64) - image) / 255).mean() for k in likest]
        found.append(psnr_of(float(min(errors))))
    return np.array(found)


def main() -> None:
    """Prints a line for each clip, and the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="clips of one place, at least two")
    parser.add_argument("--frames", type=int, default=24, help="of each clip")
    parser.add_argument("--width", type=int, default=336, help="of the pictures compared, in pixels")
    args = parser.parse_args()
    clips = [frames_of(path, args.frames, args.width) for path in args.clips]
    means = []
    for number, (path, own) in enumerate(zip(args.clips, clips, strict=True)):
        psnr = best_of_others(own, np.concatenate(clips[:number] + clips[number + 1 :]))
        means.append(psnr.mean())
        print(f"{path.stem}: mean {psnr.mean():.2f} dB, median {np.median(psnr):.2f}, least {psnr.min():.2f}", flush=True)
    print(f"mean of all: {np.mean(means):.2f} dB")


if __name__ == "__main__":
    main()
