"""The bundle's training at the paper's settings, measured for some steps.

The trainer of `train.yaml` itself, with its handlers, metric and data loader, for one epoch of a
measured number of steps: batches of 6 of 512 × 512, the U-Net of 31.0 M parameters, on a simulated
scan (`training_step.py`). Then the same for one step at a time where the batches are there already
(what the GPU takes), so that the difference tells what loading and bookkeeping cost.

The time of 25 epochs of 65 scans with 240 slices each, four fifths of the data set's 82, is
extrapolated from the steps, without validation and checkpoints.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from throughput import TINY, loaded
from timing import print_markdown, print_notes, time_once
from training_step import OVERLAYS, WITH, Step, prepare, training

EPOCHS, SCANS, SLICES = 25, 65, 240


class Clock:
    """The time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Look at the clock after each step."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Look."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def seconds(self) -> float:
        """Of a step, from the second half of them, when what was loaded ahead is used up."""
        half = len(self.times) // 2
        return (self.times[-1] - self.times[half - 1]) / (len(self.times) - half)


def run_trainer(knobs: dict[str, Any], *, steps: int) -> tuple[float, float]:
    """Seconds of a step of the bundle's trainer, and loss at the end."""
    knobs = {
        **knobs,
        "slices_per_scan": steps * knobs["batch_size"],
        "max_epochs": 1,
        "progress": False,
    }
    parser = training(OVERLAYS[WITH], **knobs)
    trainer, clock = parser.get_parsed_content("train#trainer"), Clock()
    clock.attach(trainer)
    trainer.run()
    return clock.seconds(), float(trainer.state.output[0]["loss"])


def run_steps(knobs: dict[str, Any], *, count: int) -> float:
    """Seconds of a step whose batch is there already."""
    parser = training(OVERLAYS[WITH], **{**knobs, "num_workers": 0})
    step = Step(parser, count=count, batches=loaded({**knobs, "num_workers": 0}, WITH))
    step()
    return statistics.median(time_once(step) for _ in range(3)) / count


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=240, help="of the trainer")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--root", type=Path, help="folder of the scan, which stays")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to try the script")
    arguments = parser.parse_args()
    steps, tiny = arguments.steps, arguments.tiny
    with tempfile.TemporaryDirectory() as folder:
        knobs = prepare(arguments.root or Path(folder), factor=1 if tiny else 4)
        knobs |= {"num_workers": arguments.workers}
        if tiny:
            steps = 4
            knobs |= {**TINY, "batch_size": 2}
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        seconds, loss = run_trainer(knobs, steps=steps)
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        bare = run_steps(knobs, count=2 if tiny else 20)
    batch, size = knobs["batch_size"], knobs["slice_size"]
    hours = EPOCHS * SCANS * SLICES / batch / 3600
    print(f"\n### Training at the paper's settings, batch of {batch} × {size[0]} × {size[1]}\n")
    print_markdown(
        ["", "seconds a step", "slices per second", f"hours of {EPOCHS} epochs, extrapolated"],
        [
            [name, f"{s:.4f}", f"{batch / s:.1f}", f"{hours * s:.2f}"]
            for name, s in {
                f"the bundle's trainer, {knobs['num_workers']} processes load": seconds,
                "step alone, batches already there": bare,
            }.items()
        ],
    )
    notes = [f"{steps} steps, the second half of them counts; loss at the end {loss:.3f}."]
    print_notes([*notes, f"Peak of the GPU's memory {peak:.1f} GiB."] if peak else notes)


if __name__ == "__main__":
    main()
