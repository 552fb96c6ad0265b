"""Slices per second that the bundle's training loads, by the number of processes that load.

Measured: the data loader of `train.yaml` (`training_step.py`), with prior, by itself, from when
every process is at work. A network takes what `throughput.py --preload` tells; a GPU waits where
that is more than what is loaded here.

Sizes: slices of 512 × 512 from a scan of 512 × 512 × 240 that is cached.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from monai.data import DataLoader
from timing import print_markdown, print_notes
from training_step import OVERLAYS, WITH, prepare, training


def rate(dataset: Any, *, batch: int, workers: int, seconds: float) -> tuple[float, float]:
    """Slices per second, and seconds until the first batch is there."""
    started = time.perf_counter()
    options = {"shuffle": True, "drop_last": True, "num_workers": workers}
    batches = iter(DataLoader(dataset, batch_size=batch, **options))
    next(batches)
    first = time.perf_counter() - started
    # those that were loaded ahead would count for nothing
    for _ in itertools.islice(batches, 2 * workers):
        pass
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(batches)
        count += batch
    return count / (time.perf_counter() - started), first


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--root", type=Path, help="folder of the scan, which stays")
    parser.add_argument("--tiny", action="store_true", help="a small scan, to try the script")
    arguments = parser.parse_args()
    workers, seconds = arguments.workers, arguments.seconds
    if arguments.tiny:
        workers, seconds = [0, 2], 0.3
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.root or Path(folder)
        knobs = prepare(root, factor=1 if arguments.tiny else 4)
        knobs |= {"slices_per_scan": 100_000, "num_workers": 1}
        dataset = training(OVERLAYS[WITH], **knobs).get_parsed_content("train#dataset")
        batch = knobs["batch_size"]
        for count in workers:
            found, first = rate(dataset, batch=batch, workers=count, seconds=seconds)
            each = found / max(1, count)
            rows.append([str(count), f"{found:.1f}", f"{each:.1f}", f"{first:.2f}"])
    size = " × ".join(map(str, knobs["slice_size"]))
    print(f"\n### Loading slices of {size}\n")
    head = ["processes that load", "slices per second", "each", "seconds to the first batch"]
    print_markdown(head, rows)
    print_notes([f"{os.cpu_count()} cores. 0: the process that trains loads itself."])


if __name__ == "__main__":
    main()
