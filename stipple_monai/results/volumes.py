"""What a segmentation says in numbers: each organ's volume, its position and how sure that is.

Words used here. A scan's *name* is what its results are called by, ``NAME_seg.nii.gz``. A *record*
is ``NAME_volumes.json``, written when the scan's other files are there; so a scan with a record is
done. A record is *outdated* while its scan is to be segmented anew: it stays with the older files
until the new ones are whole. Tables are made of the records, those of earlier runs in the same
folder among them.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Transform

from stipple_monai.data import (
    files_of_item,
    first_file,
    label_names,
    organ_volumes,
    plain_name,
    unique_names,
)
from stipple_monai.errors import DatasetError
from stipple_monai.files import fingerprint, read_json, write_csv, write_json
from stipple_monai.inferers import CONFIDENCE_META, POSITION_META

RECORD = "_volumes.json"
"""What a record's file name ends with, behind the scan's name."""

TABLES = ("volumes.csv", "volumes.json")
"""Files with the records of all scans."""

OUTDATED = "outdated"
"""True in a record whose scan is to be segmented anew."""

COLUMNS = ("scan", "organ", "name", "volume_ml", "r_mm", "a_mm", "s_mm", "confidence", "remarks")


class ScanNames(Transform):
    """The names of scans, also as the ``output_name_formatter`` of ``SaveImaged``.

    Args:
        items: of a datalist; a scan's ``name``, or else what is unique in its path.

    Raises:
        DatasetError: a ``name`` is no plain file name, or two scans have one.

    Example:
        >>> names = ScanNames([{"image": "/a/ct.nii.gz"}, {"image": "/b/mr.nii", "name": "7"}])
        >>> names["/a/ct.nii.gz"], names["/b/mr.nii"]
        ('ct', '7')
    """

    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        scans = [first_file(item["image"]) for item in items]
        named = zip(scans, unique_names(scans), items, strict=True)
        self.names = {
            os.path.abspath(scan): plain_name(item.get("name", name), "name")
            for scan, name, item in named
        }
        self.files = {
            os.path.abspath(scan): files_of_item(item, ("image",))
            for scan, item in zip(scans, items, strict=True)
        }
        counts = Counter(name.casefold() for name in self.names.values())
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise DatasetError(f"Scans must have names of their own, got {twice[0]!r} twice.")

    def __getitem__(self, scan: str) -> str:
        """Name of the scan that was loaded from a file or folder."""
        return self.names[os.path.abspath(scan)]

    def __call__(self, metadict: Mapping[str, Any], saver: Any) -> dict[str, Any]:
        """Tell ``SaveImaged`` a file name, with an ending, which MONAI takes off again."""
        return {"subject": f"{self[metadict['filename_or_obj']]}.nii.gz", "idx": None}


class VolumeTable:
    """Write each scan's record when its segmentation is there, and the tables at the end.

    A handler of the evaluator, behind those that write files. See :func:`write_tables` for what
    the tables hold.

    Args:
        folder: where to write.
        organs: label values in the order of the network's channels.
        names: of the scans.
        datalist: whose ``labels`` name the organs.
        wanted: of the organs, those that are told; all if None.
        pred_key: the label map on the scan's grid, in the engine's output; what
            :class:`~stipple_monai.PriorDrivenInferer` found is in its metadata.
        image_key: the scan in the engine's output.
    """

    def __init__(
        self,
        folder: str | Path,
        organs: Sequence[int],
        *,
        names: ScanNames,
        datalist: str | Path,
        wanted: Sequence[int] | None = None,
        pred_key: str = "pred",
        image_key: str = "image",
    ) -> None:
        self.folder, self.organs, self.names = Path(folder), list(organs), names
        self.wanted = self.organs if wanted is None else list(wanted)
        self.labels = label_names(datalist)
        self.pred_key, self.image_key = pred_key, image_key

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._record)
        engine.add_event_handler(Events.COMPLETED, lambda: write_tables(self.folder))

    def _record(self, engine: Engine) -> None:
        for item in engine.state.output:
            scan = item[self.image_key].meta["filename_or_obj"]
            files = self.names.files[os.path.abspath(scan)]
            organs = organ_records(item[self.pred_key], self.organs, self.labels)
            told = [row for row in organs if row["organ"] in self.wanted]
            write_record(self.folder, self.names[scan], scan, files, told)


def organ_records(
    label: MetaTensor, organs: Sequence[int], names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """What the record of a scan says of each organ.

    Args:
        label: on the scan's grid; positions and confidences are in its metadata, if there are any.
        organs: label values in the order of the positions.
        names: of the organs.
    """
    located = POSITION_META in label.meta
    points = label.meta[POSITION_META].tolist() if located else [None] * len(organs)
    sure = label.meta[CONFIDENCE_META].tolist() if located else [None] * len(organs)
    volumes = organ_volumes(label, organs)
    return [
        {
            "organ": organ,
            "name": names.get(organ, f"organ {organ}"),
            "volume_ml": round(volume, 4),
            "position_mm": None if point is None or math.isnan(sum(point)) else point,
            "confidence": confidence,
        }
        for organ, volume, point, confidence in zip(organs, volumes, points, sure, strict=True)
    ]


def write_record(
    folder: str | Path,
    name: str,
    scan: str,
    files: Sequence[str],
    organs: Sequence[Mapping[str, Any]],
) -> None:
    """Write that a scan is done, when its other files are there.

    Args:
        folder: of the results.
        name: of the scan.
        scan: its file.
        files: all that were read for it.
        organs: see :func:`organ_records`.
    """
    record = {
        "scan": scan,
        # a scan in memory has none
        "fingerprint": fingerprint(*files) if all(map(os.path.exists, files)) else None,
        "organs": list(organs),
    }
    rewrite_record(folder, name, record)


def read_records(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Records of a folder by the names of their scans, in their order.

    Raises:
        DatasetError: a file that is called like a record is none.
    """
    records = {}
    for path in sorted(Path(folder).glob(f"*{RECORD}")):
        try:
            record = read_json(path)
            str(record["scan"]), [_row(row) for row in record["organs"]]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DatasetError(
                f"`{path}` must be a record of a segmentation, got something else: move it away."
            ) from error
        records[path.name.removesuffix(RECORD)] = record
    return records


