"""What a report tells of a calibration: its numbers, and whether probabilities come true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.bundle import CALIBRATION
from stipple_monai.networks import Calibration
from stipple_monai.report.cases import counted
from stipple_monai.report.page import Block, Picture, Table, Text
from stipple_monai.report.plots import curves

_TOLD = {"network_alone": "network alone", "fused": "calibrated fusion"}


def calibration_blocks(
    models: Path, folder: Path, *, values: Sequence[int], organs: Mapping[int, str]
) -> list[Block]:
    """Tell of the calibration in a folder of models.

    Args:
        models: the folder.
        folder: for the pictures.
        values: label values of the organs, in the network's order.
        organs: names by label value.

    Raises:
        PriorError: the file is no calibration.
    """
    path = models / CALIBRATION
    if not path.is_file():
        said = f"There is no {CALIBRATION}: nothing was fitted, and inference takes constants."
        return [Text(said, "lead")]
    calibration = Calibration.load(path)
    told: Mapping[str, Any] = calibration.record.get("reliability") or {}
    names = [organs.get(value, f"organ {value}") for value in values]
    names += [f"channel {k}" for k in range(len(names) + 1, calibration.organs + 1)]
    blocks: list[Block] = [_numbers(calibration, names, told)]
    lines = {"perfect": {0.0: 0.0, 1.0: 1.0}}
    lines |= {title: _points(told[name]) for name, title in _TOLD.items() if name in told}
    target = folder / "reliability.png"
    if len(lines) > 1 and (
        alt := curves(lines, target, x="probability", measure="share that is the organ")
    ):
        caption = (
            "Scans that the networks were not trained on, all organs together, voxels above 0.01. "
            "Below the diagonal the network is too sure of itself."
        )
        blocks.append(Picture("Reliability", target, caption, alt, small=True))
    return blocks


def _numbers(calibration: Calibration, names: Sequence[str], told: Mapping[str, Any]) -> Table:
    columns = (calibration.scale, calibration.strength, calibration.offset)
    rows = []
    for k, (name, *numbers) in enumerate(zip(names, *columns, strict=False)):
        errors = [told[kind]["error"][k] if kind in told else None for kind in _TOLD]
        shown = ["" if error is None else f"{error:.3f}" for error in errors]
        rows.append([name, *(f"{number:.3f}" for number in numbers), *shown])
    header = ["organ", "network (a)", "prior (b)", "offset (c)"]
    header += [f"calibration error, {title}" for title in _TOLD.values()]
    fitted, scans = calibration.fitted, calibration.record.get("scans")
    note = (
        f"Fitted on {counted(int(scans), 'scan') if scans else 'scans'} that the networks of the "
        "folds were not trained on; 1, 1 and 0 are equation 2. The expected calibration error "
        "(0–1) is the mean distance of a probability from what came true."
        if fitted
        else "Constants: nothing was fitted. In a scan where the network is soft, a is higher."
    )
    return Table("", header, rows, note)


def _points(table: Mapping[str, Sequence[float]]) -> dict[float, float]:
    found = zip(table["confidence"], table["frequency"], table["voxels"], strict=True)
    return {confidence: frequency for confidence, frequency, voxels in found if voxels}
