"""Training on own data, from a datalist to a folder that segments.

The run's folder holds, besides what `stipple_monai.bundle.Model` tells::

    plan.yaml           the settings, each with its reason
    settings.json       what the run was started with
    curve.csv           loss and Dice of each epoch
    progress.png        the same, drawn
    provenance.json     versions, data and settings of the weights
    last.pt             weights of the last epoch, where model.pt is the best on validation scans
    evaluation/         scores of the section `test`
    logs/               TensorBoard, and a lock while a process works here

Killed at any moment, the same command goes on.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.bundle import (
    BUNDLE,
    CURVE,
    LAST,
    MODEL,
    RECORD,
    WEIGHTS,
    Model,
    check_knobs,
    config_digests,
    config_path,
    configs_of,
    only_process,
    read_model,
    remove_checkpoints,
    run_bundle,
    write_model,
)
from stipple_monai.data import first_file, label_names, read_datalist, read_sections
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv
from stipple_monai.handlers import data_fingerprint
from stipple_monai.ownership import CONTENTS, remember
from stipple_monai.planning import (
    Fingerprint,
    contradictions,
    plan_once,
    read_settings,
    refuse_window,
    take_fingerprint,
)
from stipple_monai.priors import prior_path
from stipple_monai.training.begun_plan import PLAN, refuse_edited_plan
from stipple_monai.training.description import describe
from stipple_monai.training.seen import SETTINGS

LOGS = "logs"
CONFIGS = ("prior", "train")
HIGH_LOSS = 0.7
"""Networks without prior that were trained through ended at losses of 0.1 to 0.45; after a quarter
of the steps two of them were at 0.94 and 0.98, and a 3D U-Net ended at 0.9."""
LITTLE_LEARNT = 0.6
"""A network that sees its prior begins at 0.25 to 0.65. Of 119 networks of both kinds that were
trained through, all ended at 0.06 to 0.49 of the first epoch's loss; after a tenth of the epochs
they were at 0.38 to 0.78 of it."""


def train(
    datalist: str | Path,
    out: str | Path,
    *,
    bundle: str | Path = BUNDLE,
    plan: str | Path | None = None,
    overlays: Sequence[str | Path] = (),
    train_overlays: Sequence[str | Path] = (),
    options: Mapping[str, Any] | None = None,
    baseline: bool = False,
    paper: bool = False,
    seed: int = 0,
) -> Path:
    """Plan, estimate priors and train, as far as it was not done before.

    Args:
        datalist: JSON with the section ``training`` and perhaps ``validation`` and ``test``.
        out: folder of the run.
        bundle: folder of the bundle.
        plan: overlay that `stipple_monai.planning.make_plan` wrote; made if None, unless there are
            ``overlays``.
        overlays: further configs on every command, names in the bundle or paths.
        train_overlays: further ones on training alone.
        options: knobs on top of everything.
        baseline: train without prior.
        paper: plan with the paper's intensities, network and schedule.
        seed: of the training.

    Returns:
        ``model.pt``.

    Raises:
        DatasetError: the datalist cannot be used, or ``out`` is in use, is a data set's folder, or
            was begun with other settings, or with another plan than it has now.
        ValueError: no config has one of the ``options`` or of a plan's knobs, or it is of another
            kind, or ``paper`` comes with a plan.
    """
    if paper and (plan is not None or overlays):
        raise ValueError("`paper` must be given without plan or overlays: they say it all.")
    out, configs, knobs = Path(out).resolve(), configs_of(bundle), dict(options or {})
    sections = read_sections(datalist)
    names = [*overlays, *([plan] if plan else [])]
    files = _checked(out, configs, names, train_overlays, knobs)
    settings = {
        **_data(sections, datalist),
        **{"overlays": list(map(str, names)), "train_overlays": list(map(str, train_overlays))},
        CONTENTS: config_digests(configs, [*CONFIGS, *names, *train_overlays]),
        **{"options": knobs, "baseline": baseline, "paper": paper, "seed": seed},
    }
    with only_process(out):
        remember(out / SETTINGS, settings, targets=_targets(out), taken=[PLAN])
        if not (out / MODEL).is_file():
            asked: dict[str, Any] = {"bundle": bundle, "options": knobs, "paper": paper}
            found = None if files else plan_once(datalist, out / PLAN, **asked)
            used = [*(["baseline"] if baseline else []), *(files or [out / PLAN])]
            told = {"configs": configs, "overlays": used, "train_overlays": train_overlays}
            _begin(out, datalist, found, **told, knobs=knobs)
        elif not files:
            refuse_edited_plan(out / PLAN, out)
        if not _is_trained(out, validated=bool(sections.get("validation"))):
            places = {"bundle_root": out, "datalist": Path(datalist).resolve(), "seed": seed}
            _run(read_model(out), configs, train_overlays, places, prior=not baseline)
        remove_checkpoints(out)
    return out / WEIGHTS


def hardly_trained(out: str | Path) -> str | None:
    """What to say of a run whose loss is high, or has hardly fallen, after its last epoch."""
    path = Path(out) / CURVE
    losses = [float(row["loss"]) for row in read_csv(path)] if path.is_file() else []
    known = read_model(out).knobs if (Path(out) / MODEL).is_file() else {}
    # weights that had learnt before begin low
    least = math.inf if known.get("initial_weights") else LITTLE_LEARNT
    if not losses or (losses[-1] <= HIGH_LOSS and losses[-1] <= least * losses[0]):
        return None
    return (
        f"the training loss is still {losses[-1]:.2f}, after {losses[0]:.2f} in the first epoch: "
        "the network has hardly begun to learn, and the "
        "result is more of the prior than of the scan. Train longer, in another folder "
        "(`--set max_epochs=…`)."
    )


def _data(
    sections: Mapping[str, Sequence[Mapping[str, Any]]], datalist: str | Path
) -> dict[str, Any]:
    """Scans and labels of a run, or an error where there are none to train on."""
    training = sections.get("training", [])
    labels = [str(item["label"]) for item in training if "label" in item]
    if not labels:
        raise DatasetError(
            f"`datalist` must have labelled scans in training, got none in {datalist}: run "
            "`ingest` on a folder of scans and labels first."
        )
    bare = [first_file(item["image"]) for item in training if "label" not in item]
    if bare:
        raise DatasetError(
            f"`datalist` must have a label for each scan in training, got {bare[0]} without in "
            f"{datalist}: move it to `unlabelled`."
        )
    scans = {name: [str(i["image"]) for i in items] for name, items in sections.items()}
    used = [item for name in ("training", "validation") for item in sections.get(name, [])]
    return {"scans": scans, "labels": labels, "data": data_fingerprint(used)["sha256"]}


def _checked(
    out: Path,
    configs: Path,
    names: Sequence[str | Path],
    train_overlays: Sequence[str | Path],
    knobs: Mapping[str, Any],
) -> list[Path]:
    """Files of configs, or an error where a run's folder is a data set's, or a knob is wrong."""
    for name in ("dataset.json", "imagesTr"):
        if (out / name).exists():
            raise DatasetError(
                f"`out` must be a folder of its own, got {out}, which has {name} of a data set: "
                "choose another."
            )
    files = [config_path(configs, name) for name in names]
    planned = files or [path for path in [out / PLAN] if path.is_file()]
    check_knobs(configs, [*CONFIGS, "inference", *planned, *train_overlays], knobs)
    return files


def _targets(out: Path) -> list[str]:
    """What is written into a run's folder; a plan that is there already is taken."""
    priors = sorted(path.name for path in out.glob("prior_*"))
    return [MODEL, WEIGHTS, LAST, CURVE, "progress.png", RECORD, *priors]