def finished(folder: str | Path) -> set[str]:
    """Names of the scans of a folder that are done: their records are not outdated.

    Raises:
        DatasetError: as :func:`read_records` does.
    """
    return {name for name, record in read_records(folder).items() if not record.get(OUTDATED)}


def outdate(folder: str | Path, names: Iterable[str]) -> None:
    """Mark records: their scans are to be segmented anew.

    Raises:
        DatasetError: as :func:`read_records` does.
    """
    records = read_records(folder)
    for name in sorted(records.keys() & set(names)):
        rewrite_record(folder, name, {**records[name], OUTDATED: True})


def rewrite_record(folder: str | Path, name: str, record: Mapping[str, Any]) -> None:
    """Write a scan's record, in the place of an older one."""
    write_json(Path(folder) / f"{name}{RECORD}", record)


def _row(row: Mapping[str, Any]) -> list[Any]:
    """What the table says of an organ."""
    point = row["position_mm"] or []
    where = [f"{x:.2f}" for x in point] or ["", "", ""]
    if len(where) != 3:
        raise ValueError(f"positions must be three numbers, got {point}")
    sure = "" if row["confidence"] is None else f"{row['confidence']:.3f}"
    return [row["organ"], row["name"], f"{row['volume_ml']:.3f}", *where, sure, _joined(row)]


def _joined(*remarked: Mapping[str, Any]) -> str:
    texts = [str(text) for each in remarked for text in each.get("remarks", [])]
    old = ["of an earlier run, not segmented anew yet"] if remarked[0].get(OUTDATED) else []
    return "; ".join([*old, *texts])


def write_tables(folder: str | Path) -> Path:
    """Make ``volumes.csv`` and ``volumes.json`` of all records in a folder.

    A row of the CSV is a scan and organ: the volume in ml, the world point in RAS mm at which the
    prior was placed and its confidence in [0, 1]. The point is empty where the prior stayed
    neutral, and both are where there is no prior. Remarks are those of
    `stipple_monai.results.remarks`, and that a record is outdated. The JSON has the records by scan
    name.

    Returns:
        The path of ``volumes.csv``.
    """
    folder, records = Path(folder), read_records(folder)
    rows = []
    for record in records.values():
        for row in record["organs"]:
            rows.append([record["scan"], *_row(row)[:-1], _joined(record, row)])
    write_json(folder / "volumes.json", records)
    path = folder / "volumes.csv"
    write_csv(path, COLUMNS, rows)
    return path
