"""nnU-Net on a study's cell: same scans, a plan of the study's size, steps or minutes as asked.

A cell's labelled scans train nnU-Net's 2D configuration (fold ``all``), its test scans are
predicted and scored, and the probabilities are then fused with the cell's own priors, by
``python -m stipple_monai fuse`` and its constants. Each run gives two methods, ``NAME`` and
``NAME_prior``, in the columns of a study's rows.

nnU-Net lives in an environment of its own, whose commands are called. Its recipe is its own: loss,
augmentation, optimizer (SGD, poly), mirroring at test time, resampling. What is changed stands in
`small`, the plan, and in `TRAINER`: the number of steps, a seed, and no prediction of the training
scans at the end, so that the processor time counted is that of the training alone.

    python benchmarks/nnunet.py --cell STUDY/cells/p020_fold0_seed0 --nnunet-bin ENV/bin \
        --work WORK --out docs/results/btcv_3_nnunet.csv --runs nnunet=400 nnunet_long=1000

What is done in ``WORK`` is not done again; its ``times.json`` has each command's processor time.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from stipple_monai import load_priors, measure_position
from stipple_monai.calibration import reliability
from stipple_monai.data import label_names, stem_of
from stipple_monai.files import read_csv, read_json, whole_file, write_csv
from stipple_monai.handlers.provenance import git_revision, versions
from stipple_monai.results import score
from stipple_monai.segmentation.probabilities import MapFile, read_map
from stipple_monai.study.rows import ROW_COLUMNS, this_machine

DATASET, PLANS, EPOCHS = "Dataset001_cell", "nnUNetSmallPlans", 10
TRAINER = """import os
import random

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

# nnU-Net's commands take all cores before they read this file
torch.set_num_threads(1)


class {name}(nnUNetTrainer):
    # nnU-Net reads the arguments' names
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        # augmentation in this process; the planner cannot have 0
        os.environ["nnUNet_n_proc_DA"] = "0"
        random.seed({seed})
        np.random.seed({seed})
        torch.manual_seed({seed})
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = {epochs}
        self.num_iterations_per_epoch = {steps}
        self.num_val_iterations_per_epoch = 1

    def perform_actual_validation(self, save_probabilities=False):
        pass
