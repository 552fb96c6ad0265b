"""A study: methods × label proportions × folds × seeds, and the report that compares them.

Its folder grows, and nothing in it is computed twice::

    study.json                          what was asked for; a rerun must not contradict it
    cells/p030_fold0_seed0/             a label proportion, fold and seed
        training.json, test.json        datalists; the first knows nothing of the test fold
        networks/NETWORK/               rounds of self-training, see `self_training`
        methods/METHOD/                 predictions, positions.csv and scores.csv on the test fold
    results.csv, curves.csv, rounds.csv, report.md, report.html, figures/

A folder under ``methods`` is there when the cell is finished. Whoever works on a job holds a lock,
so several computers that share the folder may run the same command. With ``workers`` or Slurm,
jobs go through submitit, which needs no server that would have to be let through a hospital's
firewall, and runs the same on one computer and on a cluster's queue; a cell itself may train on
several GPUs by torchrun.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stipple_monai.bundle import (
    BUNDLE,
    check_knobs,
    config_digests,
    configs_of,
    progress_only,
    run_bundle,
    whole_folder,
)
from stipple_monai.data import label_names, read_datalist, write_datalist
from stipple_monai.errors import StudyError
from stipple_monai.files import (
    read_csv,
    read_json,
    remove_unfinished,
    write_csv,
    write_json,
    write_text,
)
from stipple_monai.handlers import data_fingerprint
from stipple_monai.ownership import (
    CONTENTS,
    begun_with,
    contradictions,
    keep_settings,
    refuse_contradictions,
    refuse_foreign,
)
from stipple_monai.priors import SpatialPrior, prior_path
from stipple_monai.progress import Stopwatch
from stipple_monai.report import Picture
from stipple_monai.results import SCORE_COLUMNS
from stipple_monai.self_training import QUALITY, QUALITY_COLUMNS, self_train
from stipple_monai.simulation import write_phantom
from stipple_monai.study.plan import Job, Method, Study, divide, plan_jobs, read_methods, read_study
from stipple_monai.study.report import STUDY, TOLD, names_of_study, write_report
from stipple_monai.study.workers import submit_jobs
from stipple_monai.visualize import draw_comparisons

OUTPUTS = ("results.csv", "curves.csv", "rounds.csv", "report.md", "report.html", "figures")
"""What a study writes into its folder, beside its cells."""

CONFIGS = ("prior", "train", "inference", "pseudo_label", "evaluate")

CELL = ("method", "proportion", "fold", "seed")


def run_study(
    config: str | Path,
    out: str | Path,
    *,
    datalist: str | Path | None = None,
    bundle: str | Path = BUNDLE,
    workers: int = 0,
    slurm: Mapping[str, Any] | None = None,
) -> Path:
    """Run what is missing of a study, then write its tables and its report.

    Args:
        config: the study's YAML file, see :class:`stipple_monai.study.Study`.
        out: the study's folder.
        datalist: in place of the study's own.
        bundle: folder of the bundle.
        workers: jobs at a time, each in a process of its own; 0: one after the other in this one.
        slurm: parameters of ``submitit.AutoExecutor``, such as ``{"slurm_partition": "gpu",
            "gpus_per_node": 1, "timeout_min": 600}``: jobs go to Slurm's queue, ``workers`` at a
            time.

    Returns:
        ``report.html``.

    Raises:
        DatasetError: the study or its data cannot be used, or contradicts what ``out`` began with.
        ValueError: no config has one of the study's or its methods' options.
        StudyError: cells failed. The others were finished, and the report is of those.
        ImportError: submitit is wanted and not installed.
    """
    study, out, configs = read_study(config), Path(out).resolve(), configs_of(bundle)
    if datalist is not None:
        study = dataclasses.replace(study, datalist=str(Path(datalist).resolve()), phantom=None)
    methods = read_methods(configs.parent / "studies" / "methods.yaml", study)
    _check_options(study, methods, configs)
    _remember(out, study, methods, configs)
    source = _datalist(study, out)
    jobs = [job for job in plan_jobs(study, methods) if _is_unfinished(out, job)]
    print(f"{len(jobs)} of {len(plan_jobs(study, methods))} jobs to do in {out}", flush=True)
    arguments = [(study, job, source, out, configs) for job in jobs]
    if workers or slurm:
        failed = submit_jobs(_attempt, arguments, out / "jobs", max(workers, 1), slurm)
    else:
        failed = _one_by_one(arguments)
    report = collect(study, plan_jobs(study, methods), out)
    if failed:
        raise StudyError(
            f"{len(failed)} of {len(jobs)} jobs failed, see {failed[0]}. The report has the "
            "others. Remove the cause and run the same command again."
        )
    return report


def _check_options(study: Study, methods: Sequence[Method], configs: Path) -> None:
    """Find before anything is written what would fail, or change nothing, after a training."""
    for method in methods:
        overlays = [*method.overlays, *study.overlays]
        names = [*CONFIGS, *overlays, *method.train, *method.evaluate]
        check_knobs(configs, names, {**study.options, **method.options})
        names = ["inference", "evaluate", *overlays, *method.evaluate]
        check_knobs(configs, names, method.evaluate_options)


def run_job(study: Study, job: Job, datalist: Path, out: Path, configs: Path) -> None:
    """Train the job's network, round by round, and test each of its methods."""
    place = out / "cells" / job.place
    network = place / "networks" / job.network
    network.mkdir(parents=True, exist_ok=True)
    training, testing = place / "training.json", place / "test.json"
    with FileLock(f"{network}.lock", blocking=False):
        remove_unfinished(network)
        sections, test = divide(read_datalist(datalist, "training"), study, job)
        labels = {str(value): name for value, name in label_names(datalist).items()}
        write_datalist(training, sections, metadata={"labels": labels})
        write_datalist(testing, {"test": test}, metadata={"labels": labels})
        for method in job.methods:
            if not (place / "methods" / method.name).exists():
                _run_cell(study, job, method, place, configs)


