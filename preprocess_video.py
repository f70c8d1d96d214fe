"""Stage 0: a clip or a folder of frames becomes a scene: chosen frames, cameras, depth and a fly-through path.

    python preprocess_video.py --input_video clip.mp4 [--scene_root scene] [--max_frames 100] [--max_stride 8]

Writes `frames/`, `frames_subsampled/`, `preprocess_frames.json`, `exports/npz/results.npz`, `exports/cameras/` and `gs_video/`.
The work is done by the package `preprocess`.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from configs.base import cli, parse_flat
from configs.preprocess import PreprocessConfig

if TYPE_CHECKING:
    from utils.types import Reporter


def run(config: PreprocessConfig, report: "Reporter | None" = None) -> Path:
    """Makes the scene unless it is current already; returns its root. Raises what `preprocess.stage.run` does."""
    from preprocess.stage import run as stage
    from utils.types import NULL_REPORTER

    return stage(config, report or NULL_REPORTER)


def parse(arguments: list[str] | None = None) -> PreprocessConfig:
    """The settings of the command line; hyphens and underscores are alike.

    Raises:
        ConfigError: settings that make no sense or contradict each other.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return parse_flat(PreprocessConfig, _published(words), prog="preprocess_video.py", description=(__doc__ or "").splitlines()[0])


def _published(words: list[str]) -> list[str]:
    """Flags of the published command that a setting is not named after, or that may stand without their value."""
    plain: list[str] = []
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        flag = word.replace("-", "_") if word.startswith("--") else word
        if flag == "__chosen_frames_only":
            plain.append("--no-every-frame")
        elif flag == "__mask_sky" and after.startswith("--"):
            plain += [word, "on"]
        else:
            plain.append(word)
    return plain


def main() -> None:
    """Entry point of the command line."""
    cli(PreprocessConfig, "preprocess.stage:run", "preprocess_video.py", parse)


if __name__ == "__main__":
    main()
