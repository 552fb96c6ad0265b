"""A prior on a scan's grid."""

import nibabel as nib
import numpy as np
import pytest
from helpers.threshold_model import same_grid

from stipple_monai import SpatialPrior
from stipple_monai.__main__ import main
from stipple_monai.results import place_prior

AFFINE = np.array([[-2.0, 0, 0, 40], [0, 2, 0, -30], [0, 0, 3, 7], [0, 0, 0, 1]])


@pytest.fixture
def data(tmp_path):
    label = np.zeros((30, 24, 16), np.uint8)
    label[6:14, 5:13, 3:9] = 1
    for name, values in (("label", label), ("scan", label.astype(np.int16) * 100)):
        nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / f"{name}.nii.gz")
    prior = SpatialPrior.estimate([str(tmp_path / "label.nii.gz")], smoothing_mm=2)
    prior.save(tmp_path / "prior_1.nii.gz")
    return tmp_path


def test_a_prior_lies_over_its_scan(data, capsys):
    out = data / "placed.nii.gz"
    arguments = ["place", str(data / "prior_1.nii.gz"), "--like", str(data / "scan.nii.gz")]
    arguments += ["--out", str(out)]
    assert main([*arguments, "--label", str(data / "label.nii.gz")]) == 0
    assert "centre at 21.00 -13.00 23.50 mm" in capsys.readouterr().out
    assert same_grid(out, data / "scan.nii.gz")
    placed, label = (nib.load(p).get_fdata() for p in (out, data / "label.nii.gz"))
    assert placed[label == 1].min() > 0.1
    assert placed[8:12, 7:11, 5:7].min() > 0.9
    assert main([*arguments, "--position", "21", "-13", "23.5"]) == 0
    np.testing.assert_array_equal(nib.load(out).get_fdata(), placed)


def test_what_cannot_be_placed_is_refused(data):
    prior, like, label = (data / f"{n}.nii.gz" for n in ("prior_1", "scan", "label"))
    out = data / "placed.nii.gz"
    with pytest.raises(ValueError, match="One of `label` and `position_mm` must be given"):
        place_prior(prior, out, like=like)
    with pytest.raises(ValueError, match="The prior must reach into the scan"):
        place_prior(prior, out, like=like, position_mm=[500, 0, 0])
    with pytest.raises(ValueError, match=r"must end in \.nii"):
        place_prior(prior, data / "placed.mha", like=like, label=label)
    with pytest.raises(ValueError, match="must be a scan that exists"):
        place_prior(prior, out, like=data / "none.nii.gz", label=label)
    with pytest.raises(ValueError, match="must be a NIfTI file or a DICOM series"):
        place_prior(prior, out, like=__file__, label=label)
    with pytest.raises(ValueError, match="must not be an input"):
        place_prior(prior, like, like=like, label=label)
    (data / "cut.nii.gz").write_bytes(b"none")
    with pytest.raises(ValueError, match="`like` must be a whole scan"):
        place_prior(prior, out, like=data / "cut.nii.gz", label=label)
    metres = nib.Nifti1Image(np.zeros((4, 4, 4)), AFFINE)
    metres.header.set_xyzt_units("meter")
    nib.save(metres, data / "metres.nii.gz")
    with pytest.raises(ValueError, match=r"must be in mm, got meter in .*metres"):
        place_prior(prior, out, like=data / "metres.nii.gz", label=label)
    nib.save(nib.Nifti1Image(np.zeros((4, 4)), AFFINE), data / "flat.nii.gz")
    with pytest.raises(ValueError, match="`like` must be 3D"):
        place_prior(prior, out, like=data / "flat.nii.gz", label=label)
    assert not out.exists()
