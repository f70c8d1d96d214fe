"""The command lines behind the alignment tables: one world a process, the longest first, so that all cores of a machine end together.

    python -m benchmarks.alignment.jobs OUT --warm-up | sh             # compiles the kernels once
    python -m benchmarks.alignment.jobs OUT | xargs -P 56 -I{} sh -c '{}'
    python -m benchmarks.alignment --table OUT/*.jsonl

Every line ends with its estimated CPU seconds as a comment (one thread of a 2024 server core).
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

LAYOUTS = ("room", "corridor", "object", "outdoor")
SEEDS = (0, 1, 2)
PARITY_SIZE = "72 128"  # parity costs minutes for what `ours` does in seconds
# CPU seconds of a world of 256x144 apart from the variants: making it, finding and measuring correspondences.
MAKING = {8: 12, 16: 18, 50: 55}
# CPU seconds of a variant that takes as long as `ours`, by frames.
OURS = {8: 4, 16: 11, 50: 40}
SET_UP = 8  # imports and cached kernels


@dataclass(frozen=True)
class Job:
    """One world in one process.

    Attributes:
        table: the set it belongs to.
        name: of the JSON lines.
        arguments: of `benchmarks.alignment`.
        seconds: of CPU, estimated.
    """

    table: str
    name: str
    arguments: str
    seconds: int

    def line(self, out: Path) -> str:
        """The shell command."""
        file = out / f"{self.table}_{self.name}.jsonl"
        command = f"python -m benchmarks.alignment {self.arguments} --json {file} > {file.with_suffix('.log')} 2>&1"
        return f"OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 {command}  # {self.seconds} s"


def world(layout: str, seed: int, frames: int) -> str:
    """Arguments of a world."""
    return f"--layouts {layout} --seeds {seed} --frames {frames}"


def main_jobs() -> Iterator[Job]:
    """Every layout, severity, seed and length; at medium severity exact matches (the upper bound) and none (projection alone) beside."""
    for layout, severity, seed, frames in product(LAYOUTS, ("low", "medium", "high"), SEEDS, MAKING):
        beside, count = (" exact none", 3.4) if severity == "medium" else ("", 1.9)
        arguments = f"{world(layout, seed, frames)} --severity {severity} --variants input rigid ours{beside} oracle"
        yield Job("main", f"{layout}_{severity}_{seed}_{frames}", arguments, SET_UP + MAKING[frames] + round(count * OURS[frames]))


def hard_jobs() -> Iterator[Job]:
    """Wide baselines, other kinds of inconsistency, and content that flow finds hard; 16 frames."""
    kinds = {
        "wide": "--sweep 2.5",
        "sharp": "--warp sharp",
        "object": "--warp object",
        "occluders": "--occluders 8",
        "vanishing": "--vanishing 0.5",
        "weak": "--texture weak",
        "repeated": "--texture repeated",
        "poses0": "--pose-errors 0",
        "poses5": "--pose-errors 5",
        "poses20": "--pose-errors 20",
    }
    for (kind, setting), layout, seed in product(kinds.items(), LAYOUTS, SEEDS):
        if seed and kind not in ("wide", "sharp", "object"):
            continue
        arguments = f"{world(layout, seed, 16)} {setting} --variants input rigid ours exact oracle"
        yield Job("hard", f"{kind}_{layout}_{seed}", arguments, SET_UP + MAKING[16] + 3 * OURS[16])


def parity_jobs() -> Iterator[Job]:
    """The published terms, order and schedule, small, with the same matches, and at 8 and 16 frames without; at 50 frames one seed."""
    for layout, seed, frames in product(LAYOUTS, SEEDS, MAKING):
        if seed and frames == 50:
            continue
        without, seconds = {8: (" parity-no-matches", 70), 16: (" parity-no-matches", 170), 50: ("", 340)}[frames]
        arguments = f"{world(layout, seed, frames)} --size {PARITY_SIZE} --variants input ours parity{without} oracle"
        yield Job("parity", f"{layout}_{seed}_{frames}", arguments, seconds)
    for layout, warp in product(LAYOUTS, ("sharp", "object")):
        arguments = f"{world(layout, 0, 8)} --warp {warp} --size {PARITY_SIZE} --variants input ours parity parity-no-matches oracle"
        yield Job("parity", f"{layout}_{warp}", arguments, 70)


def ablation_jobs() -> Iterator[Job]:
    """`ours` with one ingredient changed, 16 frames."""
    for layout, seed in product(LAYOUTS, SEEDS[:2]):
        arguments = f"{world(layout, seed, 16)} --variants ablation exact none rigid"
        yield Job("ablation", f"{layout}_{seed}", arguments, SET_UP + MAKING[16] + 20 * OURS[16])


def field_jobs() -> Iterator[Job]:
    """Lattices, and hash grids on top of them, on smooth, sharp and per-object inconsistency; 8 frames."""
    for layout, warp in product(LAYOUTS, ("smooth", "sharp", "object")):
        arguments = f"{world(layout, 0, 8)} --warp {warp} --size {PARITY_SIZE} --variants input ours hashgrid oracle"
        yield Job("fields", f"{layout}_{warp}", arguments, 90)


def open3d_jobs() -> Iterator[Job]:
    """Coloured ICP with a pose graph, where Open3D is installed; 8 and 16 frames."""
    for layout, seed, frames in product(LAYOUTS, SEEDS, (8, 16)):
        arguments = f"{world(layout, seed, frames)} --variants input open3d oracle"
        yield Job("open3d", f"{layout}_{seed}_{frames}", arguments, SET_UP + MAKING[frames] + {8: 12, 16: 30}[frames])


TABLES = {
    "main": main_jobs,
    "hard": hard_jobs,
    "parity": parity_jobs,
    "ablation": ablation_jobs,
    "fields": field_jobs,
    "open3d": open3d_jobs,
}
WARM_UP = f"--layouts room --seeds 0 --frames 4 --size {PARITY_SIZE} --variants ours exact none hashgrid parity"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the JSON lines, which is made")
    parser.add_argument("--tables", nargs="+", default=[name for name in TABLES if name != "open3d"], choices=TABLES)
    parser.add_argument("--warm-up", action="store_true", help="print the command that compiles all kernels instead")
    parser.add_argument("--total", action="store_true", help="print estimated CPU seconds by table instead")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = sorted((job for name in args.tables for job in TABLES[name]()), key=lambda job: -job.seconds)
    if args.warm_up:
        print(f"python -m benchmarks.alignment {WARM_UP} > {args.out / 'warm_up.log'} 2>&1")
    elif args.total:
        for name in args.tables:
            own = [job.seconds for job in jobs if job.table == name]
            print(f"{name}: {len(own)} worlds, {sum(own)} CPU s, longest {max(own)} s")
        print(f"all: {len(jobs)} worlds, {sum(job.seconds for job in jobs)} CPU s")
    else:
        print("\n".join(job.line(args.out) for job in jobs))


if __name__ == "__main__":
    main()
