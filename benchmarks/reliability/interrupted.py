"""Part (a): a small run is killed, stopped, starved of disk and raced at random moments of every stage, and the bits are compared.

    python -m benchmarks.reliability.interrupted [--kills 100] [--interrupts 12] [--full 12] [--pairs 6] [--out results.jsonl]

Every trial starts from a finished scene without the results of one stage and of those after it, in a folder of its own; after the fault the
same command is run again. A trial is good if that ends with 0, with the bits of a run that nothing happened to, and with nothing left over.
Commands run in processes forked from this one, in which all that they import is loaded, so that a trial takes seconds.
A full disk is a small tmpfs (needs root), two runs start together. Half of the kills come at random times, half before random changes to a
folder.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.reliability import sandbox
from benchmarks.reliability.runs import (
    EXPORT,
    REPOSITORY,
    STAGES,
    Forked,
    Outcome,
    after,
    bits,
    command,
    killed_at_change,
    leftovers,
    run,
    size_of,
    without,
)


@dataclass(frozen=True)
class Trial:
    """One fault and what came after it.

    Attributes:
        fault: what was done.
        stage: to which stage.
        moment: when: seconds after the lock was taken, number of the change, or share of the disk that is needed.
        hit: the fault met the stage at work.
        polite: the process said what is wrong, without a traceback, and with the right code; True for a kill.
        same: the same command ended with 0 and the bits of an undisturbed run.
        left: what was left over.
        differing: files whose bits differ.
        said: the end of what the process said, where the trial is bad.
    """

    fault: str
    stage: str
    moment: float
    hit: bool
    polite: bool
    same: bool
    left: list[str]
    differing: list[str]
    said: str = ""

    @property
    def good(self) -> bool:
        """Nothing was wrong."""
        return self.polite and self.same and not self.left


@dataclass(frozen=True)
class Bench:
    """What trials need.

    Attributes:
        clip: the small clip.
        reference: the finished scene.
        folder: where trials take place.
        wanted: bits of every stage.
        seconds: how long each stage takes.
        changes: how many changes each stage makes to folders.
        draws: random numbers.
    """

    clip: Path
    reference: Path
    folder: Path
    wanted: dict[str, dict[str, str]]
    seconds: dict[str, float]
    changes: dict[str, int]
    draws: random.Random

    def judge(self, fault: str, stage: str, moment: float, root: Path, broken: Outcome, code: int | None) -> Trial:
        """Runs the same command again and compares; `code` is what the first one should have ended with, None for a kill."""
        again = run(command(self.clip, root, stage), root)
        found, wanted = bits(root, stage), self.wanted[stage]
        differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        polite = code is None or broken.code == 0 or (broken.code == code and "Traceback" not in broken.output)
        same = again.code == 0 and not differing
        left = leftovers(root)
        said = "" if polite and same else (again.output if polite else broken.output)[-400:]
        return Trial(fault, stage, moment, broken.code != 0, polite, same, left, differing, said)


def kill(bench: Bench, stage: str, root: Path) -> Trial:
    """SIGKILL at a random time, or before a random change."""
    words = command(bench.clip, root, stage)
    if bench.draws.random() < 0.5:
        moment = bench.draws.uniform(0, 1.2 * bench.seconds[stage])
        return bench.judge("kill -9", stage, moment, root, run(words, root, after(moment, signal.SIGKILL), stage == EXPORT), None)
    number = bench.draws.randint(1, bench.changes[stage])
    return bench.judge("kill -9", stage, number, root, run(killed_at_change(words, number), root), None)


def interrupt(bench: Bench, stage: str, root: Path) -> Trial:
    """SIGINT, as Ctrl-C sends it."""
    moment = bench.draws.uniform(0, bench.seconds[stage])
    broken = run(command(bench.clip, root, stage), root, after(moment, signal.SIGINT), stage == EXPORT)
    return bench.judge("Ctrl-C", stage, moment, root, broken, 130)


def full_disk(bench: Bench, stage: str, root: Path) -> Trial:
    """A file system of its own with less room than the stage needs; afterwards it is enlarged."""
    before, needed = size_of(root), size_of(bench.reference)
    share = bench.draws.random()
    with tempfile.TemporaryDirectory() as mount:
        room = int(before + share * (needed - before)) + 65536
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", mount], check=True)
        try:
            scene = Path(mount) / "scene"
            subprocess.run(["cp", "-r", str(root), str(scene)], check=True)
            broken = run(command(bench.clip, scene, stage), scene)
            subprocess.run(["mount", "-o", "remount,size=8g", mount], check=True)
            return bench.judge("disk full", stage, share, scene, broken, 2)
        finally:
            subprocess.run(["umount", "-l", mount], check=False)


def two_at_once(bench: Bench, stage: str, root: Path) -> Trial:
    """Two processes with one command: one does the work, the other is refused or finds it done."""
    words = command(bench.clip, root, stage)
    other = Forked(words)
    first = run(words, root)
    refused = [o for o in (first, Outcome(*other.end(), 0.0)) if o.code != 0]
    told = all("is being written by another run" in o.output for o in refused) and len(refused) < 2
    broken = refused[0] if refused else first
    return bench.judge("two at once", stage, 0, root, Outcome(broken.code if told else 99, broken.output, 0.0), 2)


FAULTS = {"kill -9": kill, "Ctrl-C": interrupt, "disk full": full_disk, "two at once": two_at_once}


def prepare(folder: Path, seed: int, clip: Path | None = None) -> Bench:
    """The clip if there is none, a finished scene, and what each stage takes."""
    if clip is None:
        words = [sys.executable, "-m", "utils.synthetic", "--out", str(folder / "demo"), "--frames", "16", "--size", "192x108"]
        subprocess.run(words, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        clip = folder / "demo" / "clip.mp4"
    draws, reference, commands = random.Random(seed), folder / "reference", (*STAGES, EXPORT)
    seconds, changes = {}, {}
    for compiled in (False, True):  # kernels that Numba has just compiled round otherwise than the same from its cache
        if compiled:
            shutil.rmtree(reference)
        for stage in commands:
            done = run(killed_at_change(command(clip, reference, stage), -1), reference)
            if done.code:
                raise RuntimeError(f"{stage} failed: {done.output[-600:]}")
            changes[stage] = int(done.output.rpartition("changes: ")[2])
    for stage in commands:
        trial = without(reference, stage, folder / "timed")
        seconds[stage] = run(command(clip, trial, stage), trial, after(1e9, signal.SIGKILL), stage == EXPORT).seconds
        subprocess.run(["rm", "-r", str(trial)], check=True)
    return Bench(clip, reference, folder, {stage: bits(reference, stage) for stage in commands}, seconds, changes, draws)


def trials(bench: Bench, counts: dict[str, int]) -> Iterator[Trial]:
    """Every fault as often as is wanted, stages in turn."""
    for fault, count in counts.items():
        for number in range(count):
            stages = STAGES if fault == "two at once" else (*STAGES, EXPORT)  # exports take turns without a lock
            stage = stages[number % len(stages)]
            root = without(bench.reference, stage, bench.folder / f"trial {number}")
            yield FAULTS[fault](bench, stage, root)
            subprocess.run(["rm", "-r", str(root)], check=True)


def table(done: list[Trial]) -> str:
    """A row per fault and stage as Markdown."""
    lines = ["| fault | stage | tries | met it at work | said politely | same bits after | left over |", "|---|---|---|---|---|---|---|"]
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in done:
        groups.setdefault((trial.fault, trial.stage), []).append(trial)
        groups.setdefault((trial.fault, "**all**"), []).append(trial)
    for (fault, stage), group in sorted(groups.items(), key=lambda item: (list(FAULTS).index(item[0][0]), item[0][1] == "**all**")):
        sums = Counter({name: sum(bool(getattr(t, name)) for t in group) for name in ("hit", "polite", "same", "left")})
        lines.append(f"| {fault} | {stage} | {len(group)} | {sums['hit']} | {sums['polite']} | {sums['same']} | {sums['left']} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Runs the trials; 1 if any of them was bad."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.interrupted", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="kill -9 at random moments")
    parser.add_argument("--interrupts", type=int, default=12, help="Ctrl-C at random moments")
    parser.add_argument("--full", type=int, default=12, help="disks too small by a random share; needs root")
    parser.add_argument("--pairs", type=int, default=6, help="two runs at once")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--clip", type=Path, help="the small clip, if it is there already")
    parser.add_argument("--out", type=Path, help="one line of JSON a trial")
    args = parser.parse_args(arguments)
    counts = {"kill -9": args.kills, "Ctrl-C": args.interrupts, "disk full": args.full, "two at once": args.pairs}
    sandbox.load()
    done: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        for trial in trials(prepare(Path(folder), args.seed, args.clip), counts):
            done.append(trial)
            line = json.dumps(asdict(trial) | {"good": trial.good})
            print(line if not trial.good else f"{len(done)}/{sum(counts.values())} {trial.fault}, {trial.stage}: good", file=sys.stderr)
            if args.out is not None:
                with args.out.open("a") as stream:
                    stream.write(line + "\n")
    print(table(done))
    return int(not all(trial.good for trial in done))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
