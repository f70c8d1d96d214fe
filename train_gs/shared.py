"""Training on several GPUs: every process renders its own views of a step, gradients are averaged, and all take the same step.

A step of B views takes the place of B steps of one view. So that it comes as far, learning rates grow with the square root of B and
Adam's averages are as long in views as before (Zhao et al., "On Scaling Up 3D Gaussian Splatting Training", 2024). Every process keeps
all splats: what must be moved between them in a step is one gradient, whatever the number of views.
"""

import contextlib
import datetime
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs.stage3_gs import GSConfig
from train_gs.data import TrainingData
from train_gs.train import Trainer
from utils.deformation.inverse import InverseWarp
from utils.device.accelerator import cap_memory
from utils.errors import ConfigError, OptimizationError
from utils.splatting.rasterize.contract import Rasterizer, load_rasterizer
from utils.types import Splats

_BETAS = (0.9, 0.999)
_PATIENCE = datetime.timedelta(minutes=5)
_OUT_OF_MEMORY = 77  # exit code of a process


@dataclass(frozen=True)
class Share:
    """A process's part of every step.

    Attributes:
        rank: of this process.
        processes: their number.
        views: of one step, over all processes.
    """

    rank: int
    processes: int
    views: int


def share_of(config: GSConfig, device: torch.device) -> Share:
    """What the settings ask for, for the first process.

    Raises:
        ConfigError: there are not so many GPUs, or the views cannot be shared evenly.
    """
    there = torch.cuda.device_count() if device.type == "cuda" else config.gpus
    if config.gpus > there:
        raise ConfigError(f"gpus is {config.gpus}, this machine has {there}", f"pass --config.gpus {max(there, 1)}")
    views = config.views_per_step or config.gpus
    if views % config.gpus:
        raise ConfigError(f"views_per_step is {views}, which {config.gpus} GPUs cannot share", "give a multiple of the number of GPUs")
    return Share(0, config.gpus, views)


def for_shared_steps(config: GSConfig, views: int) -> GSConfig:
    """The settings with every number of steps divided by the views of a step."""
    less = lambda steps: max(1, math.ceil(steps / views)) if steps else 0  # noqa: E731
    return replace(
        config,
        num_iters=less(config.num_iters),
        sh_full_from_iter=less(config.sh_start),
        relocate_every=less(config.relocate_every),
        log_every=less(config.log_every),
        save_every=less(config.save_every),
    )


class SharedTrainer(Trainer):
    """A `Trainer` whose steps see several views, its own of which are `share.views / share.processes`."""

    def __init__(self, splats: Splats, data: TrainingData, warp: InverseWarp, rasterizer: Rasterizer, config: GSConfig, share: Share):
        self.share, self.given = share, config
        self.others: list[BaseProcess] = []
        self._flat: Tensor | None = None
        self._slots: dict[int, Tensor] = {}
        super().__init__(splats, data, warp, rasterizer, for_shared_steps(config, share.views))

    def _make_optimizer(self) -> torch.optim.Adam:
        optimizer = super()._make_optimizer()
        for group in optimizer.param_groups:
            self._adapt(group)
        return optimizer

    def _activate_bands(self) -> None:
        super()._activate_bands()
        for group in self.optimizer.param_groups:
            self._adapt(group)
        self._flat = None

    def _adapt(self, group: dict[str, Any]) -> None:
        """Once per group: rate and averages for steps of several views."""
        if not group.get("adapted"):
            group["adapted"] = True
            group["base_lr"] *= math.sqrt(self.share.views)
            group["betas"] = tuple(beta**self.share.views for beta in _BETAS)

    def step(self) -> dict[str, float]:
        """The step of all processes; returns the mean values of its views.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
            OptimizationError: another process has ended.
        """
        self._enter_step()
        views = [self._next_view() for _ in range(self.share.views)]
        self._set_learning_rates()
        self._clear_gradients(views)
        measured = torch.zeros(3, device=self.device)
        own = views[self.share.rank :: self.share.processes]
        for view in own:
            measured += (self._update(view) if self._graphs is None else self._graphs.run(view)) / self.share.views
        self._average(self._flat)
        self.optimizer.step()
        if self._read_now():
            if self.share.processes > 1:
                dist.all_reduce(measured)
            self._read(measured, own[0])
        self.iteration += 1
        searched = self.hidden is not None
        self._move_splats()
        if self.hidden is not None and not searched and self.share.processes > 1:
            # Sums on a GPU differ in their last bits, and so might what each process hides.
            dist.broadcast(self.parameters.logit_opacities.data, 0)
        return self._values

    def _make_fused(self) -> None:
        """Gradients of several views are averaged before a step, so they have to be kept apart from it."""

    def _update(self, view: int) -> Tensor:
        """Adds the gradients of a view to those of the step."""
        return self._backward(view)

    def _average(self, gradients: Tensor | None) -> None:
        """The mean over all views, from the sum over this process's."""
        if gradients is None:
            return
        if self.share.processes > 1:
            self._require_others()
            dist.all_reduce(gradients)
        gradients /= self.share.views

    def _require_others(self) -> None:
        for process in self.others:
            if process.exitcode == _OUT_OF_MEMORY:
                raise torch.OutOfMemoryError(f"process {process.name} ran out of GPU memory")
            if process.exitcode:
                raise OptimizationError(f"{process.name} ended with code {process.exitcode}", "see its message above, or train on one GPU")

    def _clear_gradients(self, views: list[int]) -> None:
        """Zero gradients, all in one tensor that stays where it is; none for the parameters of frames that this step does not see."""
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        if self._flat is None or self._slots.keys() != {id(p) for p in trained}:
            self._flat = torch.zeros(sum(p.numel() for p in trained), device=self.device)
            parts = self._flat.split([p.numel() for p in trained])
            self._slots = {id(p): part.view_as(p) for p, part in zip(trained, parts, strict=True)}
            if self._graphs is not None:
                self._graphs.forget()
        self._flat.zero_()
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                p.grad = self._slots.get(id(p))
        for view in set(self.training_views) - set(views):
            for p in self._of_view(view):
                p.grad = None

    def _of_view(self, view: int) -> list[Tensor]:
        """Parameters that only this view sees."""
        own = [self.poses.twists[view], self.appearance.deviations[view]]
        return own if self.refinement is None else [*own, self.refinement.corrections[view]]


