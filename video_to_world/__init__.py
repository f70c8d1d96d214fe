"""Whole runs from Python: a clip becomes a world of Gaussian splats.

    import video_to_world

    world = video_to_world.reconstruct("clip.mp4")
    image = world.render(world.cameras.c2w[0], world.cameras.K[0], world.cameras.size)

May import: anything.
Start: `api`; `cli` is the installed command `video-to-world`, `warm_up` compiles kernels ahead of time.
"""

from typing import TYPE_CHECKING, Any

from utils.version import VERSION as __version__

if TYPE_CHECKING:
    from video_to_world.api import World, load_alignment, load_scene, load_world, reconstruct

__all__ = ["World", "__version__", "load_alignment", "load_scene", "load_world", "reconstruct"]


def __getattr__(name: str) -> Any:
    """Loads torch with the first function that is used."""
    if name in __all__:
        from video_to_world import api

        return getattr(api, name)
    raise AttributeError(f"module 'video_to_world' has no attribute '{name}'")
