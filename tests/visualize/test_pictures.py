"""Pictures of a test set: whatever format the scans have."""

import nibabel as nib
import numpy as np
import pytest

from stipple_monai.files import write_csv
from stipple_monai.priors import SpatialPrior
from stipple_monai.visualize import draw_comparisons

SHAPE = (16, 14, 12)
AFFINE = np.diag([-3.0, 3.0, 4.0, 1.0])


def saved(path, values):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    return str(path)


def box(r):
    """Label of a box that begins at ``r`` on the first axis."""
    label = np.zeros(SHAPE, np.uint8)
    label[r:10, 4:9, 3:8] = 1
    return label


@pytest.mark.parametrize("names", [["a.nii.gz"], ["a.nii"], ["a_0000.nii.gz", "a_0001.nii.gz"]])
def test_of_one_file_packed_or_not_and_of_several_channels(tmp_path, names):
    intensities = np.random.default_rng(0).normal(0, 50, SHAPE).astype(np.float32)
    scans = [saved(tmp_path / "scans" / name, intensities) for name in names]
    label = saved(tmp_path / "labels" / "a.nii.gz", box(5))
    prediction = f"{names[0].split('.')[0]}_seg.nii.gz"
    saved(tmp_path / "without" / prediction, box(10))
    saved(tmp_path / "with" / prediction, box(6))
    header = ["scan", "organ", "r_mm", "a_mm", "s_mm"]
    write_csv(tmp_path / "with" / "positions.csv", header, [[scans[0], 1, -21.0, 18.0, 20.0]])
    drawn = draw_comparisons(
        [{"image": scans if len(scans) > 1 else scans[0], "label": label}],
        SpatialPrior.estimate([label], organ=1),
        tmp_path,
        baseline=tmp_path / "without",
        stipple=tmp_path / "with",
    )
    assert drawn == {"recovered miss": tmp_path / "recovered_miss.png"}
    assert drawn["recovered miss"].read_bytes().startswith(b"\x89PNG")
