"""How good pseudo-labels are, where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import MetaTensor

from stipple_monai.data import check_pair, first_file, read_label_map
from stipple_monai.files import read_csv, write_csv
from stipple_monai.results import where_known

QUALITY_COLUMNS = ("scan", "organ", "selected_voxels", "precision", "recall", "dice")


def measure_quality(label: MetaTensor, truth: MetaTensor, *, organ: int) -> list[float | int | str]:
    """Compare the selected voxels of an organ with its true ones.

    Args:
        label: partly labelled map ``(1, W, H, D)``; ignored voxels count as not selected.
        truth: on the same grid; where it is to be ignored, no selection is right or wrong.
        organ: label value.

    Returns:
        The number of selected voxels; precision, the share of them that is right; recall, the
        share of all true voxels of the organ that was selected; and their Dice, in [0, 1]. A
        quotient with nothing below is an empty string.

    Example:
        >>> import torch
        >>> label, truth = torch.zeros(2, 1, 4, 1, 1, dtype=torch.uint8)
        >>> label[:, :2], truth[:, 1:] = 1, 1
        >>> measure_quality(MetaTensor(label), MetaTensor(truth), organ=1)
        [2, 0.5, 0.333..., 0.4]
    """
    selected, true = where_known(label.as_tensor(), truth.as_tensor(), organ)
    both, known, all_true = (int(mask.sum()) for mask in (selected & true, selected, true))

    def quotient(part: int, whole: int) -> float | str:
        return part / whole if whole else ""

    chosen, dice = int((label == organ).sum()), quotient(2 * both, known + all_true)
    return [chosen, quotient(both, known), quotient(both, all_true), dice]


def known_truth(
    item: Mapping[str, Any], scan: MetaTensor, organs: Sequence[int], background: Sequence[int]
) -> MetaTensor | None:
    """Read the truth of an unlabelled scan, where the datalist has one.

    Args:
        item: of the datalist, perhaps with ``truth``.
        scan: the scan ``(C, W, H, D)``, or what lies on its grid.
        organs: label values.
        background: further values that a truth may have.

    Returns:
        ``(1, W, H, D)`` with label values and 255, which is ignored; None without ``truth``.

    Raises:
        DatasetError: the truth cannot be read, is not on its scan's grid or has another value.
    """
    if "truth" not in item:
        return None
    truth = read_label_map(item["truth"])
    values = [*range(1, max(organs) + 1), *background]
    check_pair(scan, truth, classes=len(values) + 1, values=values, channels=len(scan))
    return truth


def write_quality(
    path: str | Path,
    labelled: Sequence[dict[str, Any]],
    organs: Sequence[int],
    background: Sequence[int] = (),
) -> list[list[Any]]:
    """Write the quality of all pseudo-labels as CSV with one row a scan and organ.

    Args:
        path: the file to write; its columns are ``QUALITY_COLUMNS``. The last three are empty for a
            scan without truth.
        labelled: the items with pseudo-labels, with the keys ``image``, ``label`` and, where it
            is known, ``truth``.
        organs: label values.
        background: further values that a truth may have.

    Returns:
        The rows.

    Raises:
        DatasetError: see :func:`known_truth`.
    """
    rows: list[list[Any]] = []
    for item in labelled:
        label = read_label_map(item["label"])
        truth = known_truth(item, label, organs, background)
        for organ in organs:
            if truth is None:
                numbers: list[Any] = [int((label == organ).sum()), "", "", ""]
            else:
                numbers = measure_quality(label, truth, organ=organ)
            shown = [f"{x:.4f}" if isinstance(x, float) else x for x in numbers]
            rows.append([Path(first_file(item["image"])).name, organ, *shown])
    write_csv(path, QUALITY_COLUMNS, rows)
    return rows


def gather_quality(path: str | Path, tables: Mapping[int, Path]) -> None:
    """Write the tables of all rounds as one CSV, ``QUALITY_COLUMNS`` with ``round`` before them.

    Args:
        path: the file to write.
        tables: what :func:`write_quality` wrote, by the number of the round.
    """
    rows: list[list[Any]] = []
    for number in sorted(tables):
        rows += [[number, *row.values()] for row in read_csv(tables[number])]
    write_csv(path, ["round", *QUALITY_COLUMNS], rows)


def summarize_quality(rows: Sequence[Sequence[Any]], *, organ: int) -> str:
    """One line about the pseudo-labels of an organ.

    Args:
        rows: what :func:`write_quality` gave.
        organ: label value.

    Returns:
        Means over the scans in which a number is defined, and how many these are.

    Example:
        >>> summarize_quality([["a", 1, 10, "0.9", "0.5", "0.6"], ["b", 1, 0, "", "", ""]], organ=1)
        'organ 1: 5 voxels selected per scan, precision 0.900 (1), recall 0.500 (1), Dice 0.600 (1)'
    """
    mine = [row for row in rows if row[1] == organ]
    selected = sum(row[2] for row in mine) / len(mine)
    text = f"organ {organ}: {selected:.0f} voxels selected per scan"
    for name, column in (("precision", 3), ("recall", 4), ("Dice", 5)):
        known = [float(row[column]) for row in mine if row[column] != ""]
        if known:
            text += f", {name} {sum(known) / len(known):.3f} ({len(known)})"
    return text