def trainer_for(splats: Splats, data: TrainingData, warp: InverseWarp, backend: str, device: torch.device, config: GSConfig) -> Trainer:
    """The optimisation of these splats before its first step, for one process or several."""
    share, rasterizer = share_of(config, device), load_rasterizer(backend, device)
    if share.views == 1:
        return Trainer(splats.to(device), data, warp, rasterizer, config)
    return SharedTrainer(splats.to(device), data, warp, rasterizer, config, share)


# ---------------------------------------------------------------------------------------------------- processes


@contextlib.contextmanager
def together(trainer: Trainer, backend: str) -> Iterator[None]:
    """Inside, the other processes of a trainer step with it; they are ended with the block.

    Args:
        trainer: of the first process.
        backend: rasteriser.
    """
    if not isinstance(trainer, SharedTrainer) or trainer.share.processes == 1:
        yield
        return
    share = trainer.share
    with tempfile.TemporaryDirectory() as folder:
        job, meeting = Path(folder) / "job.pt", Path(folder) / "meeting"
        state = trainer.state() if trainer.iteration else None
        parts = {"splats": trainer.parameters.complete(), "data": trainer.data, "warp": trainer.warp, "config": trainer.given}
        torch.save({**parts, "backend": backend, "state": state}, job)
        context = multiprocessing.get_context("spawn")
        for rank in range(1, share.processes):
            arguments = (str(job), str(meeting), replace(share, rank=rank), trainer.device.type)
            trainer.others.append(context.Process(target=_other, args=arguments, name=f"training process {rank}", daemon=True))
            trainer.others[-1].start()
        try:
            _meet(str(meeting), share, trainer.device)
            yield
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            for process in trainer.others:
                process.join(5 if sys.exc_info()[0] is None else 0)
                if process.is_alive():
                    process.terminate()
            trainer.others = []


def _meet(meeting: str, share: Share, device: torch.device) -> None:
    """Joins the group of all processes."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=share.rank, world_size=share.processes, timeout=_PATIENCE)


def _other(job: str, meeting: str, share: Share, device_type: str) -> None:
    """All that a further process does: the same steps."""
    device = torch.device(device_type, share.rank) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        given = torch.load(job, map_location="cpu", weights_only=False)  # our own file
        config = given["config"]
        cap_memory(device, config.max_gpu_gb)
        rasterizer = load_rasterizer(given["backend"], device)
        trainer = SharedTrainer(given["splats"].to(device), given["data"], given["warp"], rasterizer, config, share)
        if given["state"] is not None:
            trainer.load(given["state"])
        _meet(meeting, share, device)
        while not trainer.done:
            trainer.step()
        dist.destroy_process_group()
    except torch.OutOfMemoryError:
        sys.exit(_OUT_OF_MEMORY)
