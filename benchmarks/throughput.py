"""Slices per second in training, on one GPU and on two.

Compared, with the bundle's own transforms, network, loss and optimizer (`training_step.py`):
    plain MONAI: the same U-Net without prior, float32, as a MONAI training is written first.
    with and without prior: each in half precision, then also channels-last, then also compiled.
    two processes: `multi_gpu_train.yaml` under torchrun, against one process under torchrun.

Sizes: batches of 6 of 512 × 512, four processes that load for each that trains.

With ``--preload``, batches are loaded once and stay on the GPU, so that loading cannot set the
pace: what the network takes, which `loading.py` compares with what is loaded.

Read: with prior is to be no slower than without, at each setting; the ratio is that of slices per
second, so more is better, unlike in the other benchmarks. Without a GPU nothing is measured:
``--tiny`` runs all of it on the CPU with a tiny network, to see that the script works.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import compare, print_markdown, print_notes
from training_step import OVERLAYS, WITH, WITHOUT, Step, endless, prepare, training

KEYS = ("image", "label")
BASELINE = "plain MONAI, without prior, float32"
SETTINGS: dict[str, dict[str, bool]] = {
    "float16": {"amp": True},
    "float16, channels-last": {"amp": True, "channels_last": True},
    "float16, channels-last, compiled": {"amp": True, "channels_last": True, "compiled": True},
}
TINY: dict[str, Any] = {"channels": [4, 8], "num_workers": 0, "slices_per_scan": 24}


def run_one_gpu(
    knobs: dict[str, Any],
    *,
    rounds: int,
    count: int,
    tiny: bool,
    preload: bool,
    compiled: bool = True,
) -> None:
    """Slices per second with and without prior, at each setting, in one process."""
    batches = {name: loaded(knobs, name) if preload else None for name in OVERLAYS}

    def step(name: str, **options: Any) -> Step:
        parser = training(OVERLAYS[name], **knobs)
        return Step(parser, count=count, batches=batches[name], **options)

    candidates = {BASELINE: step(WITHOUT, amp=False)}
    for setting, options in SETTINGS.items():
        if options.get("compiled") and not compiled:
            continue
        # on a CPU, compilation takes minutes and float16 is slower
        changed = {**options, "amp": False, "compiled": False} if tiny else options
        if preload and options.get("compiled"):
            # compilation takes a minute: what runs without it is printed before
            print_rates(candidates, knobs, rounds=rounds, count=count, tiny=tiny, preload=preload)
        for name in (WITHOUT, WITH):
            candidates[f"{name}, {setting}"] = step(name, **changed)
    print_rates(candidates, knobs, rounds=rounds, count=count, tiny=tiny, preload=preload)


def loaded(knobs: dict[str, Any], name: str, count: int = 4) -> list[dict[str, Any]]:
    """Some batches of a training, on the GPU where there is one."""
    parser = training(OVERLAYS[name], **knobs)
    device = parser.get_parsed_content("device")
    batches = itertools.islice(endless(parser), count)
    return [
        {key: torch.as_tensor(b[key]).as_subclass(torch.Tensor).to(device) for key in KEYS}
        for b in batches
    ]


def print_rates(
    candidates: dict[str, Step],
    knobs: dict[str, Any],
    *,
    rounds: int,
    count: int,
    tiny: bool,
    preload: bool,
) -> None:
    """Time candidates and print their slices per second."""
    rows = compare(candidates, rounds=rounds, baseline=BASELINE)
    slices = count * knobs["batch_size"]
    rate = {row.name: slices / row.seconds for row in rows}
    loading = ", batches already there" if preload else ""
    print(f"\n### Training on one GPU{loading}{tried(tiny=tiny)}\n")
    print_markdown(
        ["", "slices per second", "to plain MONAI", "with prior to without"],
        [
            [
                row.name,
                f"{rate[row.name]:.1f}",
                f"{1 / row.ratio:.2f} ({1 / row.high:.2f} … {1 / row.low:.2f})",
                f"{rate[row.name] / rate[row.name.replace(WITH, WITHOUT)]:.3f}"
                if row.name.startswith(WITH)
                else "",
            ]
            for row in rows
        ],
    )
    print_notes([f"Median of {rounds} interleaved rounds of {count} steps."])


def run_processes(knobs: dict[str, Any], *, rounds: int, count: int, tiny: bool) -> None:
    """Slices per second of one and of two processes, each on a GPU of its own."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for processes, found in rates.items():
            found.append(rate_under_torchrun(knobs, processes=processes, count=count))
    ratios = sorted(two / one for one, two in zip(rates[1], rates[2], strict=True))
    print(f"\n### Training with the prior on two GPUs{tried(tiny=tiny)}\n")
    print_markdown(
        ["processes", "slices per second"],
        [[str(n), f"{sorted(found)[len(found) // 2]:.1f}"] for n, found in rates.items()],
    )
    middle = ratios[len(ratios) // 2]
    print_notes(
        [f"Two to one: {middle:.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f}), {rounds} rounds."]
    )


def tried(*, tiny: bool) -> str:
    """What a title says of figures that mean nothing."""
    return ": a trial of the script on a CPU, in float32, with a tiny network" if tiny else ""


def rate_under_torchrun(knobs: dict[str, Any], *, processes: int, count: int) -> float:
    """Start `worker` in as many processes and give their slices per second.

    Raises:
        subprocess.CalledProcessError: one of them failed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", __file__, "--count", str(count)]
    done = subprocess.run(
        [*command, "--worker", json.dumps(knobs)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.splitlines()[-1])


def worker(knobs: dict[str, Any], *, count: int) -> None:
    """One of torchrun's processes; the first prints the slices per second of all."""
    parser = training([*OVERLAYS[WITH], "multi_gpu_train"], **knobs)
    parser.get_parsed_content("initialize")
    step = Step(parser, count=count)
    for warm_up in (True, False):
        torch.distributed.barrier()
        start = time.perf_counter()
        step()
        if step.device.type == "cuda":
            torch.cuda.synchronize()
        torch.distributed.barrier()
        if not warm_up and torch.distributed.get_rank() == 0:
            slices = count * knobs["batch_size"] * torch.distributed.get_world_size()
            print(slices / (time.perf_counter() - start))
    torch.distributed.destroy_process_group()


def main() -> None:
    """Run the tables, or say that there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="try the script on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=40, help="steps timed at a time")
    parser.add_argument("--preload", action="store_true", help="batches that are loaded once")
    parser.add_argument("--no-compile", action="store_true", help="with --preload, not compiled")
    parser.add_argument("--root", type=Path, help="folder of the scan, which stays")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rounds, count = arguments.rounds, arguments.count
    if arguments.worker:
        worker(arguments.worker, count=count)
        return
    if not (torch.cuda.is_available() or arguments.tiny):
        print("Training throughput needs a CUDA device, and there is none: skipped.")
        return
    tiny = not torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        knobs = prepare(arguments.root or Path(folder), factor=1 if tiny else 4)
        if arguments.preload:
            knobs |= {"num_workers": 0}
            knobs |= {**TINY, "slice_size": [32, 32], "batch_size": 2} if tiny else {}
            rounds, count = (1, 2) if tiny else (rounds, count)
            compiled = not arguments.no_compile
            run_one_gpu(
                knobs, rounds=rounds, count=count, tiny=tiny, preload=True, compiled=compiled
            )
            return
        # scans enough that no epoch, whose end empties the queue of the workers, is short
        knobs |= TINY if tiny else {"num_workers": 4, "slices_per_scan": 960}
        run_one_gpu(knobs, rounds=rounds, count=count, tiny=tiny, preload=False)
        if tiny or torch.cuda.device_count() >= 2:
            run_processes(knobs, rounds=rounds, count=count, tiny=tiny)
        else:
            print("There is one CUDA device: two processes are left out.")


if __name__ == "__main__":
    main()
