"""The state of a training with Adam, kept every some iterations so that a killed run goes on with the same bits (on the CPU)."""

import json

import numpy as np
import torch
from torch import Tensor, nn

from utils.registration.resume import Checkpoints
from utils.types import Array

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ResumableTraining:
    """Parameters, moments of Adam, step size and random numbers of one training, under one name: the last state replaces earlier ones.

    Of every parameter only the entries that a gradient ever reached are kept; the others are where the seed put them (most of a hash grid
    is never looked up). The same bits follow where sums have a fixed order: on the CPU, not on CUDA.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        name: str,
        parameters: list[nn.Parameter],
        adam: torch.optim.Adam,
        generator: torch.Generator,
        rng: np.random.Generator | None = None,
    ):
        self._checkpoints, self._name = checkpoints, name
        self._parameters, self._adam, self._generator, self._rng = parameters, adam, generator, rng

    def save(self, iterations: int) -> None:
        """Keeps the state after that many iterations."""
        arrays = {
            "iterations": np.array(iterations),
            "lr": np.array(self._adam.param_groups[0]["lr"], np.float64),
            "generator": self._generator.get_state().numpy(),
        }
        if self._rng is not None:
            arrays["rng"] = np.array(json.dumps(self._rng.bit_generator.state))
        for index, parameter in enumerate(self._parameters):
            state = self._adam.state.get(parameter)
            if state:  # without: no gradient so far
                arrays |= {f"{index}_{key}": value for key, value in _reached(parameter, state).items()}
        self._checkpoints.save(self._name, arrays)

    def restore(self) -> int:
        """Iterations that an interrupted run did, whose state is taken over; 0 if there are none."""
        arrays = self._checkpoints.load(self._name)
        if arrays is None:
            return 0
        self._adam.param_groups[0]["lr"] = float(arrays["lr"])
        self._generator.set_state(torch.from_numpy(arrays["generator"]))
        if self._rng is not None:
            self._rng.bit_generator.state = json.loads(str(arrays["rng"]))
        for index, parameter in enumerate(self._parameters):
            if f"{index}_step" in arrays:
                self._adam.state[parameter] = _taken_over(
                    parameter, {k: arrays[f"{index}_{k}"] for k in ("step", "rows", "value", *_MOMENTS)}
                )
        return int(arrays["iterations"])


def _reached(parameter: nn.Parameter, state: dict[str, Tensor]) -> dict[str, Array]:
    """Of the entries with a moment: their rows in the flat parameter, values and moments; and Adam's number of steps."""
    flat = {"value": parameter.detach(), **{name: state[name] for name in _MOMENTS}}
    host = {name: tensor.reshape(-1).cpu().numpy() for name, tensor in flat.items()}
    rows = np.flatnonzero((host["exp_avg"] != 0) | (host["exp_avg_sq"] != 0))
    return {"step": state["step"].cpu().numpy(), "rows": rows, **{name: values[rows] for name, values in host.items()}}


@torch.no_grad()
def _taken_over(parameter: nn.Parameter, arrays: dict[str, Array]) -> dict[str, Tensor]:
    """Writes kept entries into the parameter; the state of Adam that belongs to it."""
    rows = torch.from_numpy(arrays["rows"]).to(parameter.device)
    tensor = lambda name: torch.from_numpy(arrays[name]).to(parameter.device)  # noqa: E731
    parameter.view(-1)[rows] = tensor("value")
    state = {"step": tensor("step")}
    for name in _MOMENTS:
        state[name] = torch.zeros_like(parameter)
        state[name].view(-1)[rows] = tensor(name)
    return state
