"""Scans to segmentations: files, folders, DICOM series or a datalist through the bundle.

The folder of the results holds::

    settings.json           what they were made with
    NAME_seg.nii.gz         label map on the scan's grid, uint8
    NAME_prob.nii.gz        on request: probabilities, background first, float32
    NAME_seg.dcm            on request: the label map as DICOM SEG
    NAME_volumes.json       the scan's record, written last: the scan is done
    volumes.csv, volumes.json
    nnunet/CASE.nii.gz      on request: the label maps again, called as nnU-Net calls its own
    logs/                   a lock while a process works here

Files are whole or absent. The same command goes on with the scans that have no record.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.bundle import (
    BUNDLE,
    CALIBRATION,
    WEIGHTS,
    Model,
    check_knobs,
    check_weights,
    config_path,
    configs_of,
    only_process,
    read_model,
    run_bundle,
    weights_folder,
)
from stipple_monai.data import first_file, label_names, write_datalist
from stipple_monai.errors import DatasetError
from stipple_monai.files import sha256, whole_file
from stipple_monai.priors import SpatialPrior, prior_files, prior_path
from stipple_monai.results import (
    add_remarks,
    finished,
    has_highdicom,
    rename_organs,
    write_tables,
)
from stipple_monai.segmentation.folder import (
    DICOM,
    PROBABILITIES,
    SEG,
    begin_results,
    remove_stale,
)
from stipple_monai.segmentation.scans import find_scans, sound_scans

NNUNET = "nnunet"
FREE = (
    *("amp", "batch_size", "cache_rate", "device", "num_workers", "sw_batch_size"),
    *("lines", "progress"),
)
"""Knobs that change how much is computed at once, not what."""


def segment(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    models: str | Path,
    bundle: str | Path = BUNDLE,
    section: str = "test",
    overlays: Sequence[str | Path] = (),
    options: Mapping[str, Any] | None = None,
    labels: Mapping[int, str] | None = None,
    organs: Sequence[int | str] = (),
    probabilities: bool = False,
    dicom_seg: bool = False,
    nnunet_names: bool = False,
    overwrite: bool = False,
) -> Path:
    """Segment scans with a trained bundle.

    Args:
        inputs: NIfTI files, folders of such, folders that each hold one DICOM series or a tree of
            them, and datalists (``.json``), see `stipple_monai.segmentation.scans`. Scans with the
            same file name are told apart by their folders.
        out: folder of the results; a begun one goes on.
        models: folder with ``model.pt``, the priors and ``model.json``, which has the settings; or
            one above, see `stipple_monai.bundle.weights_folder`.
        bundle: folder of the bundle.
        section: of the datalists.
        overlays: names or paths of configs on top of inference; the folder's own need not be
            given, and others contradict it.
        options: knobs of the configs, unless they contradict the folder.
        labels: names of the label values; those that the folder knows where ``None``. Other names
            do not segment anew.
        organs: label values or names of those that are wanted; the others are segmented with them,
            since they help to place them, and left out of label maps and tables. All if empty.
        probabilities: also write those.
        dicom_seg: also write DICOM SEG; all inputs must be DICOM series.
        nnunet_names: also write the label maps as ``nnunet/CASE.nii.gz``, where scans are called
            ``CASE_0000.nii.gz``, for tools that compare nnU-Net's results.
        overwrite: segment the scans anew and replace what is there.

    Returns:
        ``volumes.csv``.

    Raises:
        DatasetError: an input cannot be segmented; ``models`` has no weights, does not know its
            settings, or contradicts ``overlays`` or ``options``; or ``out`` has other results, or
            results made with other settings.
        ValueError: no config has one of the ``options``, the network not one of the ``organs`` or
            ``labels``, or several organs have the name of one of the ``organs``.
        ImportError: ``dicom_seg`` without highdicom.
    """
    configs, out = configs_of(bundle), Path(out).resolve()
    model = _known_model(weights_folder(models), dicom_seg=dicom_seg)
    used: list[str | Path] = ["inference", *model.overlays, "volumes"]
    check_knobs(configs, used, options or {}, trained=True)
    model.agree(configs, overlays=overlays, options=options, free=FREE)
    items, faults = sound_scans(_found(model, inputs, section), out, dicom_seg=dicom_seg)
    names = _names(model, inputs, labels or {})
    flags = {"probabilities": probabilities, "dicom_seg": dicom_seg}
    knobs = {**model.knobs, **(options or {}), **_wanted(model, organs, labels or {})}
    copies = _nnunet_names(items) if nnunet_names else {}
    endings = [SEG, *[PROBABILITIES] * probabilities, *[DICOM] * dicom_seg]
    with only_process(out):
        settings = {**_identity(model, configs, used, knobs), "knobs": knobs, **flags}
        kinds: dict[str, Any] = {"endings": endings, "others": list(copies)}
        missing = begin_results(out, items, settings, overwrite=overwrite, **kinds)
        given = {**flags, **knobs, "models_dir": model.folder}
        faults += _run_all(configs, out, missing, used, given, labels=names)
        remove_stale(out, [item["name"] for item in items], endings)
        rename_organs(out, names)
        add_remarks(out, priors=_priors(model), training=model.training)
        tables = write_tables(out)
        _copy(out, copies)
    _raise_first(faults, tables)
    return tables


def _found(model: Model, inputs: Sequence[str | Path], section: str) -> list[dict[str, Any]]:
    """The scans of the inputs, of the model's channels and modality."""
    channels = int(model.values().get("image_channels", 1))
    modality = str(model.training.get("modality"))
    return find_scans(inputs, section=section, channels=channels, modality=modality)


