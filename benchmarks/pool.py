"""Pseudo-labelling a pool of scans by one process and by two, under torchrun.

Each run is the bundle's own command on generated scans (96 × 96 × 32 to 48 voxels) with a small
network that learnt nothing. The time is that of the labelling: from the moment when the first
process has built its engine to the last record. Starting Python and importing torch and MONAI comes
on top, about the same for any pool; the last column has the whole command. A process has one thread
and loads its own scans, so that it needs one core. Read: two processes have room only where two
cores (or GPUs) are free, and the ratio is then half at best; mind the load that is printed.

Beside the times, each run is checked: every scan was labelled once, and the new datalist has the
same bytes whoever made it. Last, one of two processes is killed over its second scan and the
command started again; the table's notes tell what was done then.

    python benchmarks/pool.py [--quick] [--scans 16] [--rounds 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import monai.bundle
import torch
import yaml
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from timing import print_table, row_from

from stipple_monai.data import read_datalist, split_datalist, write_datalist
from stipple_monai.simulation import write_phantom

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundles" / "pancreas_stipple" / "configs"
OVERLAYS = ("inference", "pseudo_label", "multi_gpu_pseudo_label")
KNOBS = {
    "channels": [16, 32, 64, 128],
    "slice_size": [96, 96],
    "sw_batch_size": 16,
    "num_workers": 0,
}


class Watch:
    """A handler that notes when a process is ready and which scans it takes up.

    Args:
        folder: a file ``rank_N`` of it is made when process N is ready, and gets a line a scan.
        killed: (process, scan): which process kills itself over which of its scans, from 1.
    """

    def __init__(self, folder: str, killed: tuple[int, int] | None = None) -> None:
        rank = int(os.environ["RANK"])
        self.notes = Path(folder) / f"rank_{rank}"
        self.last = killed[1] if killed and killed[0] == rank else None

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda: self.notes.write_text(f"{time.time()}\n"))
        engine.add_event_handler(Events.ITERATION_STARTED, self._note)

    def _note(self, engine: Engine) -> None:
        (scan,) = engine.state.batch["image"].meta["filename_or_obj"]
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(f"{Path(scan).name}\n")
        if engine.state.iteration == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class Pool:
    """Generated scans, the bundle's prior and a network for them, and how to label them."""

    def __init__(self, root: Path, *, scans: int, size: int, threads: int) -> None:
        self.root, self.threads, self.runs = root, threads, 0
        dataset = write_phantom(root / "data", cases=scans + 2, size=size, progress=False)
        sections = split_datalist(
            read_datalist(dataset, "training"), labelled=2, validation=0, test=0, seed=0
        )
        self.names = sorted(Path(item["image"]).name for item in sections["unlabelled"])
        datalist = root / "data" / "split.json"
        write_datalist(datalist, sections)
        self.knobs = {**KNOBS, "bundle_root": str(root), "datalist": str(datalist)}
        prior = str(CONFIGS / "prior.yaml")
        monai.bundle.run(config_file=prior, logging_file=False, **self.knobs)
        parser = ConfigParser()
        parser.read_config(str(CONFIGS / "inference.yaml"))
        parser.update(self.knobs)
        torch.manual_seed(0)
        weights = parser.get_parsed_content("network_def").state_dict()
        torch.save(weights, root / "models" / "model.pt")

    def label(
        self, out: Path, processes: int, killed: tuple[int, int] | None = None
    ) -> tuple[float, float, list[str]]:
        """Run the bundle's command; seconds of labelling, of all, and the scans taken up."""
        self.runs += 1
        notes = self.root / f"run_{self.runs}"
        notes.mkdir()
        watch = {"_target_": "pool.Watch", "folder": str(notes), "killed": killed}
        overlay = notes / "watch.yaml"
        overlay.write_text(yaml.safe_dump({"+handlers": [watch]}), encoding="utf-8")
        configs = [str(CONFIGS / f"{name}.yaml") for name in OVERLAYS] + [str(overlay)]
        knobs = {**self.knobs, "output_dir": str(out), "progress": False}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}", "-m", "monai.bundle", "run"]
        command += ["--config_file", str(configs)]
        command += [text for key, value in knobs.items() for text in (f"--{key}", str(value))]
        folders = [str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
        settings = {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": str(self.threads)}
        started = time.time()
        done = subprocess.run(
            command,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        ended = time.time()
        if (done.returncode == 0) == (killed is not None):
            raise RuntimeError(f"The command ended with {done.returncode}:\n{done.stderr[-3000:]}")
        lines = [path.read_text(encoding="utf-8").split() for path in notes.glob("rank_*")]
        ready = min(float(first) for first, *_ in lines)
        last = max(path.stat().st_mtime for path in out.glob("*_pseudo.json"))
        return last - ready, ended - started, sorted(name for _, *rest in lines for name in rest)


def main() -> None:
    """Label the pool by one and by two processes in turn, then kill one and start again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 smaller scans, one round")
    parser.add_argument("--scans", type=int, default=16, help="unlabelled scans")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    scans, rounds = (8, 1) if options.quick else (options.scans, options.rounds)
    size = 64 if options.quick else 96
    kinds = {"1 process": 1, "2 processes": 2}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pool = Pool(root, scans=scans, size=size, threads=options.threads)
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        whole: dict[str, list[float]] = {name: [] for name in kinds}
        datalists = set()
        order = list(kinds)
        for turn in range(rounds):
            for name in order:
                out = root / f"{kinds[name]}_{turn}"
                labelling, command, taken = pool.label(out, kinds[name])
                if taken != pool.names:
                    raise RuntimeError(f"Each scan must be labelled once, got {taken}.")
                seconds[name].append(labelling)
                whole[name].append(command)
                datalists.add((out / "datalist.json").read_bytes())
            order.reverse()
        out = root / "killed"
        *_, begun = pool.label(out, 2, killed=(1, 2))
        finished = len(list(out.glob("*_pseudo.json")))
        *_, again = pool.label(out, 2)
        datalists.add((out / "datalist.json").read_bytes())
    rows = [row_from(name, seconds[name], seconds["1 process"]) for name in kinds]
    print_table(
        f"Pseudo-labels of {scans} scans of {size} × {size} × 32 to 48",
        rows,
        columns={
            "scans per minute": {row.name: 60 * scans / row.seconds for row in rows},
            "whole command, s": {name: statistics.median(whole[name]) for name in kinds},
        },
        notes=[
            f"Threads of each process: {options.threads}.",
            "Each scan was labelled once in every run.",
            f"Process 2 of 2 killed over its second scan: {len(begun)} scans were begun and "
            f"{finished} finished; the next start did {len(again)}.",
            f"Different datalists that all runs wrote: {len(datalists)}.",
        ],
    )


if __name__ == "__main__":
    main()
