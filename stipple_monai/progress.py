"""How far a command is: a bar on a terminal, lines in a log, and the time that has passed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def clock(seconds: float) -> str:
    """A time as minutes and seconds, with hours where there are any.

    Example:
        >>> clock(65), clock(3605)
        ('1:05', '1:00:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Stopwatch:
    """Prints lines that begin with the time since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line at once, also into a pipe."""
        print(f"[{clock(time.monotonic() - self._started)}] {text}", flush=True)


def on_terminal() -> bool:
    """Whether a person looks at what is written to standard error, and not a file or a pipe."""
    return sys.stderr is not None and sys.stderr.isatty()


def follow(
    items: Iterable[Item], what: str, *, unit: str, total: int | None = None, shown: bool = True
) -> Iterator[Item]:
    """Tell on standard error how many of the items are done.

    Args:
        items: that are worked on, one after the other.
        what: is done with them.
        unit: what one of them is.
        total: how many there are; their length if None.
        shown: False tells nothing.

    Yields:
        The items. One counts as done when the next is asked for.

    Example:
        >>> list(follow(["a", "b"], "check", unit="case", shown=False))
        ['a', 'b']
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if shown and on_terminal():
        yield from tqdm(items, desc=what, unit=unit, total=total)
        return
    for number, item in enumerate(items, 1):
        yield item
        if shown:
            count = number if total is None else f"{number}/{total}"
            print(f"{what}: {unit} {count}", file=sys.stderr, flush=True)
