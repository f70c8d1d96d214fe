"""What is handed to a machine: one stage of one scene, what it needs, and what comes back. Plain values only, so that all of it travels."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

End = Literal["done", "refused", "fault", "lost", "stopped"]


@dataclass(frozen=True)
class Resources:
    """What a machine has, or what a stage takes of one.

    Attributes:
        cpus: cores.
        gpus: GPUs; a share of one where stages share it.
        memory_gb: memory in GiB.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 0.0

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus, self.memory_gb + other.memory_gb)

    def __sub__(self, other: "Resources") -> "Resources":
        return Resources(self.cpus - other.cpus, self.gpus - other.gpus, self.memory_gb - other.memory_gb)

    def fits(self, room: "Resources") -> bool:
        """Whether there is room for this."""
        little = 1e-6  # sums of shares
        return self.cpus <= room.cpus + little and self.gpus <= room.gpus + little and self.memory_gb <= room.memory_gb + little


@dataclass(frozen=True)
class StageTask:
    """One stage of one scene.

    Attributes:
        scene: the scene's name.
        words: command line of the scene's run, without the scene's place.
        number: of the stage, from 1.
        of: how many stages there are.
        title: of the stage.
        needs: what it takes of a machine.
        out: where scenes are kept, see `batch.storage`.
        scratch: where they are worked on if they are kept elsewhere.
        cwd: folder that relative paths among the settings start from.
        attempt: how often it was tried before.
        gpu_ids: value of CUDA_VISIBLE_DEVICES; None leaves it as the machine has it.
    """

    scene: str
    words: tuple[str, ...]
    number: int
    of: int
    title: str
    needs: Resources
    out: str
    scratch: str = ""
    cwd: str = ""
    attempt: int = 0
    gpu_ids: str | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def read(cls, plain: dict[str, Any]) -> "StageTask":
        """From JSON."""
        return cls(**{**plain, "words": tuple(plain["words"]), "needs": Resources(**plain["needs"])})


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        end: done; refused (input or settings, nothing that trying again would mend); fault (of the program); lost (its process or
            machine is gone); stopped (on purpose).
        seconds: it took.
        kept: the result was there already.
        error: what went wrong.
        hint: what helps.
        peak_memory_mb: most memory the process held.
        figures: of the scene so far, see `batch.figures`.
    """

    end: End
    seconds: float = 0.0
    kept: bool = False
    error: str = ""
    hint: str = ""
    peak_memory_mb: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


def uses_gpu(title: str, words: tuple[str, ...] = ()) -> bool:
    """Whether a stage gains from a GPU: all but weight-free geometry, which runs on the CPU."""
    return title != "geometry" or "da3" in words


def needs_of(title: str, words: tuple[str, ...], *, cpus: float, gpu_share: float, memory_gb: float, gpu_cpus: float) -> Resources:
    """What a stage takes of a machine.

    Args:
        title: of the stage.
        words: command line of the scene.
        cpus: cores of a stage on the CPU.
        gpu_share: share of a GPU; 0 where there is none.
        memory_gb: memory.
        gpu_cpus: cores of a stage on the GPU.
    """
    if gpu_share and uses_gpu(title, words):
        return Resources(gpu_cpus, gpu_share, memory_gb)
    return Resources(cpus, 0.0, memory_gb)
