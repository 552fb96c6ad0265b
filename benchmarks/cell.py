"""One cell of a study on few labels: prior, training, test, of one method on one fold.

    python benchmarks/cell.py prepare --data btcv_ct.zip --out FOLDER
    python benchmarks/cell.py run --out FOLDER --method stipple --fold 0 --seed 0

The scans are those of one organ, divided into four folds of patients. Of the patients outside the
fold, three are drawn that have labels, and the network is trained on these: a U-Net of 32 to 512
channels on slices of 256 × 256. Each command is the bundle's own; the scores are its `scores.csv`,
with the cell before and the seconds behind, in ``FOLDER/CELL/cell.csv``.

Data are a folder with a ``dataset.json`` in the style of the MSD, or such a folder packed by
``python benchmarks/cell.py pack --data FOLDER --out FILE.zip --scans 8``: slices as PNG, for the
scans with the smallest files.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stipple_monai.data import read_datalist, write_datalist
from stipple_monai.simulation import write_phantom

CONFIGS = Path(__file__).parents[1] / "bundles" / "pancreas_stipple" / "configs"
FOLDS, LABELLED, ORGAN = 4, 3, 11
KNOBS: dict[str, Any] = {
    "channels": [32, 64, 128, 256, 512],
    "slice_size": [256, 256],
    "slices_per_scan": 240,
    "batch_size": 12,
    "sw_batch_size": 16,
    "learning_rate": 0.0005,
    "max_epochs": 25,
}
TINY: dict[str, Any] = {
    "channels": [4, 8],
    "slice_size": [32, 32],
    "slices_per_scan": 12,
    "batch_size": 6,
    "learning_rate": 0.02,
    "max_epochs": 1,
    "num_workers": 0,
}


def scans(data: Path) -> Iterator[tuple[str, NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Name, HU, label and affine of each scan of a folder or a packed one."""
    if data.suffix == ".zip":
        with zipfile.ZipFile(data) as file:
            for entry in json.loads(file.read("scans.json")):
                kinds = ("image", "label")
                arrays = [_unpack(file, entry["name"], k, entry["slices"]) for k in kinds]
                hu = arrays[0] * entry["slope"] + entry["intercept"]
                yield entry["name"], hu, arrays[1], np.array(entry["affine"])
        return
    path = data / "dataset.json" if data.is_dir() else data
    for item in read_datalist(path, "training"):
        image, label = (nib.load(item[key]) for key in ("image", "label"))
        name = Path(item["image"]).name.removesuffix(".gz").removesuffix(".nii")
        yield name, image.get_fdata(), np.asarray(label.dataobj), image.affine


def _unpack(file: zipfile.ZipFile, name: str, kind: str, count: int) -> NDArray[Any]:
    read = (file.read(f"{name}/{kind}_{z:03d}.png") for z in range(count))
    return np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in read], axis=-1)


def pack(data: Path, out: Path, *, count: int) -> None:
    """Write the scans with the smallest files; voxels of one byte, as they are stored."""
    items = read_datalist(data / "dataset.json", "training")
    items = sorted(items, key=lambda item: Path(item["image"]).stat().st_size)[:count]
    entries = []
    part = out.with_name(f"{out.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as file:
        for item in items:
            name = Path(item["image"]).name.removesuffix(".gz").removesuffix(".nii")
            image, label = (nib.load(item[key]) for key in ("image", "label"))
            kinds = {
                "image": np.asarray(image.dataobj.get_unscaled()),
                "label": np.asarray(label.dataobj),
            }
            for kind, array in kinds.items():
                if array.min() < 0 or array.max() > 255:
                    raise ValueError(f"{name} must have voxels of one byte.")
                for z in range(array.shape[2]):
                    png = io.BytesIO()
                    plane = np.ascontiguousarray(array[:, :, z].astype(np.uint8))
                    Image.fromarray(plane).save(png, "PNG", optimize=True)
                    file.writestr(f"{name}/{kind}_{z:03d}.png", png.getvalue())
            scale = {
                "slope": float(image.dataobj.slope),
                "intercept": float(image.dataobj.inter),
            }
            affine = image.affine.tolist()
            entries.append({"name": name, "slices": image.shape[2], **scale, "affine": affine})
        file.writestr("scans.json", json.dumps(entries))
    part.replace(out)
    print(f"{out}: {len(entries)} scans, {out.stat().st_size / 2**20:.1f} MiB")


def prepare(data: Path | None, out: Path, *, tiny: bool) -> None:
    """Write the scans of one organ, uncompressed, with their datalist."""
    if data is None and tiny:
        options: dict[str, Any] = {"slices": (12, 14), "slice_spacing_mm": (10.0, 10.0)}
        write_phantom(out / "data", cases=4, size=32, progress=False, **options)
        return
    if data is None:
        raise FileNotFoundError("Cells need real scans: give --data, a packed file or a folder.")
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for name, hu, label, affine in scans(data):
        paths = {"image": folder / f"{name}.nii", "label": folder / f"{name}_label.nii"}
        nib.save(nib.Nifti1Image(np.rint(hu).astype(np.int16), affine), paths["image"])
        mask = (label == ORGAN).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, affine), paths["label"])
        items.append({key: str(path) for key, path in paths.items()})
    write_datalist(folder / "dataset.json", {"training": items})
    print(f"{len(items)} scans in {folder}")


