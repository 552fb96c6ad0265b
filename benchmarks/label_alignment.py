"""How often `check_alignment` is right about a label, wrong or silent; and other measures.

Scans with labels known to be right: CHAOS MR (four organs), slices of NIH Pancreas-CT and the liver
of CHAOS CT, which are real, and simulated CT of real BTCV labels (13 organs, each alone).
Every label is tried as it is and along all flips: *found* counts the scans of which the true flip
is the best by the measure, *told* those of which the check also says so (a reversed label is then
detected, whichever flip it has, since the eight candidates are the same); *wrong* those of which
another flip would be believed, the false alarms. Labels that are shifted, or another scan's, have
no right flip: there every verdict but "undecided" is wrong.

Run: ``python benchmarks/label_alignment.py`` (three minutes on one core).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from stipple_monai.data import Grid
from stipple_monai.ingest import FLIPS, check_alignment, open_series, read_label, read_series
from stipple_monai.simulation import write_simulated

DATA = Path(__file__).parents[2] / "shared" / "data"
SHIFTS_MM = (5, 10, 20, 40)


def pairs(folder: Path) -> Iterator[tuple]:
    """Image, label and spacing of a folder in MSD layout."""
    labels = sorted((folder / "labelsTr").glob("*.nii.gz"))
    for image, label in zip(sorted((folder / "imagesTr").glob("*.nii.gz")), labels, strict=True):
        file = nib.load(image)
        yield (
            file.get_fdata(dtype=np.float32),
            np.asarray(nib.load(label).dataobj).astype(np.uint8),
            voxel_sizes(file.affine),
        )


def slices() -> Iterator[tuple]:
    """Slices of the pancreas, as volumes of one slice."""
    folder = DATA / "nih_pancreas_slices"
    for image in sorted(folder.glob("img_*.npy")):
        mask = np.load(folder / image.name.replace("img", "mask"))
        yield np.load(image)[..., None], mask[..., None].astype(np.uint8), (0.8, 0.8, 1.0)


def chaos_ct() -> Iterator[tuple]:
    """The one series of CHAOS CT."""
    series = open_series(DATA / "dicom/chaos_ct/DICOM_anon")
    voxels, _ = read_series(series)
    ground = DATA / "dicom/chaos_ct/Ground"
    label = read_label(ground, Grid(voxels, series.affine), series=series).array
    yield voxels, label, voxel_sizes(series.affine)


def only(cases: Iterable[tuple], organ: int) -> list[tuple]:
    """With one organ's label, of the scans that have it."""
    found = [(image, (label == organ).astype(np.uint8), size) for image, label, size in cases]
    return [case for case in found if case[1].any()]


def measures(image, label, spacing) -> dict[str, float]:
    """The obvious alternatives; more is better."""
    inside, near = label > 0, ndimage.distance_transform_edt(label == 0, sampling=spacing)
    shell = (near > 0) & (near <= 8)
    both = np.concatenate([image[inside], image[shell]]).astype(float)
    within = inside.sum() * image[inside].var() + shell.sum() * image[shell].var()
    surface = inside & ~ndimage.binary_erosion(inside)
    edges = ndimage.gaussian_gradient_magnitude(image.astype(np.float32), 1)
    return {
        "sd": -float(image[inside].std()),
        "explained variance": 1 - float(within) / max(len(both) * float(both.var()), 1e-9),
        "edges": float(edges[surface].mean()),
    }


def rate(name: str, cases: Iterable[tuple], *, right: bool = True, others: bool = True) -> None:
    """Print a line of the table."""
    tally, count = Counter(), 0
    for image, label, spacing in cases:
        found = check_alignment(image, label, spacing_mm=spacing)
        count += 1
        tally["found"] += right and found.best == ()
        tally["told"] += right and found.verdict == "confirmed"
        tally["wrong"] += found.verdict == "contradicted" or (
            not right and found.verdict == "confirmed"
        )
        if others:
            by_flip = {
                flip: measures(image, np.flip(label, flip), spacing)
                for flip in FLIPS
                if all(label.shape[axis] > 1 for axis in flip)
            }
            for measure in next(iter(by_flip.values())):
                best = max(by_flip, key=lambda flip: by_flip[flip][measure])
                tally[measure] += best == ()
    columns = [tally[key] for key in ("found", "told", "wrong")]
    rest = [tally[key] for key in ("sd", "explained variance", "edges")] if others else ["–"] * 3
    print("|", " | ".join(map(str, [name, count, *columns, *rest])), "|", flush=True)


def shifted(cases: Iterable[tuple], shift_mm: float) -> Iterator[tuple]:
    """Labels moved along all axes; what leaves the scan comes in on the other side."""
    for image, label, spacing in cases:
        voxels = [round(shift_mm / size) for size in spacing]
        yield image, np.roll(label, voxels, (0, 1, 2)), spacing


def swapped(cases: list[tuple]) -> Iterator[tuple]:
    """Each image with the next scan's label, cut to what both have."""
    for (image, _, spacing), (_, label, _) in zip(cases, [*cases[1:], cases[0]], strict=True):
        box = tuple(slice(min(a, b)) for a, b in zip(image.shape, label.shape, strict=True))
        if label[box].any():
            yield image[box], np.ascontiguousarray(label[box]), spacing


def main() -> None:
    """Print the table."""
    print("| labels | scans | found | told | wrong | sd | explained variance | edges |")
    print("| --- |" + " ---: |" * 7)
    rate("NIH Pancreas-CT, slices", slices())
    rate("CHAOS CT, liver", chaos_ct(), others=False)
    real = list(pairs(DATA / "chaos_mr_t2"))
    rate("CHAOS MR, four organs together", real, others=False)
    for organ, name in enumerate(("liver", "right kidney", "left kidney", "spleen"), 1):
        rate(f"CHAOS MR, {name}", only(real, organ))
    with tempfile.TemporaryDirectory() as folder:
        labels = sorted((DATA / "btcv_labels").glob("*.nii.gz"))
        write_simulated(labels, folder, progress=False)
        simulated = list(pairs(Path(folder)))
    rate("simulated CT, 13 organs together", simulated, others=False)
    names = "spleen,right kidney,left kidney,gallbladder,oesophagus,liver,stomach,aorta,vena cava,"
    names += "portal vein,pancreas,right adrenal,left adrenal"
    for organ, name in enumerate(names.split(","), 1):
        rate(f"simulated CT, {name}", only(simulated, organ))
    pancreas = only(simulated, 11)
    for shift_mm in SHIFTS_MM:
        name = f"simulated CT, pancreas shifted by {shift_mm} mm along each axis"
        rate(name, shifted(pancreas, shift_mm), right=False, others=False)
    rate("simulated CT, pancreas of another scan", swapped(pancreas), right=False, others=False)
    rate("CHAOS MR, liver of another scan", swapped(only(real, 1)), right=False, others=False)


if __name__ == "__main__":
    main()
