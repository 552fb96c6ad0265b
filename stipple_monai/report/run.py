"""`python -m stipple_monai report`: find out what a path holds, and write its page."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

from stipple_monai.bundle import CURVE, MODEL, read_model, weights_folder
from stipple_monai.errors import DatasetError
from stipple_monai.files import whole_file
from stipple_monai.nifti import NIFTI
from stipple_monai.ownership import claim, owned, refuse_foreign
from stipple_monai.priors import prior_files
from stipple_monai.report.cases import (
    MOST_PICTURES,
    Case,
    datalist_cases,
    name_colours,
    organ_names,
)
from stipple_monai.report.dataset import dataset_page
from stipple_monai.report.page import Page, Section, Table, write_page
from stipple_monai.report.predictions import check_models, predictions_page
from stipple_monai.report.priors import prior_blocks, priors_in, read_prior_files
from stipple_monai.report.provenance import FILE_HEADER, file_rows, versions_table
from stipple_monai.report.results import is_prediction_set
from stipple_monai.report.rounds import is_rounds, rounds_page
from stipple_monai.report.training import training_page
from stipple_monai.visualize import CONVENTION

Kind: TypeAlias = Literal["data set", "prior", "training", "rounds", "predictions"]


def report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    datalist: str | Path | None = None,
    models: str | Path | None = None,
    labels: Mapping[int, str] | None = None,
    logs: str | Path | None = None,
    pictures: int = MOST_PICTURES,
    overwrite: bool = False,
) -> Path:
    """Write one HTML page about a data set, a prior, a training, a self-training or predictions.

    Args:
        run: a datalist or the folder with its ``dataset.json``; ``prior_*.nii.gz`` or a folder of
            such; a folder of models, or one above; that of a self-training; or a folder of
            segmentations.
        out: ``….html``; the Markdown and a folder of its pictures lie beside it. Without it,
            ``report.html`` in the folder of ``run``, or beside a file.
        datalist: whose labelled scans are references for priors and truth for predictions.
        models: folder of the priors, to be drawn on a data set or on predictions.
        labels: names by label value, in place of the datalist's.
        logs: folder of TensorBoard's events of a training.
        pictures: cases with pictures.
        overwrite: replace a report that is there.

    Returns:
        The page's path.

    Raises:
        DatasetError: ``run`` is none of these, or a file of it cannot be read; or there is a
            report already, or a file that is none.
        PriorError: a prior cannot be read.
        ValueError: ``out`` has another ending, or ``pictures`` is negative.
    """
    run = Path(run).absolute()
    kind = detect(run)
    out = _target(run) if out is None else Path(out).absolute()
    if pictures < 0:
        raise ValueError(f"`pictures` must be 0 or more, got {pictures}.")
    beside = _files_folder(out, overwrite=overwrite)
    listed = None if datalist is None else Path(datalist).absolute()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / beside.name
        folder.mkdir()
        page = _page(
            kind,
            run,
            folder,
            datalist=listed,
            models=None if models is None else Path(models).absolute(),
            labels=labels,
            logs=None if logs is None else Path(logs),
            most=pictures,
        )
        given = [path for path in (run, listed) if path is not None]
        _publish(write_page(Path(made) / out.name, page), out, given)
    return out


def detect(run: Path) -> Kind:
    """Tell what a path holds.

    Raises:
        DatasetError: nothing that a report is made of.
    """
    if run.is_file():
        if run.suffix == ".json":
            return "data set"
        if run.name.lower().endswith(NIFTI):
            return "prior"
    elif run.is_dir():
        if is_prediction_set(run):
            return "predictions"
        if is_rounds(run):
            return "rounds"
        if (run / CURVE).is_file() or next(run.glob("*.pt"), None) is not None:
            return "training"
        if prior_files(run):
            return "prior"
        if (run / "dataset.json").is_file():
            return "data set"
        if weights_folder(run) != run.resolve():
            return "training"
    what = "which does not exist" if not run.exists() else "where none of these is"
    raise DatasetError(
        "`run` must be a datalist (.json), a prior (.nii.gz), or a folder with dataset.json, "
        "prior_*.nii.gz, curve.csv or *.pt, rounds, or *_seg.nii.gz, got "
        f"{run}, {what}."
    )


def _target(run: Path) -> Path:
    if run.is_dir():
        return run / "report.html"
    stem = run.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".json")
    return run.with_name(f"{stem}_report.html")


def _files_folder(out: Path, *, overwrite: bool) -> Path:
    """The folder beside a page that may be written."""
    if out.suffix != ".html":
        raise ValueError(f"`out` must end in .html, got {out}.")
    beside = out.with_name(f"{out.stem}_files")
    pages = [out, out.with_suffix(".md")]
    there = [path for path in (*pages, beside) if path.exists()]
    if there and not overwrite:
        raise DatasetError(
            f"`out` must not exist yet, got {there[0]}: choose another, or replace it with "
            "--overwrite."
        )
    refuse_foreign(out.parent, pages)
    return beside


def _page(
    kind: Kind,
    run: Path,
    folder: Path,
    *,
    datalist: Path | None,
    models: Path | None,
    labels: Mapping[int, str] | None,
    logs: Path | None,
    most: int,
) -> Page:
    run = weights_folder(run) if kind == "training" else run
    models = None if models is None else weights_folder(models)
    labels = labels or _known_names(models, run, run.parent)
    if kind == "data set":
        file = run / "dataset.json" if run.is_dir() else run
        given = None if models is None else priors_in(models)
        return dataset_page(file, folder, labels=labels, priors=given, most=most)
    if kind == "predictions":
        given = None if models is None else priors_in(models)
        page = predictions_page(
            run, folder, labels=labels, datalist=datalist, priors=given, most=most
        )
        return replace(page, lead=[*page.lead, *check_models(run, models)])
    if kind == "rounds":
        return rounds_page(run, folder, labels=labels or _known_names(run / "round_0" / "models"))
    references = _references(datalist)
    organs = organ_names(labels, datalist)
    if kind == "training":
        return training_page(run, folder, organs=organs, references=references, logs=logs)
    return _prior_page(run, folder, organs=organs, references=references)


def _known_names(*folders: Path | None) -> dict[int, str]:
    """Names of the organs as the first of these folders that is a model's knows them."""
    for folder in folders:
        if folder is not None and (folder / MODEL).is_file():
            organs = read_model(folder).organs
            # numbers are no names: a datalist may know better
            return {k: name for k, name in organs.items() if name != f"organ {k}"}
    return {}


