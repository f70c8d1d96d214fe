"""Which device is used, and what happens when its memory is short."""

import logging

import pytest
import torch

from utils.device.accelerator import accelerator, in_chunks, or_on_cpu, without_accelerator


def test_chunks_shrink_when_memory_is_short_and_nothing_is_lost(caplog):
    tried = []

    def work(chunk):
        tried.append(len(chunk))
        if len(chunk) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * item for item in chunk]

    with caplog.at_level(logging.WARNING):
        assert in_chunks(work, list(range(7)), 5, "matching") == [0, 10, 20, 30, 40, 50, 60]
    assert tried == [5, 2, 2, 2, 1]
    assert len(caplog.messages) == 1 and "going on with 2 at once" in caplog.messages[0]


def test_one_item_that_does_not_fit_is_an_error():
    def work(chunk):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_chunks(work, [1, 2], 2, "matching")


def test_the_cpu_takes_over_when_memory_is_short(caplog):
    def work():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with caplog.at_level(logging.WARNING):
        assert or_on_cpu(work, lambda: 5, "solving") == 5
    assert "on the CPU" in caplog.text
    assert or_on_cpu(lambda: 4, lambda: 5, "solving") == 4


def test_everything_can_be_kept_off_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert accelerator() == torch.device("cuda", 0)
    with without_accelerator():
        assert accelerator() is None
    assert accelerator() is not None
