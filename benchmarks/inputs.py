"""Every kind of input that people have, made by seed, and what this program makes of it: `python -m benchmarks.inputs [--seeds 5]`.

Prints a table of kinds: how many inputs, how many with the right answer, what was said of the last one, and what was wrong.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.inputs_clips import CLIPS, Kind, Outcome
from benchmarks.inputs_data_sets import DATA_SETS, DataSet, Made, Refused
from benchmarks.inputs_folders import FOLDERS
from configs.preprocess import PreprocessConfig
from preprocess.source import frames_on_disk, look_at
from preprocess.stage import run
from utils.errors import V2WError
from utils.scene.artifacts import load_scene
from utils.scene.json_files import read_json
from utils.scene.layout import SceneLayout

# Data sets go through the whole of stage 0, at this size.
_RESOLUTION = 140


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


def answer_data_set(kind: DataSet, seed: int) -> tuple[str, tuple[str, ...]]:
    """The same of a data set, by the whole of stage 0."""
    with tempfile.TemporaryDirectory() as place:
        folder, notes = Path(place), _Notes()
        settings, ask = kind.build(folder, np.random.default_rng([seed, *kind.name.encode()]))
        try:
            config = PreprocessConfig(
                **{"scene_root": folder / "scene", "process_res": _RESOLUTION, "every_frame": False, "between_frames": 0, **settings}
            )
            layout = SceneLayout(run(config, notes))
        except V2WError as error:
            right = isinstance(ask, Refused) and ask.words in error.message
            return ("" if right else f"refused: {error.message}"), (f"refused: {error.message}".replace(place, "..."),)
        if isinstance(ask, Refused):
            return "not refused", tuple(notes.lines)
        made = Made(load_scene(layout.root), read_json(layout.preprocess_json)["positions"], tuple(notes.lines))
        return ask(made), tuple(line for line in notes.lines if not line.startswith("stage 0"))


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
    kinds = [(kind.name, partial(answer, kind)) for kind in CLIPS + FOLDERS]
    kinds += [(kind.name, partial(answer_data_set, kind)) for kind in DATA_SETS]
    for name, ask in kinds:
        if options.only not in name:
            continue
        answers = [ask(seed) for seed in range(options.first_seed, options.first_seed + options.seeds)]
        good = sum(not text for text, _ in answers)
        faults = "; ".join(f"seed {options.first_seed + i}: {text}" for i, (text, _) in enumerate(answers) if text)
        print(f"| {name} | {good}/{len(answers)} | {' / '.join(answers[-1][1])} | {faults} |", flush=True)
        right, total = right + good, total + len(answers)
    print(f"\n{right} of {total} right")


if __name__ == "__main__":
    main()
