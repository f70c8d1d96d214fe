"""`python -m utils.viewer.prepare SCENE FOLDER`: writes what the viewer in the browser needs of trained splats, if it is not there."""

import sys
from pathlib import Path

from utils.exports import view
from utils.runtime import run_stage
from utils.scene.layout import SceneLayout
from utils.scene.trajectories import load_trajectory
from utils.splatting.checkpoint import MODEL, load_checkpoint
from utils.viewer.world import World


def prepare(world: World) -> None:
    """Writes the files of a finished training; one that goes on writes its own.

    Raises:
        V2WError: the checkpoint cannot be read.
        OSError: the files cannot be written.
    """
    if world.prepared():
        return
    path_json = SceneLayout(world.root).path_json
    path = load_trajectory(path_json) if path_json.is_file() else None
    view.write_view(world.folder / view.FOLDER, load_checkpoint(world.folder / MODEL), path)


if __name__ == "__main__":
    run_stage(lambda: prepare(World(Path(sys.argv[1]), Path(sys.argv[2]))))
