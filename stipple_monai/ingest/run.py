"""From a dataset as it is downloaded or exported to one in the layout of the MSD, with a QA report.

The folder that is written holds::

    ingest.json             what it is made of, and how
    imagesTr/NAME.nii.gz    scans with label
    labelsTr/NAME.nii.gz    their label maps, uint8, on the scan's grid
    imagesTs/NAME.nii.gz    scans without
    qa/NAME.json            the case's record, written last: the case is done
    qa.json, qa.md          the QA report
    dataset.json            the datalist, when no case was refused
    logs/                   a lock while a process works here

Files are whole or absent. The same command goes on with the cases that have no record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.bundle import only_process
from stipple_monai.data import axis_names, plain_name, write_nifti
from stipple_monai.errors import DatasetError
from stipple_monai.files import fingerprint, read_json, remove_unfinished, write_json
from stipple_monai.ingest.cases import Case, Layout, Source
from stipple_monai.ingest.folders import listed
from stipple_monai.ingest.pairs import Options, read_pair
from stipple_monai.ingest.qa_report import QA_JSON, QA_MARKDOWN, write_qa_report
from stipple_monai.ingest.sources import find_cases
from stipple_monai.label_values import IGNORED
from stipple_monai.nifti import UNREADABLE
from stipple_monai.ownership import begin_set, replace_set
from stipple_monai.progress import follow

_SETTINGS, _RECORDS, _DATALIST = "ingest.json", "qa", "dataset.json"


def ingest(
    source: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    layout: Layout | None = None,
    options: Options | None = None,
    skip_refused: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Read a dataset, check every scan and label, and write it in the layout of the MSD.

    A scan or label that cannot be used is refused; the others go on, and the QA report has all.

    Args:
        source: folder of the dataset, in one of the layouts of ``docs/ingest.md``.
        out: folder to write; a begun one of the same command goes on.
        labels: where the labels are, if not in ``source``.
        layout: of the source; detected where None.
        options: how labels are read, judged, repaired and called; names that the source has are
            added.
        skip_refused: write the datalist without the refused cases, rather than none.
        overwrite: replace another or an earlier ingest, once this one is whole; other files stay.
        progress: tell how far it is.

    Returns:
        Path of ``dataset.json``.

    Raises:
        DatasetError: the source holds no scans, or unusable ones that are not to be skipped; or
            ``out`` holds something else.
    """
    root, out, options = Path(source), Path(out).resolve(), options or Options()
    for given in (root, *([Path(labels)] if labels is not None else [])):
        if out.is_relative_to(given.resolve()):
            raise DatasetError(f"`out` must not lie in the source, got {out} in {given}.")
    found = find_cases(root, labels=labels, layout=layout)
    chosen = options.choose or {}
    # what values of the source mean says nothing of those that they are turned into
    options = options._replace(
        names={**({} if chosen else found.labels), **options.names}, ignore=found.ignore
    )
    settings = _settings(found, labels, options, chosen)
    with only_process(out):
        work = _begin(out, settings, found, overwrite=overwrite)
        records = [
            _case(case, work, options)
            for case in follow(found.cases, "ingest", unit="case", shown=progress)
        ]
        write_qa_report(work, records, skipped=found.skipped, about=settings)
        _raise_refused(records, work / QA_MARKDOWN, skip=skip_refused)
        write_json(work / _DATALIST, _datalist(found, records, options))
        if work != out:
            replace_set(work, out, command="ingest", last=_DATALIST)
    return out / _DATALIST


def _raise_refused(records: Sequence[Mapping[str, Any]], table: Path, *, skip: bool) -> None:
    """Raise where cases were refused, or with ``skip`` where all were."""
    refused = [record for record in records if record["status"] == "refused"]
    if not refused or (skip and len(refused) < len(records)):
        return
    advice = "" if len(refused) == len(records) else " Without them: --skip-refused."
    raise DatasetError(
        f"`source` must have usable cases, got {len(refused)} of {len(records)} that are refused, "
        f"{refused[0]['name']}: {refused[0]['reason']} All are in {table}.{advice}"
    )


def _settings(
    found: Source, labels: str | Path | None, options: Options, chosen: Mapping[str, int]
) -> dict[str, Any]:
    """What a dataset is made of, and how."""
    return {
        "source": str(found.root.resolve()),
        "labels": None if labels is None else str(Path(labels).resolve()),
        "layout": found.layout,
        "choose": dict(chosen),
        "names": {str(value): name for value, name in options.names.items()},
        "flip": axis_names(options.flip),
        "repair": options.repair,
        "ignore_label_header": options.ignore_header,
        "ignore": options.ignore,
    }


