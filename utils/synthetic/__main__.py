"""`python -m utils.synthetic --out DIR` writes a synthetic inconsistent clip and its ground truth."""

import argparse
import sys
from pathlib import Path

from utils.errors import ConfigError, V2WError
from utils.reporting import ConsoleReporter
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


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
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
    return parser


def main() -> int:
    """Run the command; 0 on success, 2 after a one-line error."""
    args = build_parser().parse_args()
    try:
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
        )
        with ConsoleReporter() as console:
            console.note("compiling the ray caster, which takes a minute the first time on a machine")
            world = make_world(config, console)
            console.note("clean views and ground truth")
            save_world(world, args.out)
    except V2WError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write to {args.out}: {error}\nhint: choose a folder you may write to", file=sys.stderr)
        return 2
    print(f"wrote {args.out / 'clip.mp4'} ({args.frames} frames) and {args.out / 'ground_truth.npz'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
