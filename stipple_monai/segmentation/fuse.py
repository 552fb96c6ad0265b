"""Priors for a network that is there already: its probability maps, located, fused and decided.

The folder of the results holds what :func:`~stipple_monai.segmentation.segment` leaves, and::

    calibration.json        how much network and prior count
    gain.csv                with labels: Dice of the network alone and fused, a row a scan and organ

Words: *constants* are the numbers of a fusion that was fitted to nothing. A scan with a label is
never fused with numbers that were fitted to it, nor with a prior that has its label within, where
the prior knows its cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from stipple_monai.bundle import CALIBRATION, only_process
from stipple_monai.calibration import Samples, draw_samples, fit_samples
from stipple_monai.errors import DatasetError
from stipple_monai.files import fingerprint, sha256, whole_file, write_csv
from stipple_monai.inferers import CONFIDENCE_META, POSITION_META, Fused, fuse_logits
from stipple_monai.networks import Calibration
from stipple_monai.priors import SpatialPrior, load_priors, own_cases, prior_organs, prior_path
from stipple_monai.progress import follow
from stipple_monai.results import (
    add_remarks,
    on_grid_of,
    organ_records,
    read_records,
    rename_organs,
    where_known,
    write_record,
    write_tables,
)
from stipple_monai.segmentation.folder import (
    PROBABILITIES,
    SEG,
    begin_results,
)
from stipple_monai.segmentation.probabilities import (
    MapFile,
    files_of_case,
    find_maps,
    label_files,
    read_map,
    read_truth,
)
from stipple_monai.transforms import DecideLabel

GAIN = "gain.csv"
GAIN_COLUMNS = ("scan", "organ", "name", "dice_network", "dice_fused")
MOST_FOLDS = 5
LEAST = 1e-6
"""Probabilities are clipped there, so that their logarithms are finite."""


def fuse(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    priors: str | Path,
    like: Sequence[str | Path] = (),
    calibrate: Sequence[str | Path] = (),
    channels: Mapping[int, int] | None = None,
    labels: Mapping[int, str] | None = None,
    labelled: int | None = None,
    decision: Literal["dice", "argmax"] = "dice",
    scan_vote: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Fuse probability maps of any network with priors.

    Args:
        inputs: maps or folders of such, see `stipple_monai.segmentation.probabilities`.
        out: folder of the results; a begun one goes on.
        priors: folder with ``prior_ORGAN.nii.gz``.
        like: scans that say where the voxels of maps lie, or folders of such.
        calibrate: label maps of some of the scans, or folders of such, found by their names;
            without any, the fusion has constants.
        channels: of the network, by label value; each prior's label value where ``None``. Classes
            without a prior count as background.
        labels: names of the label values; other names do not fuse anew.
        labelled: how many labelled scans the network was trained with, for the constants; as many
            as each prior was estimated from where ``None``.
        decision: ``"dice"``, the label map of the highest expected Dice, or ``"argmax"``.
        scan_vote: see :func:`~stipple_monai.locate_organs`; False for crops.
        overwrite: fuse anew and replace what is there.
        progress: tell how far it is.

    Returns:
        ``volumes.csv``.

    Raises:
        DatasetError: a map, scan or label cannot be used, or ``out`` has other results.
        PriorError: there is no prior, or it leaves nothing without a scan's own label.
    """
    out, organs = Path(out).resolve(), sorted(channels) if channels else prior_organs(priors)
    DecideLabel(decision)  # refuses an unknown one before anything is read
    maps = find_maps(inputs, like=like)
    known = load_priors(priors, organs)
    taken = [(channels or {}).get(organ, organ) for organ in organs]
    counts = [p.case_count for p in known] if labelled is None else labelled
    constants = Calibration.unfitted(len(organs), labelled=counts)
    run = _Run(organs, taken, known, labels or {}, constants, scan_vote)
    truths = _truths(calibrate, maps)
    items = [{"image": _files(each), "name": each.name} for each in maps]
    settings = {"decision": decision, "labelled": labelled, **_settings(run, priors, truths)}
    with only_process(out):
        # a map called NAME_prob is an input, and what `segment` writes too: not into one folder
        kinds: dict[str, Any] = {"endings": (SEG, PROBABILITIES), "others": (CALIBRATION, GAIN)}
        todo = begin_results(out, items, settings, overwrite=overwrite, **kinds)
        left = {item["name"] for item in todo}
        if left:
            _fuse_all(run, maps, truths, out, left=left, decision=decision, progress=progress)
        rename_organs(out, run.labels)
        add_remarks(out, priors=known)
        if truths:
            write_csv(out / GAIN, GAIN_COLUMNS, _gain(out))
        return write_tables(out)


