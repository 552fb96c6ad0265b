"""A calibration by cross-fitting: K networks, each fitted on what it was not trained on.

Words used here. The patients with labelled scans are dealt to K *folds*. The network of a fold is
trained on the others' scans, with priors estimated from these, and its logits on the fold's own
scans, with priors placed there, are *held out*. The calibration is fitted to those of all folds.
The *final* network is trained on all labelled scans and gets the calibration; the networks of the
folds have served.

The folder tells how far it is::

    settings.json                       what it was started with
    fold_1/datalist.json                training, held_out and validation scans
    fold_1/models/                      prior_*.nii.gz, curve.csv, model.pt
    fold_1/samples_located.npz          voxels of the held-out scans
    fold_2/…
    logs/                               TensorBoard, and a lock while a process works here

and the models' folder, where the final network, its priors and ``calibration.json`` are. Killed at
any moment, the same command continues.

With one labelled patient nothing can be held out: the numbers are constants
(:meth:`~stipple_monai.networks.Calibration.unfitted`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from stipple_monai.bundle import (
    BUNDLE,
    CALIBRATION,
    WEIGHTS,
    check_knobs,
    config_digests,
    config_path,
    configs_of,
    merged_configs,
    only_process,
    refuse_given,
    remove_checkpoints,
    run_bundle,
    whole_folder,
)
from stipple_monai.calibration import Samples, fit_samples
from stipple_monai.cross_fitting.samples import read_samples
from stipple_monai.data import patient_of, read_sections, write_datalist
from stipple_monai.errors import DatasetError
from stipple_monai.files import whole_file
from stipple_monai.handlers import data_fingerprint
from stipple_monai.networks import Calibration
from stipple_monai.ownership import CONTENTS, remember
from stipple_monai.progress import Stopwatch

__all__ = ["calibrate"]

CONFIGS = ("prior", "train", "inference", "calibration_samples")
GIVEN = (
    *("bundle_root", "datalist", "models_dir", "output_dir"),
    *("section", "samples_file", "seed", "resume"),
)
"""Knobs of the configs that follow from the arguments of :func:`calibrate`."""

MOST_FOLDS = 3


def calibrate(
    datalist: str | Path,
    out: str | Path,
    models: str | Path,
    *,
    bundle: str | Path = BUNDLE,
    overlays: Sequence[str | Path] = (),
    train_overlays: Sequence[str | Path] = (),
    infer_overlays: Sequence[str | Path] = (),
    folds: int | None = None,
    position: Literal["located", "true"] = "located",
    shrinkage: float = 1.0,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Train the networks of the folds and the final one, as far as it was not done before, and fit.

    Args:
        datalist: JSON with the section ``training``, of which items with a ``label`` take part, and
            perhaps ``validation``. Pseudo-labelled items are in no fold, and train every network
            but that which holds out their patient.
        out: folder of the folds.
        models: folder of the final network. Where it has a ``model.pt`` already, that one gets the
            calibration: it must have been trained on these scans with these settings.
        bundle: folder of the bundle.
        overlays: configs on every command, names in the bundle or paths.
        train_overlays: further ones on training.
        infer_overlays: further ones on inference.
        folds: K, at least 2; None: 3, or as many as there are patients with labelled scans.
        position: where priors are in the held-out scans: ``"located"``, as in inference, or
            ``"true"``, as the label tells; so also if none could be located.
        shrinkage: see :func:`~stipple_monai.calibration.fit_calibration`.
        seed: of the folds and of every training.
        options: other knobs of the configs, such as ``{"max_epochs": 5}``.

    Returns:
        The file of the calibration, which is in the weights, too.

    Raises:
        DatasetError: the datalist cannot be used, or ``out`` is in use or was begun with other
            settings.
        ValueError: a knob is out of its range.
    """
    out, models, configs = Path(out).resolve(), Path(models).resolve(), configs_of(bundle)
    knobs, files = dict(options or {}), (overlays, train_overlays, infer_overlays)
    stage = _Stage(out, configs, files, knobs, seed)
    scans = _items(datalist)
    number = _number_of_folds(scans["labelled"], folds)
    if position not in ("located", "true"):
        raise ValueError(f"`position` must be 'located' or 'true', got {position!r}.")
    settings = {
        **_written(scans, files, number),
        CONTENTS: config_digests(configs, [*CONFIGS, *chain.from_iterable(files)]),
        **{"seed": seed, "options": knobs},
    }
    with only_process(out):
        targets = ["datalist.json", *(path.name for path in out.glob("fold_*"))]
        remember(out / "settings.json", settings, targets=targets)
        names = stage.train_folds(scans, number)
        calibration = stage.fit(names, position=position, shrinkage=shrinkage)
        stage.say(_summary(calibration, stage.organs))
        stage.finish(scans, models, calibration)
    return models / CALIBRATION