def _raise_first(faults: Sequence[DatasetError], tables: Path) -> None:
    """Raise the first of several faults, with how many there are."""
    if faults:
        failed = f" {len(faults)} scans failed." if len(faults) > 1 else ""
        raise DatasetError(f"{faults[0]}{failed} The others are in {tables}.")


def _known_model(models: Path, *, dicom_seg: bool) -> Model:
    check_weights(models)
    if dicom_seg and not has_highdicom:
        raise ImportError("DICOM SEG needs highdicom: pip install 'stipple-monai[dicom]'.")
    return read_model(models)


def _identity(
    model: Model, configs: Path, used: Sequence[str | Path], knobs: Mapping[str, Any]
) -> dict[str, Any]:
    """Contents of the weights, priors, calibration and configs that results are made with."""
    return {
        "models": {p.name: sha256(p) for p in _files_of_model(model.folder, knobs)},
        "configs": {Path(name).name: sha256(config_path(configs, name)) for name in used},
    }


def _run_all(
    configs: Path, out: Path, missing: Sequence[Mapping[str, Any]], *arguments: Any, **options: Any
) -> list[DatasetError]:
    """Segment scans; those that stop it are left out, and what is wrong with them is returned.

    Raises:
        DatasetError: something else than a scan stopped it.
    """
    left: list[Mapping[str, Any]] = list(missing)
    faults: list[DatasetError] = []
    while left:
        try:
            _run(configs, out, left, *arguments, **options)
        except _BadScanError as error:
            if len(missing) == 1:
                raise
            faults.append(error)
            done = {*finished(out), error.name}
            left = [item for item in left if item["name"] not in done]
        else:
            left = []
    return faults