def _settings(run: _Run, priors: str | Path, truths: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "priors": {str(o): sha256(prior_path(priors, o)) for o in run.organs},
        "channels": run.channels,
        "scan_vote": run.scan_vote,
        "calibrate": {name: fingerprint(path) for name, path in truths.items()},
    }


def _fuse_all(
    run: _Run,
    maps: Sequence[MapFile],
    truths: Mapping[str, Path],
    out: Path,
    *,
    left: set[str],
    decision: Literal["dice", "argmax"],
    progress: bool,
) -> None:
    """Calibrate, and write the scans whose names are ``left``."""
    numbers = _calibrations(run, maps, truths, progress=progress)
    numbers[""].save(out / CALIBRATION)
    waiting = [each for each in maps if each.name in left]
    for each in follow(waiting, "fuse", unit="scan", shown=progress):
        calibration = numbers.get(each.name, numbers[""])
        _write(run, each, out, calibration, decision, truths.get(each.name))


class _Run(NamedTuple):
    """What is the same for all scans."""

    organs: Sequence[int]
    channels: Sequence[int]
    priors: Sequence[SpatialPrior]
    labels: Mapping[int, str]
    constants: Calibration
    scan_vote: bool

    def read(self, each: MapFile, truth: Path | None) -> tuple[Tensor, Any, Tensor | None]:
        """Probabilities, their affine, and the label map on their grid."""
        probability, affine = read_map(each, self.channels)
        if truth is None:
            return probability, affine, None
        return probability, affine, read_truth(truth, self.organs, probability.shape[1:], affine)

    def fused(
        self,
        each: MapFile,
        probability: Tensor,
        affine: Any,
        calibration: Calibration,
        truth: Path | None,
    ) -> tuple[Tensor, Fused]:
        """Logits without prior, and what they are fused to; a scan's own label is left out."""
        logits = probability.clamp(min=LEAST).log()[None]
        priors = [p if truth is None else _without(p, truth) for p in self.priors]
        grid = torch.as_tensor(affine)
        options: dict[str, Any] = {"calibration": calibration, "scan_vote": self.scan_vote}
        return logits, fuse_logits(logits, grid, priors, names=[str(each.path)], **options)


def mean_gain(folder: str | Path) -> list[tuple[str, int, float, float]]:
    """What fusing gained on the scans with labels that have the organ.

    Args:
        folder: of the results.

    Returns:
        For each organ its name, the scans, and the mean Dice of the network alone and fused.
    """
    # by value, too: two organs may have one name
    rows: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for _, organ, name, alone, fused in _gain(Path(folder)):
        if not math.isnan(alone):
            rows.setdefault((organ, name), []).append((alone, fused))
    means = []
    for (_, name), pairs in rows.items():
        alone, fused = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
        means.append((name, len(pairs), alone, fused))
    return means


def _truths(given: Sequence[str | Path], maps: Sequence[MapFile]) -> dict[str, Path]:
    """Labels by the names of their scans."""
    paths = label_files(given)
    named = {each.name: files_of_case(each.name, paths) for each in maps}
    for name, files in named.items():
        if len(files) > 1:
            raise DatasetError(
                f"`calibrate` must have one label for each map, got {files[0]} and {files[1]} for "
                f"{name}: give a folder with labels alone."
            )
    found = {name: files[0] for name, files in named.items() if files}
    if given and not found:
        raise DatasetError(
            f"`calibrate` must have labels that are called as the maps, such as {min(named)}, got "
            f"{', '.join(p.name for p in paths[:3])}: rename them."
        )
    return found


