"""The installed command: `video-to-world clip.mp4 [flags]`, the same as `python run_reconstruction.py clip.mp4 [flags]`."""

from run_reconstruction import main as reconstruct
from utils.runtime import run_stage


def main() -> None:
    """Entry point; errors that a user can mend end it with a hint."""
    run_stage(reconstruct)
