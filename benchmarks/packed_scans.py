"""Real scans in files that travel within a lent machine's limit, and unpacked there.

    python benchmarks/packed_scans.py pack --data btcv_ct --out .gpu --parts 2
    python benchmarks/packed_scans.py unpack --data .gpu/scans_1.zip --out /tmp/scans

``pack`` writes slices of one byte as PNG, which take less than the NIfTI files, in files of about
the same number of scans. ``unpack`` makes a data set of NIfTI files with a ``dataset.json`` of
what has been unpacked there so far, so that parts may come one after the other.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from stipple_monai.data import read_datalist
from stipple_monai.data.folds import case_name
from stipple_monai.files import read_json, whole_file, write_json

KINDS = {"image": "imagesTr", "label": "labelsTr"}


def pack(data: Path, out: Path, *, parts: int) -> None:
    """Write ``scans_1.zip``, ``scans_2.zip`` … of a folder with a ``dataset.json``."""
    kept = {k: v for k, v in read_json(data / "dataset.json").items() if k in ("name", "labels")}
    items = read_datalist(data / "dataset.json", "training")
    out.mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        path = out / f"scans_{part + 1}.zip"
        with (
            whole_file(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file,
        ):
            entries = [_put(file, item) for item in items[part::parts]]
            file.writestr("scans.json", json.dumps({**kept, "scans": entries}))
        print(f"{path}: {len(entries)} scans, {path.stat().st_size / 2**20:.1f} MiB")


def _put(file: zipfile.ZipFile, item: dict[str, Any]) -> dict[str, Any]:
    name = case_name(item)
    entry: dict[str, Any] = {"name": name}
    for kind in KINDS:
        image = nib.load(item[kind])
        array = np.asarray(image.dataobj.get_unscaled())
        if array.min() < 0 or array.max() > 255:
            raise ValueError(f"{item[kind]} must have voxels of one byte, got {array.dtype}.")
        for z in range(array.shape[2]):
            png = io.BytesIO()
            plane = np.ascontiguousarray(array[:, :, z].astype(np.uint8))
            Image.fromarray(plane).save(png, "PNG", optimize=True)
            file.writestr(f"{name}/{kind}_{z:03d}.png", png.getvalue())
        scale = [float(image.dataobj.slope), float(image.dataobj.inter)]
        entry |= {"slices": array.shape[2], "affine": image.affine.tolist(), kind: scale}
    return entry


def unpack(path: Path, out: Path) -> None:
    """Write the scans of a packed file, uncompressed, and the list of all that are there."""
    for folder in KINDS.values():
        (out / folder).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path) as file:
        about = json.loads(file.read("scans.json"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(_take, path, out), about.pop("scans")))
    names = sorted(scan.name for scan in (out / KINDS["image"]).glob("*.nii"))
    items = [{kind: f"{folder}/{name}" for kind, folder in KINDS.items()} for name in names]
    write_json(out / "dataset.json", {**about, "training": items})
    print(f"{len(items)} scans in {out}")


def _take(path: Path, out: Path, entry: dict[str, Any]) -> None:
    name = entry["name"]
    with zipfile.ZipFile(path) as file:
        for kind, folder in KINDS.items():
            read = (file.read(f"{name}/{kind}_{z:03d}.png") for z in range(entry["slices"]))
            planes = [np.asarray(Image.open(io.BytesIO(png))) for png in read]
            image = nib.Nifti1Image(np.stack(planes, axis=-1), np.array(entry["affine"]))
            image.header.set_xyzt_units("mm")
            image.header.set_slope_inter(*entry[kind])
            nib.save(image, out / folder / f"{name}.nii")


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["pack", "unpack"])
    parser.add_argument("--data", type=Path, required=True, help="a data set, or a packed file")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--parts", type=int, default=2)
    options = parser.parse_args()
    if options.what == "pack":
        pack(options.data, options.out, parts=options.parts)
    else:
        unpack(options.data, options.out)


if __name__ == "__main__":
    main()
