"""Slices per second that the bundle's training loads, by the number of processes that load.

Measured: the data loader of `train.yaml` (`training_step.py`), with prior, by itself, from when
every process is at work. A network takes what `throughput.py --preload` tells; a GPU waits where
that is more than what is loaded here.

A second table (`--core`) has the processor time of one slice by itself: with `RandSliceAffined` and
`SliceMajord`, and as it was before, with MONAI's `RandAffined` on volumes as they are read.

Sizes: slices of 512 × 512 from a scan of 512 × 512 × 240 that is cached.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from monai.data import DataLoader
from timing import compare, print_markdown, print_notes, print_table
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


BEFORE: dict[str, Any] = {
    "train#slices#2#_target_": "RandAffined",
    "train#layout": [],
    "train#dataset#as_contiguous": True,
}


def run_core(knobs: dict[str, Any], *, count: int, rounds: int) -> None:
    """Processor time of a slice, before and after."""
    settings = {"in space, by MONAI": BEFORE, "in the plane": {}}
    loaders = {}
    for name, changed in settings.items():
        parser = training(OVERLAYS[WITH], **knobs, **changed)
        loaders[name] = parser.get_parsed_content("train#dataset")

    def load(dataset: Any) -> None:
        for i in range(count):
            dataset[i]

    rows = compare(
        {name: partial(load, dataset) for name, dataset in loaders.items()},
        rounds=rounds,
        baseline="in space, by MONAI",
        clock="cpu",
    )
    size = " × ".join(map(str, knobs["slice_size"]))
    rates = {row.name: f"{count / row.seconds:.1f}" for row in rows}
    columns = {"slices per second and core": rates}
    print_table(f"Loading {count} slices of {size}, in the process itself", rows, columns=columns)


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--core", action="store_true", help="the second table alone")
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
        if arguments.core:
            run_core(knobs, count=2 if arguments.tiny else 12, rounds=3)
            return
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
