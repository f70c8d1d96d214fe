"""Training with fewer splats where a GPU's memory is short; no GPU needed."""

from types import SimpleNamespace

import pytest
import torch

from train_gs.memory import SMALLEST, with_fewer_splats
from utils.backends.accelerator import cap_memory
from utils.errors import OptimizationError


class Notes(list):
    def note(self, message):
        self.append(message)


def short_of_memory_above(limit, tried):
    def work(splats):
        tried.append(splats)
        if splats > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return splats

    return work


def test_splats_are_reduced_until_they_fit_and_every_try_is_said():
    notes, tried = Notes(), []
    result = with_fewer_splats(short_of_memory_above(500_000, tried), 1_000_000, notes)
    assert tried == [1_000_000, 700_000, 490_000] and result == 490_000
    assert len(notes) == 2 and "490000" in notes[1]


def test_what_fits_is_tried_once():
    notes, tried = Notes(), []
    assert with_fewer_splats(short_of_memory_above(10**9, tried), 123, notes) == 123
    assert tried == [123] and not notes


def test_an_error_says_when_not_even_few_splats_fit():
    with pytest.raises(OptimizationError, match="too little memory") as error:
        with_fewer_splats(short_of_memory_above(0, []), 3 * SMALLEST, Notes())
    assert "max-gpu-gb" in error.value.hint


def test_a_limit_is_ignored_on_the_cpu():
    cap_memory(torch.device("cpu"), 1.0)


def test_a_limit_is_a_share_of_the_device(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=16 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, index: asked.append((share, index)))
    cap_memory(torch.device("cuda"), 4.0)
    cap_memory(torch.device("cuda", 1), 0.0)
    assert asked == [(0.25, 0), (1.0, 1)]  # PyTorch refuses a device without a number
