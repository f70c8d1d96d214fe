"""`python -m utils.synthetic --out DIR` writes a synthetic inconsistent clip and its ground truth."""

import argparse
import errno
import os
from pathlib import Path
from typing import NoReturn

from utils.errors import ConfigError
from utils.reporting import ConsoleReporter
from utils.runtime import run_stage
from utils.synthetic.inconsistency import WARPS
from utils.synthetic.scenes import LAYOUTS
from utils.synthetic.texture import TEXTURES
from utils.synthetic.world import WorldConfig, make_world, save_world


def parse_size(text: str) -> tuple[int, int]:
    """(h, w) of "WIDTHxHEIGHT".

    Raises:
        ConfigError: not of that form.
    """
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise ConfigError(f"size '{text}' is not WIDTHxHEIGHT", "write it like 256x144") from error
    return height, width


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors like any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, f"{self.prog} --help lists all flags and what they take")


def build_parser() -> argparse.ArgumentParser:
    """The command line; raises ConfigError for what is not understood."""
    parser = _Parser(
        prog="python -m utils.synthetic",
        description="Write DIR/clip.mp4, a clip whose frames contradict each other the way generated video does, and "
        "DIR/ground_truth.npz, its true cameras, depth, canonical points and clean novel views.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--layout", choices=LAYOUTS, default="room", help="kind of place")
    parser.add_argument("--frames", type=int, default=28, help="number of frames")
    parser.add_argument("--size", default="256x144", metavar="WxH", help="width x height in pixels, both even")
    parser.add_argument("--severity", default="medium", help="none, low, medium, high, or a factor (1 = medium) on every inconsistency")
    parser.add_argument("--seed", type=int, default=0, help="changes the place, its textures and the inconsistency")
    parser.add_argument("--path-scale", type=float, default=1.0, help="camera speed; larger means wider baselines")
    parser.add_argument("--warp", choices=WARPS, default="smooth", help="how the shown space differs between frames")
    parser.add_argument(
        "--texture",
        choices=TEXTURES,
        default="calm",
        help="calm is a lived-in place, rich has contrast everywhere, weak is nearly of one colour, repeated is chequered tiles",
    )
    parser.add_argument("--occluders", type=int, default=0, help="slender posts close to the camera")
    parser.add_argument("--vanishing", type=float, default=0.0, help="share of the objects that appear and disappear, 0 to 1")
    parser.add_argument("--turning", type=float, default=0.0, help="radians by which the first object turns during the clip")
    parser.add_argument("--zoom", type=float, default=1.0, help="factor by which the focal length grows from the first frame to the last")
    parser.add_argument("--dolly", type=float, default=0.0, help="how far the camera backs away meanwhile: 0 zooms only, 1 is a dolly zoom")
    return parser


def main() -> None:
    """Run the command.

    Raises:
        V2WError: settings that make no world, or a folder that cannot be written.
    """
    args = build_parser().parse_args()
    config = WorldConfig(
        layout=args.layout,
        frames=args.frames,
        size=parse_size(args.size),
        severity=args.severity,
        seed=args.seed,
        path_scale=args.path_scale,
        warp=args.warp,
        texture=args.texture,
        occluders=args.occluders,
        vanishing=args.vanishing,
        turning=args.turning,
        zoom=args.zoom,
        dolly=args.dolly,
    )
    try:
        args.out.mkdir(parents=True, exist_ok=True)  # told before the work is done
        if not os.access(args.out, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(args.out))
        with ConsoleReporter() as console:
            console.note("compiling the ray caster, which takes a minute the first time on a machine")
            world = make_world(config, console)
            console.note("clean views and ground truth")
            save_world(world, args.out)
    except OSError as error:
        raise ConfigError(f"cannot write to {args.out}: {error}", "choose a folder you may write to") from error
    print(f"wrote {args.out / 'clip.mp4'} ({args.frames} frames) and {args.out / 'ground_truth.npz'}")


if __name__ == "__main__":
    run_stage(main)
