"""Part (b): hostile inputs of every kind, to all commands, drawn by seed.

    python -m benchmarks.reliability.hostile [--seed 0] [--count 1500] [--web 200] [--alone 30] [--jobs 2] [--out F]
    python -m benchmarks.reliability.hostile --seed 0 --case 317        # one of them again, with what it says

An input is answered well if the command ends with 0 or with 2 and the lines `error:` and `hint:` at the end, without a traceback,
within 60 s
of CPU and 1.5 GB, and leaves files of the user's as they were. A command that was asked for long work need not end, if it ends when it is
interrupted. Cases run in forked processes (`sandbox`), some in processes of their own; requests go to one web page.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.reliability import sandbox
from benchmarks.reliability.hostile_cases import KINDS, Ground, case_of
from benchmarks.reliability.runs import STAGES, command, run
from benchmarks.reliability.sandbox import REPOSITORY, Case, Ending, verdict

WRONG = ("traceback", "code", "words", "hang", "memory", "destroyed")


@dataclass(frozen=True)
class Result:
    """One input and what came of it.

    Attributes:
        number: of the case under its seed; -1 for a request.
        kind: of input.
        wrong: "" or one of `WRONG`.
        code: exit code.
        cpu: seconds.
        memory_mb: beyond what imports take.
        about: what was hostile.
        line: the command line.
        said: the end of standard error.
    """

    number: int
    kind: str
    wrong: str
    code: int
    cpu: float
    memory_mb: float
    about: str
    line: str
    said: str


def ground(folder: Path) -> Ground:
    """The small finished scene and what else cases are made from; made on the first call."""
    made = Ground(folder, folder / "reference", folder / "demo" / "clip.mp4", folder / "frames", folder / "colmap")
    if (folder / "ready").exists():
        return made
    clip = [sys.executable, "-m", "utils.synthetic", "--out", str(folder / "demo"), "--frames", "16", "--size", "192x108"]
    subprocess.run(clip, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    for stage in STAGES:
        done = run(command(made.clip, made.reference, stage), made.reference)
        if done.code:
            raise RuntimeError(f"{stage} failed: {done.output[-600:]}")
    made.frames.mkdir()
    for path in sorted((made.reference / "frames").glob("*.png"))[::2]:
        shutil.copy(path, made.frames / path.name)
    model = made.reference / "exports" / "cameras" / "sparse" / "0"
    shutil.copytree(model, made.colmap)
    import pycolmap

    pycolmap.Reconstruction(str(model)).write_text(str(made.colmap))
    shutil.copy(made.reference / "exports" / "cameras" / "transforms.json", folder / "transforms.json")
    own = folder / "own"
    for name in ("keep.txt", "frames/a.png", "exports/cameras/rig.json", "manifest.json", "deep/er/notes.md"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(f"the user's {name}")
    (folder / "ready").touch()
    return made


def _contents(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Every file of the user's -> hash."""
    found = {}
    for name in names:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def results(made: Ground, work: Path, options: argparse.Namespace) -> Iterator[Result]:
    """Lays out, runs and judges every case."""
    before: dict[int, dict[str, str]] = {}

    def prepared() -> Iterator[tuple[int, Case, Path]]:
        for number in options.numbers:
            folder = work / f"{number}"
            case = case_of(options.seed, number, made, folder, tuple(options.kinds))
            before[number] = _contents(folder, case.guarded)
            yield number, case, folder

    for number, case, end in sandbox.run_all(prepared(), options.jobs):
        yield _judged(number, case, end, work / f"{number}", before.pop(number), options.keep)
    for number in range(options.alone):
        folder = work / f"alone {number}"
        case = case_of(options.seed + 1_000_000, number, made, folder, tuple(options.kinds))
        if not case.long and case.command not in ("web", "utils.view_checkpoint"):
            held = _contents(folder, case.guarded)
            yield _judged(1_000_000 + number, case, sandbox.run_alone(case, folder), folder, held, options.keep)


def _judged(number: int, case: Case, end: Ending, folder: Path, before: dict[str, str], keep: bool) -> Result:
    wrong = verdict(case, end)
    after = _contents(folder, case.guarded)
    if any(after.get(name) != digest for name, digest in before.items()):
        wrong = wrong or "destroyed"
    line = " ".join([case.command, *(repr(w) if not w.isprintable() or " " in w or not w else w for w in case.words)])
    if not (wrong and keep):
        shutil.rmtree(folder, ignore_errors=True)
    said = end.said[-1500:] if wrong else ""
    return Result(number, case.kind, wrong, end.code, round(end.cpu, 2), round(end.memory_mb), case.about, line[:1000], said)


def requested(options: argparse.Namespace, made: Ground) -> Iterator[Result]:
    """The requests to the web page."""
    from benchmarks.reliability.hostile_web import attack

    for about, wrong, memory in attack(options.seed, options.web, made):
        yield Result(-1, "web request", wrong, 0, 0.0, round(memory), about, "", "")


def table(done: list[Result]) -> str:
    """A row per kind as Markdown."""
    lines = ["| kind | inputs | accepted | refused | " + " | ".join(WRONG) + " | most CPU s | most MB |", "|---" * (6 + len(WRONG)) + "|"]
    for kind in [*KINDS, "web request", "**all**"]:
        group = [r for r in done if kind in (r.kind, "**all**")]
        if not group:
            continue
        wrong = Counter(r.wrong for r in group)
        counts = [len(group), sum(r.code == 0 for r in group), sum(r.code == 2 for r in group), *(wrong[w] for w in WRONG)]
        if kind == "web request":
            counts[1:3] = ["-", "-"]  # type: ignore[list-item]
        most = f"{max(r.cpu for r in group):.0f} | {max(r.memory_mb for r in group):.0f}"
        lines.append(f"| {kind} | " + " | ".join(map(str, counts)) + f" | {most} |")
    return "\n".join(lines)


@contextmanager
def _folder(keep: bool) -> Iterator[str]:
    """A temporary folder that may be kept."""
    path = tempfile.mkdtemp()
    try:
        yield path
    finally:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Runs the inputs; 1 if any was answered badly."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.hostile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of all inputs")
    parser.add_argument("--count", type=int, default=1500, help="command lines")
    parser.add_argument("--web", type=int, default=200, help="requests to a web page")
    parser.add_argument("--alone", type=int, default=30, help="further command lines in processes of their own")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=[], help="only these")
    parser.add_argument("--case", type=int, help="one command line again, by its number; its folder is kept")
    parser.add_argument("--ground", type=Path, help="folder to make the small scene in, or where it is already")
    parser.add_argument("--out", type=Path, help="one line of JSON an input")
    options = parser.parse_args(arguments)
    options.keep = options.case is not None
    options.numbers = range(options.count) if options.case is None else [options.case]
    if options.case is not None:
        options.web = options.alone = 0
    sandbox.load()
    done: list[Result] = []
    with _folder(options.keep) as work:
        made = ground(options.ground or Path(work) / "ground")
        for part in (results(made, Path(work), options), requested(options, made) if options.web else ()):
            for result in part:
                done.append(result)
                if result.wrong or options.keep:
                    print(json.dumps(asdict(result)), file=sys.stderr, flush=True)
                if options.out is not None:
                    with options.out.open("a") as stream:
                        stream.write(json.dumps(asdict(result)) + "\n")
    if options.keep:
        print(work)
    print(table(done))
    return int(any(result.wrong for result in done))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