def divide(datalist: Path, *, fold: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Three scans to train on and those of the fold to test on."""
    items = sorted(read_datalist(datalist, "training"), key=lambda item: str(item["image"]))
    random.Random(0).shuffle(items)
    folds = min(FOLDS, len(items))
    test = items[fold::folds]
    rest = [item for item in items if item not in test]
    training = random.Random(1000 * seed + fold).sample(rest, min(LABELLED, len(rest)))
    return {"training": training, "test": test}


def run(out: Path, method: str, *, fold: int, seed: int, workers: int, tiny: bool) -> None:
    """Train and test, and write the cell's table."""
    place = out / f"seed{seed}_fold{fold}_{method}"
    place.mkdir(parents=True)
    write_datalist(
        place / "datalist.json", divide(out / "data" / "dataset.json", fold=fold, seed=seed)
    )
    knobs = {
        **{**KNOBS, "num_workers": workers, **(TINY if tiny else {})},
        "seed": seed,
        "bundle_root": str(place),
        "dataset_dir": str(place),
        "datalist": str(place / "datalist.json"),
        "models_dir": str(place / "models"),
        "output_dir": str(place / "eval"),
        "progress": False,
    }
    overlays = ["baseline"] if method == "baseline" else []
    stages = {"prior": ["prior"], "train": ["train"], "test": ["inference", "evaluate"]}
    seconds = {}
    for stage, names in stages.items():
        started = time.perf_counter()
        if stage != "prior" or method != "baseline":
            _bundle([*names, *(overlays if stage != "prior" else [])], knobs)
        seconds[f"seconds_{stage}"] = f"{time.perf_counter() - started:.1f}"
        print(f"{method}, fold {fold}, seed {seed}: {stage} {seconds[f'seconds_{stage}']} s")
    cell = {"seed": seed, "fold": fold, "method": method}
    with (place / "eval" / "scores.csv").open(encoding="utf-8") as file:
        rows = [{**cell, **row, **seconds} for row in csv.DictReader(file)]
    part = place / "cell.csv.part"
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    part.replace(place / "cell.csv")


def _bundle(names: list[str], knobs: dict[str, Any]) -> None:
    files = [str(CONFIGS / f"{name}.yaml") for name in names]
    known = "".join(Path(file).read_text(encoding="utf-8") for file in files)
    given = {key: value for key, value in knobs.items() if f"\n{key}:" in known}
    monai.bundle.run(config_file=files, logging_file=False, **given)


def main() -> None:
    """Prepare, run or pack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["prepare", "run", "pack"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--method", choices=["baseline", "stipple"], default="stipple")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to try the script")
    o = parser.parse_args()
    if o.what == "pack":
        if o.data is None:
            parser.error("--data must be the folder to pack")
        pack(o.data, o.out, count=o.scans)
    elif o.what == "prepare":
        prepare(o.data, o.out, tiny=o.tiny)
    else:
        run(o.out, o.method, fold=o.fold, seed=o.seed, workers=o.workers, tiny=o.tiny)


if __name__ == "__main__":
    main()