class _BadScanError(DatasetError):
    """A scan cannot be segmented; others may."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def _names(model: Model, inputs: Sequence[str | Path], labels: Mapping[int, str]) -> dict[int, str]:
    """Names of the organs: those that are given, that the folder knows, or that a datalist has."""
    datalists = [path for path in inputs if str(path).endswith(".json")]
    listed = next(filter(None, map(label_names, datalists)), {})
    known = {k: name for k, name in model.organs.items() if name != f"organ {k}"}
    return {**model.organs, **listed, **known, **labels}


def _wanted(
    model: Model, organs: Sequence[int | str], labels: Mapping[int, str]
) -> dict[str, list[int]]:
    """The knob of the organs that are wanted, by value or name; none where all are."""
    # names may be those of a whole list, with the background
    strange = [f"{value}={labels[value]}" for value in labels if value not in {0, *model.organs}]
    _refuse_unknown("labels", strange, model.organs)
    names = {value: labels.get(value, name) for value, name in model.organs.items()}
    by_name: dict[str, list[int]] = {}
    for value, name in names.items():
        by_name.setdefault(name.casefold(), []).append(value)
    by_name |= {str(value): [value] for value in names}
    asked = [str(organ) for organ in organs]
    _refuse_unknown("organs", [o for o in asked if o.casefold() not in by_name], names)
    for organ in asked:
        if len(meant := by_name[organ.casefold()]) > 1:
            *others, last = map(str, meant)
            raise ValueError(
                f"`organs` must name one organ each, got {organ}, the name of {', '.join(others)} "
                f"and {last}: give the values of those that are wanted."
            )
    wanted = {by_name[organ.casefold()][0] for organ in asked}
    return {"wanted": sorted(wanted)} if wanted else {}


def _refuse_unknown(option: str, unknown: Sequence[str], names: Mapping[int, str]) -> None:
    """Raise where organs are asked for, or named, that the network does not have."""
    if unknown:
        known = ", ".join(f"{value} ({name})" for value, name in names.items())
        raise ValueError(
            f"`{option}` must be among those of the network, {known}, got {unknown[0]}: "
            "give one of these."
        )


def _nnunet_names(items: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Files that nnU-Net would write, and the names of their scans."""
    files = {
        f"{NNUNET}/{re.sub('_[0-9]{4}$', '', item['name'])}.nii.gz": item["name"] for item in items
    }
    if len(files) < len(items):
        raise DatasetError(
            "Scans must have names of their own where nnU-Net's are asked for, got two that differ "
            "in the number at the end: leave --nnunet-names out."
        )
    return files


def _copy(out: Path, copies: Mapping[str, str]) -> None:
    """Label maps under other names, of the scans that have one."""
    for copy, name in copies.items():
        if (segmented := out / f"{name}{SEG}").is_file():
            with whole_file(out / copy) as part:
                shutil.copyfile(segmented, part)


def _run(
    configs: Path,
    out: Path,
    items: Sequence[Mapping[str, Any]],
    names: Sequence[str | Path],
    knobs: Mapping[str, Any],
    *,
    labels: Mapping[int, str],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        datalist = Path(folder) / "scans.json"
        metadata = {"labels": {str(value): name for value, name in labels.items()}}
        write_datalist(datalist, {"test": items}, metadata=metadata)
        places = {
            "bundle_root": configs.parent,
            "datalist": datalist,
            "output_dir": out,
            "section": "test",
        }
        try:
            run_bundle(configs, names, **{"lines": True, **places, **knobs})
        except (RuntimeError, ValueError, OSError) as error:
            done, said = finished(out), _chain(error)
            waiting = [item for item in items if item["name"] not in done] or items[-1:]
            named = [item for item in waiting if first_file(item["image"]) in said]
            at = max(named or waiting[:1], key=lambda item: len(first_file(item["image"])))
            scan, reason = first_file(at["image"]), _reason(error)
            if named:
                message = f"{scan} cannot be segmented: {reason}"
                raise _BadScanError(message, at["name"]) from error
            raise DatasetError(f"Segmenting stopped at {scan}: {reason}") from error


def _chain(error: BaseException | None) -> str:
    """All that led to an error, as text."""
    return "" if error is None else f"{error} {_chain(error.__cause__)}"


def _files_of_model(models: Path, knobs: Mapping[str, Any]) -> list[Path]:
    """Weights, priors and, where it was fitted, how much both count."""
    calibration = Path(str(knobs.get("calibration") or models / CALIBRATION))
    fitted = [calibration] if calibration.is_file() else []
    return [models / WEIGHTS, *prior_files(models), *fitted]


def _priors(model: Model) -> list[SpatialPrior]:
    """The priors that the folder has; a network without prior has none."""
    paths = [prior_path(model.folder, organ) for organ in model.organs]
    return [SpatialPrior.load(path) for path in paths if path.is_file()]


def _reason(error: BaseException) -> str:
    """The first of our errors that led to this one, or else the first of all, in a line."""
    while error.__cause__ is not None and not isinstance(error, DatasetError):
        error = error.__cause__
    # A worker of the data loader and MONAI's writer hand on an error as the text of a traceback.
    found = re.search(r"^(?:\w+\.)*\w*Error: (.+)", str(error), re.MULTILINE)
    return textwrap.shorten(found[1] if found else str(error), 400)
