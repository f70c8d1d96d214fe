"""The viewer's pages of the runs: which world each shows, and its files, made by another process when they are first asked for."""

import subprocess
import threading
from dataclasses import dataclass, field
from functools import partial

from starlette.requests import Request

from utils.errors import ArtifactError
from utils.viewer.pages import Exhibit, NotThereError
from utils.viewer.world import World, newest_training
from web.jobs import JobStore, NotFoundError
from web.processes import Commands
from web.runner import explain

_SECONDS_TO_PREPARE = 120.0


@dataclass
class Exhibits:
    """Finds what a viewer's page shows.

    Attributes:
        store: the jobs.
        commands: how programs are called.
    """

    store: JobStore
    commands: Commands
    _preparing: threading.Lock = field(default_factory=threading.Lock)

    def find(self, request: Request) -> Exhibit:
        """The world of the run in a request's address.

        Raises:
            NotFoundError: there is no such run.
            NotThereError: it has no splats yet.
        """
        job = self.store.get(request.path_params["job"])
        if job is None:
            raise NotFoundError("there is no such run", "go back to the list; it may have been deleted")
        root = self.store.scene_root(job.id)
        folder = newest_training(root)
        if folder is None:
            raise NotThereError("this run has no splats yet", "come back when training has begun")
        world = World(root, folder)
        return Exhibit(world, job.name, partial(self.prepare, world), {"back": f"../../../#{job.id}"})

    def prepare(self, world: World) -> None:
        """Makes the files for the browser if they are not there.

        Raises:
            ArtifactError: they cannot be made.
        """
        if world.prepared():
            return
        with self._preparing:  # one at a time: each loads a world
            if world.prepared():
                return
            try:
                done = self.commands.ask([*self.commands.prepare, str(world.root), str(world.folder)], _SECONDS_TO_PREPARE)
            except subprocess.TimeoutExpired as error:
                raise ArtifactError("the world could not be made ready for the viewer in time", "try again") from error
        if done.returncode:
            raise ArtifactError(*explain(done.returncode, done.stderr))
