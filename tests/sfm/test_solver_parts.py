"""What the solvers of mapping share."""

import threading

import pytest
import torch

from utils.sfm.solvers.parts import solver_threads, threads_given_back


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_thread_gets_torchs_threads_back_when_no_solver_is_at_work(three_threads: None) -> None:
    entered, leave, other = threading.Event(), threading.Event(), []

    def beside() -> None:
        with solver_threads():
            other.append(torch.get_num_threads())
            entered.set()
            leave.wait()

    thread = threading.Thread(target=beside)
    thread.start()
    entered.wait()
    with solver_threads(), solver_threads():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1 and other == [1]  # the other's matrix products must not change
    threads_given_back()
    assert torch.get_num_threads() == 1
    leave.set()
    thread.join()
    threads_given_back()
    assert torch.get_num_threads() == 3
    with solver_threads():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_threads_come_back_after_an_error(three_threads: None) -> None:
    with pytest.raises(ZeroDivisionError), solver_threads():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3