def _begin(out: Path, settings: Mapping[str, Any], found: Source, *, overwrite: bool) -> Path:
    """Claim the folder for the settings, or begin a part that replaces it at the end."""
    path = out / _SETTINGS
    ours = path.is_file() and _read(path) == settings
    others = [p for p in listed(out) if p.name != "logs"]
    if not (ours or overwrite) and others:
        raise DatasetError(
            f"`out` must be empty or hold this same ingest, got {out}, which has {others[0].name}: "
            "choose another folder, or replace what is there with --overwrite."
        )
    parts = ("imagesTr", "labelsTr", "imagesTs")
    targets = [f"{part}/{case.name}.nii.gz" for case in found.cases for part in parts]
    targets += [f"{_RECORDS}/{case.name}.json" for case in found.cases]
    targets += [_SETTINGS, _DATALIST, QA_JSON, QA_MARKDOWN]
    inputs = [p for c in found.cases for p in (*c.images, *([c.label] if c.label else []))]
    work = begin_set(
        out,
        targets,
        command="ingest",
        made_with=settings,
        inputs=inputs,
        overwrite=overwrite and bool(others),
    )
    if work != out:
        remove_unfinished(work)
    if not (work / _SETTINGS).is_file():
        write_json(work / _SETTINGS, settings)
    return work


def _case(case: Case, out: Path, options: Options) -> dict[str, Any]:
    """Write a case, unless it is done; its record."""
    path, inputs = out / _RECORDS / f"{case.name}.json", _fingerprint(case)
    if path.is_file():
        record = _read(path)
        if record.get("inputs") != inputs:
            raise DatasetError(
                f"`out` has {case.name} as it was before {case.images[0]} or its label changed: "
                "choose another folder, or replace what is there with --overwrite."
            )
        return record
    try:
        plain_name(case.name, "name")
        pair = read_pair(case, options)
    except (*UNREADABLE, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return {"name": case.name, "status": "refused", "reason": reason}
    image = f"images{'Ts' if pair.label is None else 'Tr'}/{case.name}.nii.gz"
    write_nifti(out / image, pair.image, pair.affine)
    files = [image]
    if pair.label is not None:
        files.append(f"labelsTr/{case.name}.nii.gz")
        write_nifti(out / files[1], pair.label, pair.affine)
    about = {"test": case.test, "section": case.section}
    record = {**pair.record, **about, "files": files, "inputs": inputs}
    write_json(path, record)
    return record


def _datalist(
    found: Source, records: Sequence[Mapping[str, Any]], options: Options
) -> dict[str, Any]:
    usable = [record for record in records if record["status"] != "refused"]
    patients = {record["image"]["patient"] for record in usable}
    # an anonymizer that calls all patients the same does not tell them apart
    known = len(patients) > 1
    sections: dict[str, list[Any]] = {"training": [], "unlabelled": [], "test": []}
    for record in usable:
        item = {"image": f"./{record['files'][0]}"}
        if record["label"]:
            item["label"] = f"./{record['files'][1]}"
        if known and record["image"]["patient"]:
            item["patient"] = record["image"]["patient"]
        section = "test" if record["test"] else "training" if record["label"] else "unlabelled"
        sections.setdefault(_own_section(record) or section, []).append(item)
    kinds = {record["image"]["modality"] for record in usable}
    modality = found.modality or {"0": (kinds.pop() if len(kinds) == 1 else None) or "unknown"}
    return {
        "name": found.root.resolve().name,
        "description": f"stipple_monai ingest of the layout {found.layout}",
        "tensorImageSize": "3D",
        "modality": modality,
        "labels": _label_names(usable, options),
        "numTraining": len(sections["training"]),
        "numTest": len(sections["test"]),
        **{name: items for name, items in sections.items() if items},
    }


def _own_section(record: Mapping[str, Any]) -> str:
    """The section of the source's own datalist, but for scans without label in ``training``."""
    own = str(record["section"])
    return "" if own == "training" and not record["label"] else own


def _label_names(records: Iterable[Mapping[str, Any]], options: Options) -> dict[str, str]:
    """Names of the label values, which must not mean one thing here and another there."""
    by_value: dict[int, dict[str, str]] = {}
    for record in records:
        for organ in (record["label"] or {"organs": []})["organs"]:
            called = by_value.setdefault(organ["value"], {})
            if organ["name"]:
                called.setdefault(organ["name"], record["name"])
    for value, called in by_value.items():
        if len(called) > 1 and not options.choose:
            (one, first), (two, second) = list(called.items())[:2]
            raise DatasetError(
                f"A label value must be one organ, got {value} for {one!r} in {first} and for "
                f"{two!r} in {second}: say with --map NAME=LABEL which is which."
            )
    named = {value: " + ".join(called) for value, called in by_value.items() if called}
    known = {0: "background", **named, **options.names}
    values = sorted({0, *by_value, *options.names} - {IGNORED})
    return {str(value): known.get(value, f"organ {value}") for value in values}


def _fingerprint(case: Case) -> str:
    """Changes when a file of the case does."""
    return fingerprint(*case.images, *([case.label] if case.label else []))[:16]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise DatasetError(f"{path} must be JSON of an ingest, got something else.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} must be JSON of an ingest, got {type(content).__name__}.")
    return content
