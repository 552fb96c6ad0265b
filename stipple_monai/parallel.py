"""A function of many items, several at once, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_workers: int
) -> Iterator[Result]:
    """Like ``map``, on ``num_workers`` threads.

    Threads share memory, so that neither items nor results are copied, and run side by side where
    the work is decompression and array arithmetic, during which Python lets go of its lock.

    Args:
        function: what is done with an item. The error of the earliest item that failed is raised.
        items: taken one by one in the calling thread, so that at most ``num_workers`` items and
            results are held at any time.
        num_workers: 0 and 1 work in the calling thread.

    Yields:
        The results, in the order of ``items`` whatever is ready first.

    Example:
        >>> list(map_in_order(len, ["a", "bcd", "ef"], num_workers=2))
        [1, 3, 2]
    """
    if num_workers <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        running: deque[Future[Result]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            del item
            if len(running) == num_workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
