r"""The command lines behind the tables of `benchmarks.splatting`, one world each, longest first, for a machine with many cores.

    python -m benchmarks.splatting_jobs --out DIR | xargs -P 32 -d '\n' -n 1 sh -c
    python -m benchmarks.splatting --table DIR/compared_*.jsonl DIR/bounds_*.jsonl        # and so on for every set

A line takes one core and about 2 GB. Minutes on a core of an AMD EPYC (Zen 4) stand beside the sets below.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

LAYOUTS = ("room", "corridor", "object", "outdoor")
_BUDGET = "--size 192x108 --iterations 1000 --splats 20000"


@dataclass(frozen=True)
class Jobs:
    """A table: flags that its worlds share, the worlds, and about how many minutes one takes."""

    flags: str
    severities: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: int


SETS = {
    "long": Jobs(f"--frames 81 {_BUDGET} --variants naive ours true_mean", ("medium", "high"), (0, 1, 2), 9),
    "ablation": Jobs(f"--frames 24 {_BUDGET} --variants ablation", ("medium",), (0, 1, 2), 9),
    "counts": Jobs(f"--frames 50 {_BUDGET} --variants naive ours --counts 0.1 0.3 1 3", ("medium",), (0, 1), 8),
    "compared": Jobs(f"--frames 50 {_BUDGET} --variants compared", ("medium", "high"), (0, 1, 2), 6),
    "bounds": Jobs(f"--frames 50 {_BUDGET} --variants true_mean true consistent", ("medium",), (0, 1, 2), 5),
    "surfels": Jobs(f"--frames 50 {_BUDGET} --renderer 2dgs --variants naive ours", ("medium",), (0,), 6),
    "half_frames": Jobs(f"--frames 50 {_BUDGET} --variants half_frames", ("medium",), (0, 1), 4),
}


def commands(names: list[str], out: Path) -> list[str]:
    """One line per world of the named sets; each appends to a file of its own, `SET_SEVERITY_LAYOUT_SEED.jsonl`."""
    lines = []
    for name in names:
        jobs = SETS[name]
        for severity, seed, layout in product(jobs.severities, jobs.seeds, LAYOUTS):
            file = out / f"{name}_{severity}_{layout}_{seed}"
            world = f"--layouts {layout} --seeds {seed} --severity {severity}"
            python = f"{shlex.quote(sys.executable)} -m benchmarks.splatting {world} {jobs.flags}"
            to, log = shlex.quote(f"{file}.jsonl"), shlex.quote(f"{file}.log")
            lines.append(f"OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 {python} --json {to} > {log} 2>&1")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS), metavar="NAME", help=f"of {', '.join(SETS)}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the JSON lines and logs; made if it is not there")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print("\n".join(commands(args.sets, args.out)))


if __name__ == "__main__":
    main()