def _begin(out: Path, datalist: str | Path, found: Fingerprint | None, **told: Any) -> None:
    """Write what the model will know, and warn where settings contradict the data."""
    found = found or take_fingerprint(datalist)
    names = [*told["overlays"], *told["train_overlays"]]
    settings = read_settings(told["configs"], names, told["knobs"])
    refuse_window(found, settings)
    for note in contradictions(found, settings):
        print(f"warning: {note}", flush=True)
    describe(out, datalist, found=found, **told)


def _run(
    model: Model,
    configs: Path,
    train_overlays: Sequence[str | Path],
    places: Mapping[str, Any],
    *,
    prior: bool,
) -> None:
    """Estimate the priors that are missing, and train, from the last whole epoch on."""
    out, knobs = model.folder, {**model.knobs, **places, "models_dir": model.folder}
    if prior and not all(prior_path(out, organ).is_file() for organ in model.organs):
        run_bundle(configs, ["prior", *model.overlays], **knobs)
    logs = {"output_dir": out / LOGS, "resume": True}
    names: list[str | Path] = ["train", *model.overlays, *train_overlays]
    run_bundle(configs, names, **{"lines": True, **knobs, **logs})


def adopt(
    models: str | Path,
    *,
    datalist: str | Path | None = None,
    bundle: str | Path = BUNDLE,
    overlays: Sequence[str | Path] = (),
    options: Mapping[str, Any] | None = None,
    labels: Mapping[int, str] | None = None,
) -> Path:
    """Write beside weights of an earlier release, or of MONAI's command, what they were made with.

    Args:
        models: folder with ``model.pt`` and the priors.
        datalist: of the training, whose labels and scans are looked at.
        bundle: folder of the bundle.
        overlays: those of the training that inference needs, too.
        options: knobs of the training; of a network that was trained without prior also
            ``{"prior_dropout": 1}``, where no overlay says so.
        labels: names of the label values; those of ``datalist`` if None.

    Returns:
        ``model.json``.

    Raises:
        DatasetError: there are no weights, or the folder knows its settings already.
        ValueError: no config has one of the ``options``.
    """
    models, configs = Path(models).resolve(), configs_of(bundle)
    if not (models / WEIGHTS).is_file():
        raise DatasetError(f"`models` must be a folder with {WEIGHTS}, got {models}.")
    if (models / MODEL).is_file():
        raise DatasetError(
            f"`models` must have no {MODEL} yet, got {models}: it knows its settings already."
        )
    settings = read_settings(configs, overlays, options)
    organs = settings["organs"]
    names = {**(label_names(datalist) if datalist is not None else {}), **(labels or {})}
    write_model(
        models,
        configs,
        organs={value: names.get(value, f"organ {value}") for value in organs},
        overlays=overlays,
        knobs={**(options or {}), "prior_dropout": settings["prior_dropout"]},
        training=take_fingerprint(datalist).facts() if datalist is not None else {},
    )
    return models / MODEL


def next_command(datalist: str | Path, out: str | Path) -> str:
    """What to do with a trained model."""
    tested = read_datalist(datalist, "test", optional=True)
    if tested and all("label" in item for item in tested):
        return shlex.join(["stipple", "evaluate", str(out), str(datalist)])
    return f"stipple segment SCANS --models {shlex.quote(str(out))} --out results"


def _is_trained(out: Path, *, validated: bool) -> bool:
    final = out / (LAST if validated else WEIGHTS)
    rows = read_csv(out / CURVE) if (out / CURVE).is_file() else []
    return bool(rows) and final.is_file() and not any(out.glob("checkpoint_*.pt"))