def _run_cell(study: Study, job: Job, method: Method, place: Path, configs: Path) -> None:
    network = place / "networks" / job.network
    last = self_train(
        place / "training.json",
        network,
        bundle=configs.parent,
        overlays=[*method.overlays, *study.overlays],
        train_overlays=method.train,
        shares=method.shares_at(job.proportion) if _unlabelled(place) else (),
        seed=job.seed,
        options={**study.options, **method.options},
        **method.self_train,
    )
    made_with = {"cell": job.place, "method": dataclasses.asdict(method), "network": str(last)}
    with whole_folder(place / "methods" / method.name, made_with=made_with) as part:
        names = ["inference", "evaluate", *method.overlays, *method.evaluate, *study.overlays]
        knobs = {
            **{**study.options, **method.options, **method.evaluate_options},
            "bundle_root": part,
            "models_dir": last / "models",
            "datalist": place / "test.json",
            "reference_datalist": place / "training.json",
            "reference_seed": job.seed,
            "output_dir": part,
        }
        run_bundle(configs, names, **{"lines": True, **knobs})
        write_json(part / "network.json", {"round": last.name})


def _unlabelled(place: Path) -> bool:
    return bool(read_datalist(place / "training.json", "unlabelled", optional=True))


def _is_unfinished(out: Path, job: Job) -> bool:
    folder = out / "cells" / job.place / "methods"
    return any(not (folder / method.name).exists() for method in job.methods)


def _attempt(study: Study, job: Job, datalist: Path, out: Path, configs: Path) -> Path | None:
    """Run a job; the file with its error, if it failed."""
    error = out / "cells" / job.place / f"{job.network}.error.txt"
    error.unlink(missing_ok=True)
    try:
        with progress_only():
            run_job(study, job, datalist, out, configs)
    except Timeout:
        print(f"{job.place}, {job.network}: another process has it", flush=True)
    except Exception as problem:
        write_text(error, traceback.format_exc())
        print(f"{job.place}, {job.network} failed: {problem}", flush=True)
        return error
    return None


def _one_by_one(arguments: Sequence[tuple[Study, Job, Path, Path, Path]]) -> list[Path]:
    say, failed = Stopwatch().say, []
    for number, job in enumerate(arguments, 1):
        names = ", ".join(method.name for method in job[1].methods)
        say(f"job {number} of {len(arguments)}: {job[1].place}: {names}")
        failed.append(_attempt(*job))
    return [error for error in failed if error]


def _remember(out: Path, study: Study, methods: Sequence[Method], configs: Path) -> None:
    """Refuse a study that contradicts the cells that are there; it may ask for more of them."""
    path = out / STUDY
    asked = json.loads(json.dumps(dataclasses.asdict(study)))
    free = ("title", "dataset", "notes", "organ", "definitions")
    for name in (*free, "methods", "proportions", "seeds", "run_folds"):
        del asked[name]
    if study.datalist is not None:
        asked["data"] = _digest(read_datalist(study.datalist, "training"))
    defined = {m.name: json.loads(json.dumps(dataclasses.asdict(m))) for m in methods}
    overlays = [name for m in methods for name in (*m.overlays, *m.train, *m.evaluate)]
    contents = config_digests(configs, [*CONFIGS, *study.overlays, *overlays])
    begun = begun_with(path)
    if begun is None:
        refuse_foreign(out, [out / name for name in OUTPUTS])
        begun = {"study": asked, "methods": {}}
    # entries of a method that an older version did not have yet
    new = json.loads(json.dumps(dataclasses.asdict(Method(""))))
    known = {name: {**new, **entries} for name, entries in begun["methods"].items()}
    other = contradictions(begun["study"], asked) + contradictions(known, defined)
    refuse_contradictions(path, other + contradictions(begun, {CONTENTS: contents}))
    more = {"methods": defined, CONTENTS: contents}
    grown = {name: {**begun.get(name, {}), **added} for name, added in more.items()}
    told = {name: getattr(study, name) for name in ("title", "dataset", "notes")}
    keep_settings(path, {"study": asked, **grown, TOLD: told})