def _files(each: MapFile) -> list[str]:
    return [str(path) for path in dict.fromkeys((each.grid, each.path))]


def _without(prior: SpatialPrior, truth: Path) -> SpatialPrior:
    own = [] if prior.cases is None else own_cases(str(truth), prior)
    return prior.leave_out(own) if own else prior


def _calibrations(
    run: _Run, maps: Sequence[MapFile], truths: Mapping[str, Path], *, progress: bool
) -> dict[str, Calibration]:
    """Numbers by the names of scans with a label, without these; for all others under ``""``."""
    drawn: dict[str, Samples] = {}
    labelled = [each for each in maps if each.name in truths]
    told = follow(labelled, "calibrate", unit="scan", shown=progress)
    for number, each in enumerate(told):
        truth = truths[each.name]
        probability, affine, label = run.read(each, truth)
        logits, fused = run.fused(each, probability, affine, run.constants, truth)
        assert label is not None
        drawn[each.name] = draw_samples(logits[0], fused.prior[0], label, seed=number)
    if not drawn:
        return {"": run.constants}
    names = list(drawn)
    try:
        numbers = {"": fit_samples(list(drawn.values()))}
    except DatasetError as error:
        raise DatasetError(
            "`calibrate` must have a label with an organ whose prior is placed, got none in "
            f"{', '.join(str(truths[name]) for name in names[:3])}: give other labels, or look at "
            "the maps."
        ) from error
    for fold in range(min(MOST_FOLDS, len(names))):
        inside = names[fold::MOST_FOLDS]
        others = [drawn[name] for name in names if name not in inside]
        numbers |= dict.fromkeys(inside, _fit_or(others, run.constants))
    return numbers


def _fit_or(samples: Sequence[Samples], constants: Calibration) -> Calibration:
    """A fit, or constants where the other scans have nothing to fit to."""
    try:
        return fit_samples(samples) if samples else constants
    except DatasetError:
        return constants


def _write(
    run: _Run,
    each: MapFile,
    out: Path,
    calibration: Calibration,
    decision: Literal["dice", "argmax"],
    truth: Path | None,
) -> None:
    """Write a scan's label map, and at last its record."""
    probability, affine, label = run.read(each, truth)
    _, fused = run.fused(each, probability, affine, calibration, truth)
    decide = DecideLabel(decision, thresholds=calibration)
    found = torch.as_tensor(decide(fused.logits[0].softmax(0))).as_subclass(Tensor)
    values = torch.tensor([0, *run.organs], dtype=torch.uint8)[found.long()]
    image = on_grid_of(each.grid, values[0].numpy(), {"original_affine": affine})
    with whole_file(out / f"{each.name}{SEG}") as part:
        nib.save(image, part)
    meta = {POSITION_META: fused.position_mm[0], CONFIDENCE_META: fused.confidence[0]}
    told = MetaTensor(values, affine=torch.as_tensor(np.asarray(affine)), meta=meta)
    rows = organ_records(told, run.organs, run.labels)
    if label is not None:
        alone = probability.argmax(0, keepdim=True)
        for k, row in enumerate(rows, 1):
            row["dice_network"], row["dice_fused"] = _dice(alone, label, k), _dice(found, label, k)
    write_record(out, each.name, _files(each)[0], _files(each), rows)


def _dice(found: Tensor, label: Tensor, organ: int) -> float | None:
    """Dice of an organ where the label is known; None where the label has none."""
    one, two = where_known(found, label, organ)
    both = int((one & two).sum())
    return 2 * both / int(one.sum() + two.sum()) if two.any() else None


def _gain(out: Path) -> list[tuple[str, int, str, float, float]]:
    return [
        (
            record["scan"],
            row["organ"],
            row["name"],
            *map(_number, (row["dice_network"], row["dice_fused"])),
        )
        for record in read_records(out).values()
        for row in record["organs"]
        if "dice_network" in row
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
