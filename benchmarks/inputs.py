"""Every kind of input that people have, made by seed, and what this program makes of it: `python -m benchmarks.inputs [--seeds 5]`.

Prints a table of kinds: how many inputs, how many with the right answer, what was said of the last one, and what was wrong.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.inputs_clips import CLIPS, Kind, Outcome
from benchmarks.inputs_folders import FOLDERS
from configs.preprocess import PreprocessConfig
from preprocess.source import frames_on_disk, look_at
from utils.errors import V2WError
from utils.scene.layout import SceneLayout


class _Notes:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, report: object) -> None:
        """Progress is not kept."""

    def note(self, message: str) -> None:
        self.lines.append(message)


def look(source: Path, folder: Path, **settings: object) -> Outcome:
    """What stage 0 makes of an input before geometry."""
    given = {"frames_dir": source} if source.is_dir() else {"input_video": (source,)}
    config = PreprocessConfig(**{**given, "scene_root": folder / "scene", **settings})  # type: ignore[arg-type]
    notes = _Notes()
    layout = SceneLayout(config.root)
    layout.frames.mkdir(parents=True, exist_ok=True)
    seen = look_at(config, notes)
    usable, choice = frames_on_disk(config, seen, layout, layout.frames if seen.writes else None, notes)
    return Outcome(usable, choice, tuple(notes.lines))


def answer(kind: Kind, seed: int) -> tuple[str, tuple[str, ...]]:
    """What is wrong with the outcome of one input (empty if nothing), and what was said."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rng = np.random.default_rng([seed, *kind.name.encode()])
        source, ask = kind.build(folder, rng)
        try:
            outcome = look(source, folder, **kind.settings)
        except V2WError as error:
            return f"refused: {error.message}", ()
        return ask(outcome), outcome.notes


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the names of the kinds to run")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    print("| kind | right | said | wrong |\n|---|---|---|---|")
    right = total = 0
    for kind in CLIPS + FOLDERS:
        if options.only not in kind.name:
            continue
        answers = [answer(kind, seed) for seed in range(options.first_seed, options.first_seed + options.seeds)]
        good = sum(not text for text, _ in answers)
        faults = "; ".join(f"seed {options.first_seed + i}: {text}" for i, (text, _) in enumerate(answers) if text)
        print(f"| {kind.name} | {good}/{len(answers)} | {' / '.join(answers[-1][1])} | {faults} |", flush=True)
        right, total = right + good, total + len(answers)
    print(f"\n{right} of {total} right")


if __name__ == "__main__":
    main()