"""


def write_dataset(
    folder: Path, training: Sequence[Mapping[str, str]], organs: Mapping[int, str]
) -> None:
    """A raw dataset of nnU-Net: copies of the scans, organs numbered from 1, all else background.

    Args:
        folder: of the dataset, new.
        training: ``image`` and ``label`` of each scan, NIfTI files.
        organs: names by label value, in the order of their numbers.
    """
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for item in training:
        name = stem_of(Path(item["image"]))
        shutil.copyfile(item["image"], folder / "imagesTr" / f"{name}_0000.nii.gz")
        label = nib.load(item["label"])
        numbers = numbered(np.asarray(label.dataobj), list(organs))
        header = label.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        out = folder / "labelsTr" / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(numbers, label.affine, header), out)
    values = {name: number for number, name in enumerate(organs.values(), 1)}
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **values},
        "numTraining": len(training),
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", description)


def numbered(values: np.ndarray, organs: Sequence[int]) -> np.ndarray:
    """A label map whose organs are 1 to K and all else 0."""
    numbers = np.zeros(values.shape, np.uint8)
    for number, organ in enumerate(organs, 1):
        numbers[values == organ] = number
    return numbers


def small(plans: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """nnU-Net's plans with a 2D configuration of the study's size.

    Args:
        plans: as nnU-Net's planner writes them.
        options: of the study: ``slice_size``, ``spacing_mm``, ``batch_size``, ``channels``.
    """
    changed = copy.deepcopy(dict(plans))
    changed["plans_name"] = PLANS
    plan = changed["configurations"]["2d"]
    changed["configurations"] = {"2d": plan}
    channels = list(options["channels"])
    stages = len(channels)
    plan |= {
        "data_identifier": f"{PLANS}_2d",
        "batch_size": options["batch_size"],
        "patch_size": list(options["slice_size"]),
        "spacing": list(options["spacing_mm"][:2]),
    }
    plan["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": channels,
        "kernel_sizes": [[3, 3]] * stages,
        "strides": [[1, 1]] + [[2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    return changed


class Work:
    """A work folder: nnU-Net's own folders, its commands, and what they took.

    Args:
        folder: is made.
        programs: folder of nnU-Net's commands.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        kinds = ("raw", "preprocessed", "results")
        places = {f"nnUNet_{kind}": str(folder / kind) for kind in kinds}
        for place in places.values():
            Path(place).mkdir(parents=True, exist_ok=True)
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        own = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
        trainers = {"nnUNet_extTrainer": str(folder / "trainers")}
        self.environment = {**os.environ, **places, **threads, **own, **trainers}
        self.times: dict[str, Any] = {}
        if (folder / "times.json").is_file():
            self.times = read_json(folder / "times.json")

    def call(self, key: str, *words: object) -> None:
        """Run a command that is not done yet, and remember its processor and wall time."""
        if key in self.times:
            return
        before, started = _of_children(), time.monotonic()
        print(f"{key}: {' '.join(map(str, words))}", flush=True)
        subprocess.run(list(map(str, words)), check=True, env=self.environment)
        used = {"cpu_minutes": _of_children() - before, "minutes": time.monotonic() - started}
        used["minutes"] /= 60
        self.times[key] = {name: round(value, 2) for name, value in used.items()}
        write_json(self.folder / "times.json", self.times)

    def nnunet(self, key: str, program: str, *words: object) -> None:
        """Run one of nnU-Net's commands."""
        self.call(key, self.programs / f"nnUNetv2_{program}", *words)


def _of_children() -> float:
    """Processor minutes of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


class Cell:
    """A study's cell: scans, organs, settings and priors.

    Args:
        folder: of the cell.
    """

    def __init__(self, folder: Path) -> None:
        study = read_json(folder.parents[1] / "study.json")["study"]
        self.folds, self.options = study["folds"], study["options"]
        self.datalist = Path(study["datalist"])
        names = label_names(self.datalist)
        self.organs = {organ: names[organ] for organ in self.options["organs"]}
        self.training = read_json(folder / "training.json")["training"]
        self.test = read_json(folder / "test.json")["test"]
        found = re.fullmatch(r"p(\d+)_fold(\d+)_seed(\d+)", folder.name)
        if found is None:
            raise SystemExit(f"--cell must be a cell such as p020_fold0_seed0, got {folder}.")
        percent, self.fold, self.seed = map(int, found.groups())
        self.proportion, self.name = percent / 100, folder.name
        self.priors = next(folder.glob("networks/*/round_0/models/prior_*.nii.gz")).parent


def prepare(work: Work, cell: Cell) -> None:
    """Raw dataset, nnU-Net's plan, ours, and the preprocessed scans."""
    raw = work.folder / "raw" / DATASET
    if not (raw / "dataset.json").is_file():
        shutil.rmtree(raw, ignore_errors=True)
        write_dataset(raw, cell.training, cell.organs)
    work.nnunet("plan", "plan_and_preprocess", "-d", 1, "-c", "2d", "-npfp", 1, "--no_pp")
    planned = work.folder / "preprocessed" / DATASET
    write_json(
        planned / f"{PLANS}.json", small(read_json(planned / "nnUNetPlans.json"), cell.options)
    )
    options = ("-plans_name", PLANS, "-c", "2d", "-np", 1)
    work.nnunet("preprocess", "preprocess", "-d", 1, *options)
    images = work.folder / "imagesTs"
    images.mkdir(exist_ok=True)
    for item in cell.test:
        target = images / f"{stem_of(Path(item['image']))}_0000.nii.gz"
        if not target.exists():
            shutil.copyfile(item["image"], target)