def _patients(items: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(map(patient_of, items)))


def _number_of_folds(labelled: Sequence[Mapping[str, Any]], asked: int | None) -> int:
    patients = len(_patients(labelled))
    if asked is None:
        return min(MOST_FOLDS, patients)
    if not 2 <= asked <= patients:
        raise ValueError(
            f"`folds` must lie in 2 to the number of patients with labelled scans, {patients}, got "
            f"{asked}."
        )
    return asked


def _folds(
    items: Sequence[Mapping[str, Any]], number: int, seed: int
) -> list[tuple[str, set[str]]]:
    """Names of the folds and the patients that each holds out; none for a single patient."""
    patients = _patients(items)
    order = np.random.default_rng(seed).permutation(len(patients)).tolist()
    folds = [{patients[i] for i in order[k::number]} for k in range(number)] if number > 1 else []
    return [(f"fold_{i}", held) for i, held in enumerate(folds, 1)]


class _Stage:
    """The commands of a fold, each run unless its result is there."""

    def __init__(
        self,
        out: Path,
        configs: Path,
        overlays: Sequence[Sequence[str | Path]],
        knobs: dict[str, Any],
        seed: int,
    ) -> None:
        self.out, self.configs, self.knobs, self.seed = out, configs, knobs, seed
        files = [[config_path(configs, name) for name in names] for names in overlays]
        self.always, self.training, self.inference = files
        refuse_given(knobs, GIVEN)
        check_knobs(configs, [*CONFIGS, *chain.from_iterable(files)], knobs)
        self.say = Stopwatch().say
        parser = merged_configs(configs, ["train", *self.always, *self.training], knobs)
        self.organs: list[int] = parser.get_parsed_content("organs")
        self.slices_per_scan: int = parser.get_parsed_content("slices_per_scan")
        self.prior_in_training = parser.get_parsed_content("prior_dropout") < 1

    def train_folds(self, scans: Mapping[str, list[dict[str, Any]]], number: int) -> list[str]:
        """The network of every fold; the folds' names."""
        folds = _folds(scans["labelled"], number, self.seed)
        every = scans["labelled"] + scans["pseudo"]
        for name, held in folds:
            out = [item for item in scans["labelled"] if patient_of(item) in held]
            rest = [item for item in every if patient_of(item) not in held]
            sections = {"training": rest, "held_out": out, "validation": scans["validation"]}
            folder = self.out / name
            write_datalist(folder / "datalist.json", sections)
            # as many steps as the final network, or the fold's would be less sure of itself
            more = 1 + (len(every) - len(rest)) / len(rest)
            slices = {"slices_per_scan": math.ceil(self.slices_per_scan * more)}
            self.train(name, folder / "datalist.json", folder / "models", knobs=slices)
        return [name for name, _ in folds]

    def finish(
        self,
        scans: Mapping[str, list[dict[str, Any]]],
        models: Path,
        calibration: Calibration,
    ) -> None:
        """The final network, unless it is there, with its calibration."""
        path = self.out / "datalist.json"
        training = scans["labelled"] + scans["pseudo"]
        write_datalist(path, {"training": training, "validation": scans["validation"]})
        if not (models / WEIGHTS).exists():
            self.train("final", path, models, calibration=calibration)
        calibration.save(models / CALIBRATION)
        if calibration.fitted:  # constants look at each scan, which numbers in weights cannot
            _put_into_weights(calibration, models / WEIGHTS)

    def fit(
        self, names: Sequence[str], *, position: Literal["located", "true"], shrinkage: float
    ) -> Calibration:
        """The calibration of the folds; constants where there are none."""
        if not names:
            return Calibration.unfitted(
                len(self.organs), labelled=1, prior_in_training=self.prior_in_training
            )
        drawn = [self.draw(name, position) for name in names]
        if position == "located" and not any(part.known[part.label > 0].any() for part in drawn):
            # Networks of a few scans may locate nothing where the final one will.
            self.say("no prior was located in the held-out scans: placed where the labels tell")
            drawn = [self.draw(name, "true") for name in names]
        return fit_samples(drawn, shrinkage=shrinkage)

    def train(
        self,
        name: str,
        datalist: Path,
        models: Path,
        *,
        knobs: Mapping[str, Any] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Estimate priors and train, unless ``models`` is there."""
        if models.exists():
            self.say(f"{name}: trained before")
        else:
            scans = len(read_sections(datalist)["training"])
            self.say(f"{name}: train on {scans} scans")
            made_with = {"training": name, "scans": scans, "knobs": dict(knobs or {})}
            with whole_folder(models, made_with=made_with) as part:
                places = {"datalist": str(datalist), "models_dir": str(part)}
                self._run(["prior", *self.always], places)
                if calibration is not None:
                    # validation chooses the weights by what they will be used with
                    calibration.save(part / CALIBRATION)
                logs = str(self.out / "logs" / name)
                given = {**places, "output_dir": logs, "seed": self.seed, "resume": True}
                self._run(["train", *self.always, *self.training], {**given, **(knobs or {})})
        remove_checkpoints(models)

    def draw(self, name: str, position: Literal["located", "true"]) -> Samples:
        """Voxels of a fold's held-out scans, predicted unless that was done."""
        folder = self.out / name
        path = folder / f"samples_{position}.npz"
        if not path.exists():
            self.say(f"{name}: predict the held-out scans")
            places = {
                "datalist": str(folder / "datalist.json"),
                "models_dir": str(folder / "models"),
                "output_dir": str(folder),
                "samples_file": str(path),
            }
            names: list[str | Path] = ["inference", "calibration_samples"]
            names += ["true_position"] if position == "true" else []
            self._run([*names, *self.always, *self.inference], places)
        return read_samples(path)

    def _run(self, names: Sequence[str | Path], knobs: dict[str, Any]) -> None:
        places = {"bundle_root": str(self.out), **knobs}
        run_bundle(self.configs, names, **{"lines": True, "picture": False, **self.knobs, **places})


def _items(datalist: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Labelled, pseudo-labelled and validation items."""
    found = read_sections(datalist)
    training = [item for item in found.get("training", []) if "label" in item]
    labelled = [item for item in training if "pseudo_label" not in item]
    if not labelled:
        raise DatasetError(f"`datalist` must have labelled scans in training, {datalist} has none.")
    pseudo = [item for item in training if "pseudo_label" in item]
    return {"labelled": labelled, "pseudo": pseudo, "validation": found.get("validation", [])}


def _written(
    scans: Mapping[str, list[dict[str, Any]]],
    overlays: Sequence[Sequence[str | Path]],
    folds: int,
) -> dict[str, Any]:
    """What a folder was begun with, as JSON."""
    # older folders have a number alone, and dealt each scan of a patient by itself
    alone = len(_patients(scans["labelled"])) == len(scans["labelled"])
    return {
        "folds": folds if alone else f"{folds} of patients",
        "scans": {name: [str(item["image"]) for item in items] for name, items in scans.items()},
        "labels": [str(item["label"]) for item in scans["labelled"] + scans["pseudo"]],
        "data": {name: data_fingerprint(items)["sha256"] for name, items in scans.items()},
        "overlays": [list(map(str, names)) for names in overlays],
    }


def _put_into_weights(calibration: Calibration, path: Path) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)
    state["calibration"] = calibration.tensor()
    with whole_file(path) as part:
        torch.save(state, part)


def _summary(calibration: Calibration, organs: Sequence[int]) -> str:
    rows = calibration.tensor().tolist()
    return "; ".join(
        f"organ {organ}: scale {scale:.3f}, strength {strength:.2f}, offset {offset:.2f}"
        for organ, (scale, strength, offset, *_) in zip(organs, rows, strict=True)
    )
