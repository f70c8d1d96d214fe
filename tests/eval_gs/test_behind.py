"""Work on threads behind the renders."""

import sys
import threading
import time

import pytest

from eval_gs.behind import Behind
from utils.device.threads import quick_to_switch


def test_results_come_in_the_order_of_the_jobs_whatever_ends_first() -> None:
    def job(i: int) -> int:
        time.sleep(0.002 * (i % 3 == 0))
        return i

    with Behind[int]() as behind:
        for i in range(40):
            behind.do(lambda i=i: job(i))
    assert behind.results == list(range(40))


def test_few_jobs_wait_at_a_time() -> None:
    gate, started, given = threading.Event(), [], []

    def give() -> None:
        with Behind[None]() as behind:
            for i in range(200):
                behind.do(lambda: (started.append(1), gate.wait(20))[0])
                given.append(i)

    giver = threading.Thread(target=give)
    giver.start()
    while not started:
        time.sleep(0.01)
    time.sleep(0.2)
    held = len(given)
    gate.set()
    giver.join()
    assert held < 30 and len(started) == 200


@pytest.mark.parametrize("at", [0, 7, 39])
def test_an_error_of_a_job_is_raised(at: int) -> None:
    def job(i: int) -> int:
        if i == at:
            raise OSError("disk full")
        return i

    with pytest.raises(OSError, match="disk full"), Behind[int]() as behind:
        for i in range(40):
            behind.do(lambda i=i: job(i))


def test_the_interpreter_switches_as_before_even_after_an_error() -> None:
    before = sys.getswitchinterval()
    with pytest.raises(ValueError, match="broken"), quick_to_switch():
        assert sys.getswitchinterval() < before
        raise ValueError("broken")
    assert sys.getswitchinterval() == before


def test_a_job_may_say_how_many_wait() -> None:
    go, begun = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert go.wait(10)

    with Behind[None](threads=1, waiting=1) as behind:
        behind.do(first, waiting=5)
        assert begun.wait(10)
        for _ in range(4):  # with one they would wait for the first, which waits for us
            behind.do(lambda: None, waiting=5)
        go.set()
    assert len(behind.results) == 5
