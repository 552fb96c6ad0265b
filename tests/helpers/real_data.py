"""Real scans and labels, which lie beside the repository, and the mark of tests that read them."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.real
"""``@real("btcv_labels")``: reads this in `DATA`, and is skipped where it is not."""


def absent(item):
    """What a test reads of `DATA` and is not there."""
    names = [name for mark in item.iter_markers("real") for name in mark.args]
    return [name for name in names if not (DATA / name).exists()]