def train_and_predict(work: Work, cell: Cell, name: str, steps: int) -> None:
    """Train, predict, and fuse what was predicted with the cell's priors."""
    trainer = f"nnUNetTrainer_{steps}_steps"
    trainers = work.folder / "trainers"
    trainers.mkdir(exist_ok=True)
    each = {"name": trainer, "seed": cell.seed, "epochs": EPOCHS, "steps": steps // EPOCHS}
    (trainers / f"{trainer}.py").write_text(TRAINER.format(**each), encoding="utf-8")
    same = ("-tr", trainer, "-p", PLANS, "-device", "cpu")
    work.nnunet(f"{name}/train", "train", 1, "2d", "all", *same)
    scans, out = work.folder / "imagesTs", work.folder / name
    model = ("-d", 1, "-c", "2d", "-f", "all", "-npp", 0, "-nps", 0, "--disable_progress_bar")
    files = ("-i", scans, "-o", out, "--save_probabilities")
    work.nnunet(f"{name}/predict", "predict", *files, *model, *same)
    channels = [f"{organ}={number}" for number, organ in enumerate(cell.organs, 1)]
    fuse = (sys.executable, "-m", "stipple_monai", "fuse", out, "--like", scans)
    where = ("--priors", cell.priors, "--out", work.folder / f"{name}_prior")
    work.call(f"{name}/fuse", *fuse, *where, "--channels", *channels)


def rows_of(work: Work, cell: Cell, name: str, steps: int, commit: str) -> list[list[Any]]:
    """Scores of a run's two methods, a row a scan and organ."""
    rows = []
    known = {
        **{"labelled": len(cell.training), "proportion": cell.proportion, "fold": cell.fold},
        **{"seed": cell.seed, "steps": steps, "commit": commit[:12]},
    }
    for item in cell.test:
        scan = stem_of(Path(item["image"]))
        truth = nib.load(item["label"])
        values = numbered(np.asarray(truth.dataobj), list(cell.organs))
        label = MetaTensor(torch.from_numpy(values)[None], affine=torch.as_tensor(truth.affine))
        alone = nib.load(work.folder / name / f"{scan}.nii.gz")
        fused = nib.load(work.folder / f"{name}_prior" / f"{scan}_seg.nii.gz")
        found = {
            name: np.asarray(alone.dataobj),
            f"{name}_prior": numbered(np.asarray(fused.dataobj), list(cell.organs)),
        }
        errors = {name: _calibration_errors(work.folder / name, item, label)}
        positions = {f"{name}_prior": _positions(work.folder / f"{name}_prior", cell, item)}
        for method, predicted in found.items():
            scores = _scores(label, torch.from_numpy(predicted), list(cell.organs.items()))
            for k, row in enumerate(scores):
                row |= {**known, "method": method, "scan": scan}
                if method in errors:
                    row["calibration_error"] = _text(errors[method][k])
                row |= positions.get(method, {}).get(row["organ"], {})
                rows.append([row.get(column, "") for column in ROW_COLUMNS])
    return rows


def _scores(
    label: MetaTensor, predicted: torch.Tensor, organs: Sequence[tuple[int, str]]
) -> list[dict[str, Any]]:
    """What `stipple_monai.results.score` says of each organ."""
    spacing_mm = label.pixdim.tolist()
    rows = []
    for number, (organ, name) in enumerate(organs, 1):
        one, two = predicted == number, label.as_tensor()[0] == number
        measures = map(_text, score(one, two, spacing_mm))
        row = dict(zip(("dice", "jaccard", "hd95_mm", "asd_mm"), measures, strict=True))
        voxels = {"predicted_voxels": int(one.sum()), "true_voxels": int(two.sum())}
        rows.append({"organ": organ, "name": name, **row, **voxels})
    return rows


def _calibration_errors(folder: Path, item: Mapping[str, str], label: MetaTensor) -> list[float]:
    scan = stem_of(Path(item["image"]))
    probabilities = MapFile(scan, folder / f"{scan}.npz", Path(item["image"]))
    values, _ = read_map(probabilities, range(1, int(label.max()) + 1))
    return reliability(values, label).error.tolist()


def _positions(folder: Path, cell: Cell, item: Mapping[str, str]) -> dict[int, dict[str, str]]:
    """Error and confidence of the priors' positions in a scan, by organ."""
    scan, truth, found = stem_of(Path(item["image"])), nib.load(item["label"]), {}
    values = torch.from_numpy(np.asarray(truth.dataobj).copy())[None]
    label = MetaTensor(values, affine=torch.as_tensor(truth.affine))
    priors = dict(zip(cell.organs, load_priors(cell.priors, list(cell.organs)), strict=True))
    for row in read_csv(folder / "volumes.csv"):
        organ = int(row["organ"])
        same = stem_of(Path(row["scan"])) == f"{scan}_0000"
        if same and row["r_mm"] and (label == organ).any():
            point = torch.tensor([float(row[axis]) for axis in ("r_mm", "a_mm", "s_mm")])
            error = float((point - measure_position(label, priors[organ])).norm())
            found[organ] = {"position_error_mm": _text(error), "confidence": row["confidence"]}
    return found


def _text(number: float) -> str:
    return "" if np.isnan(number) else f"{number:.4f}"


def write_json(path: Path, content: object) -> None:
    """Write it whole or not at all."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def record(work: Work, cell: Cell, runs: Mapping[str, int], commit: Mapping[str, Any]) -> Any:
    """What the rows come from."""
    script = "import nnunetv2, sys, torch; from importlib.metadata import version as v; print("
    script += "v('nnunetv2'), torch.__version__, sys.version.split()[0])"
    asked = [str(work.programs / "python"), "-c", script]
    words = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()[-3:]
    plans = read_json(work.folder / "preprocessed" / DATASET / f"{PLANS}.json")
    return {
        "study": {"folds": cell.folds, "options": cell.options},
        "nnunet": {
            "versions": dict(zip(("nnunetv2", "torch", "python"), words, strict=True)),
            "plan": plans["configurations"]["2d"],
            "intensities": plans["foreground_intensity_properties_per_channel"],
            "epochs": EPOCHS,
            "steps": dict(runs),
            "times": work.times,
        },
        "runs": [
            {
                "commit": commit["revision"],
                "changed": commit["changed"],
                "machine": this_machine(),
                "device": "cpu",
                "versions": versions(),
                "cells": [f"{cell.name}/{name}{end}" for name in runs for end in ("", "_prior")],
            }
        ],
    }


def main() -> None:
    """Train, predict, fuse and score; the table has the runs that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", type=Path, required=True, help="of a study")
    parser.add_argument("--nnunet-bin", type=Path, required=True, help="folder of its commands")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the table, .csv")
    parser.add_argument("--runs", nargs="+", default=["nnunet=1000"], metavar="METHOD=STEPS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {name: int(steps) for name, steps in (run.split("=") for run in options.runs)}
    if any(steps <= 0 or steps % EPOCHS for steps in runs.values()):
        parser.error(f"--runs must have steps that {EPOCHS} divides, got {options.runs}")
    work, cell = Work(options.work.resolve(), options.nnunet_bin), Cell(options.cell.resolve())
    prepare(work, cell)
    commit = git_revision(Path(__file__)) or {"revision": "", "changed": None}
    rows = []
    for name, steps in runs.items():
        train_and_predict(work, cell, name, steps)
        rows += rows_of(work, cell, name, steps, commit["revision"])
    write_csv(options.out, ROW_COLUMNS, rows)
    write_json(options.out.with_suffix(".json"), record(work, cell, runs, commit))
    print(f"{options.out}: {len(rows)} rows")


if __name__ == "__main__":
    main()
