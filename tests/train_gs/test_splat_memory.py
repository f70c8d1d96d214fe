"""Training with fewer splats where a GPU's memory is short; no GPU needed."""

from types import SimpleNamespace

import pytest
import torch

from train_gs.memory import LARGE, SMALLEST, Load, within_memory
from utils.device.accelerator import cap_memory
from utils.errors import OptimizationError


class Notes(list):
    def note(self, message):
        self.append(message)


def short_of_memory_above(limit, tried):
    def work(load):
        tried.append(load.splats)
        if load.splats > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return load

    return work


def test_splats_are_reduced_until_they_fit_and_every_try_is_said():
    notes, tried = Notes(), []
    result = within_memory(short_of_memory_above(500_000, tried), 1_000_000, LARGE, notes)
    assert tried == [1_000_000, 700_000, 490_000] and result == Load(490_000)
    assert len(notes) == 2 and "490000" in notes[1]


def test_large_images_become_smaller_too_until_they_are_not_large():
    notes, tried = Notes(), []
    result = within_memory(short_of_memory_above(300_000, tried), 1_000_000, 3 * LARGE, notes)
    assert result.splats == 240_100 and result.scale == pytest.approx(0.7**2)  # 0.49 ** 2 of 3 x LARGE is not large any more
    assert "images at 0.70 of their size" in notes[0] and "0.49" in notes[3]


def test_what_fits_is_tried_once():
    notes, tried = Notes(), []
    assert within_memory(short_of_memory_above(10**9, tried), 123, 10**8, notes) == Load(123)
    assert tried == [123] and not notes


def test_an_error_says_when_not_even_few_splats_fit():
    with pytest.raises(OptimizationError, match="too little memory") as error:
        within_memory(short_of_memory_above(0, []), 3 * SMALLEST, 100, Notes())
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