def _digest(items: Sequence[Mapping[str, Any]]) -> str:
    """Changes when an item or the content of a file does."""
    listed = json.dumps([items, data_fingerprint(items)], sort_keys=True, default=str)
    return hashlib.sha256(listed.encode()).hexdigest()


def _datalist(study: Study, out: Path) -> Path:
    if study.phantom is None:
        return Path(str(study.datalist))
    return write_phantom(out / "phantom", **study.phantom)


def collect(study: Study, jobs: Sequence[Job], out: Path) -> Path:
    """Write the tables of all finished cells of the study, and the report.

    Returns:
        ``report.html``.

    Raises:
        StudyError: no cell is finished.
    """
    results, curves, rounds = [], [], []
    for job in jobs:
        place = out / "cells" / job.place
        for method in job.methods:
            folder = place / "methods" / method.name
            if not folder.exists():
                continue
            cell = [method.name, job.proportion, job.fold, job.seed]
            last = read_json(folder / "network.json")["round"]
            network = place / "networks" / job.network
            bins = _bins(study, method, network / last / "models")
            for row in read_csv(folder / "scores.csv"):
                results.append([*cell, bins, *(row.get(name, "") for name in SCORE_COLUMNS)])
            for number in range(int(last.removeprefix("round_")) + 1):
                curve = read_csv(network / f"round_{number}" / "models" / "curve.csv")
                curves += [[*cell, number, *row.values()] for row in curve]
                if number:
                    quality = read_csv(network / f"round_{number}" / "pseudo_labels" / QUALITY)
                    rounds += [[*cell, number, *row.values()] for row in quality]
    if not results:
        raise StudyError(f"No cell is finished in {out}, so there is nothing to report.")
    write_csv(out / "results.csv", [*CELL, "bins", *SCORE_COLUMNS], results)
    epochs = ["round", "epoch", "loss", "train_dice", "validation_dice"]
    write_csv(out / "curves.csv", [*CELL, *epochs], curves)
    write_csv(out / "rounds.csv", [*CELL, "round", *QUALITY_COLUMNS], rounds)
    return write_report(
        out,
        title=study.title,
        dataset=study.dataset,
        notes=study.notes,
        pictures=_draw(study, jobs, out),
        organs=names_of_study(out, study.datalist),
    )


def _bins(study: Study, method: Method, models: Path) -> str:
    if "baseline" in (*method.overlays, *method.evaluate):
        return ""
    if method.options.get("smoothing_mm", "auto") is None and not method.options.get("bins"):
        return "all"
    prior = SpatialPrior.load(prior_path(models, study.organ))
    return "" if prior.smoothing_mm else str(prior.bins)


def _compared(out: Path, job: Job) -> list[Path]:
    methods = out / "cells" / job.place / "methods"
    return [methods / "baseline", methods / "stipple_single"]


def _draw(study: Study, jobs: Sequence[Job], out: Path) -> list[Picture]:
    """Figure 4, from the first finished fold with the fewest labels."""
    finished = [
        job
        for job in sorted(jobs, key=lambda j: (j.proportion, j.fold, j.seed))
        if "stipple_single" in {method.name for method in job.methods}
        and all(f.exists() for f in _compared(out, job))
    ]
    if not finished:
        return []
    job = finished[0]
    place, folders = out / "cells" / job.place, _compared(out, job)
    models = place / "networks" / job.network / "round_0" / "models"
    drawn = draw_comparisons(
        read_datalist(place / "test.json", "test"),
        SpatialPrior.load(prior_path(models, study.organ)),
        out / "figures",
        baseline=folders[0],
        stipple=folders[1],
    )
    where = f"fold {job.fold}, seed {job.seed}, {job.proportion:.0%} of labels"
    return [
        Picture(
            kind.capitalize(),
            path,
            f"The case and slice of {where} with the most such voxels of organ {study.organ}.",
            wide=True,
        )
        for kind, path in drawn.items()
    ]
