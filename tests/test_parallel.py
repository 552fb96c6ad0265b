"""A function of many items at once."""

import _thread
import signal
import threading
import time

import pytest

from stipple_monai.parallel import map_in_order


@pytest.mark.parametrize("num_workers", [0, 1, 2, 5, 50])
def test_results_come_in_the_order_of_the_items(num_workers):
    def late_if_early(number):
        time.sleep(0.01 * (number % 3 == 0))
        return -number

    results = list(map_in_order(late_if_early, range(12), num_workers=num_workers))
    assert results == [-number for number in range(12)]
    assert list(map_in_order(late_if_early, [], num_workers=num_workers)) == []


def test_two_workers_work_at_the_same_time():
    both = threading.Barrier(2)
    assert list(map_in_order(lambda _: both.wait(10) >= 0, range(4), num_workers=2)) == [True] * 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_one_worker_is_the_calling_thread(num_workers):
    threads = map_in_order(lambda _: threading.get_ident(), range(3), num_workers=num_workers)
    assert set(threads) == {threading.get_ident()}


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_no_more_items_are_taken_than_there_are_workers(num_workers):
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    results = map_in_order(str, items(), num_workers=num_workers)
    held = [len(taken) - done for done, _ in enumerate(results)]
    assert max(held) == num_workers


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_earliest_error_is_raised_after_the_results_before_it(num_workers):
    def fail(number):
        time.sleep(0.05 * (number == 1))
        if number in (1, 2):
            raise ValueError(f"item {number}")
        return number

    results = map_in_order(fail, range(9), num_workers=num_workers)
    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        next(results)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_error_of_the_items_is_raised(num_workers):
    def broken():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(map_in_order(str, broken(), num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_interrupt_ends_it_and_its_threads(num_workers):
    # started in the background, a shell has told the process to ignore interrupts
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = threading.active_count()
    started = []

    def work(number):
        started.append(number)
        if number == 5:
            _thread.interrupt_main()
        time.sleep(0.01)

    def run():
        for _ in map_in_order(work, range(1000), num_workers=num_workers):
            pass

    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(started) < 20
    assert threading.active_count() == before