def _references(datalist: Path | None) -> list[Case]:
    """The labelled cases of a datalist, those of the test first: no prior was made of them."""
    if datalist is None:
        return []
    sections = datalist_cases(datalist)
    order = sorted(sections, key=lambda name: (name != "test", name != "validation"))
    return [case for name in order for case in sections[name] if case.truth is not None]


def _prior_page(
    run: Path, folder: Path, *, organs: Mapping[int, str], references: Sequence[Case]
) -> Page:
    found = prior_files(run) if run.is_dir() else [run]
    priors, files = read_prior_files(found)
    blocks = prior_blocks(priors, folder, organs=organs, references=references)
    lead = [f"{run}.", f"{CONVENTION} Positions and sizes are in mm, RAS."]
    table = Table("Files", FILE_HEADER, file_rows(files.values()), folded=True)
    content = [Section("Priors", blocks), Section("Files and versions", [table, versions_table()])]
    names = {k: organs.get(k, f"organ {k}") for k in priors}
    title = f"Prior {run.parent.name}/{run.name}"
    return Page(title, lead, content, colours=name_colours(names))


def _publish(made: Path, out: Path, inputs: Sequence[Path]) -> None:
    """Copy a page, what lies beside it first, so that whoever finds the page finds all of it.

    Pictures of an older page are removed when the new one is whole; other files stay.
    """
    beside = out.with_name(f"{out.stem}_files")
    pictures = sorted(made.with_name(beside.name).iterdir())
    pairs = [(path, beside / path.name) for path in pictures]
    pairs += [(made.with_suffix(".md"), out.with_suffix(".md")), (made, out)]
    before = {name for name in owned(out.parent) if Path(name).parent == Path(beside.name)}
    claim(out.parent, [target for _, target in pairs], inputs=inputs)
    for source, target in pairs:
        with whole_file(target) as part:
            shutil.copyfile(source, part)
    for name in before - {f"{beside.name}/{path.name}" for path in pictures}:
        (out.parent / name).unlink(missing_ok=True)
