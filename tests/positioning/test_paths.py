"""Functions that take a volume take the path of a file as well."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from stipple_monai import (
    DatasetError,
    PositionError,
    SpatialPrior,
    check_orientation,
    locate_organ,
    locate_organs,
    measure_position,
    organ_position,
)
from stipple_monai.priors import open_volume

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


@pytest.fixture
def label():
    organs = torch.zeros(1, 30, 20, 20)
    organs[0, 4:9, 8:13, 8:13], organs[0, 20:25, 2:13, 8:13] = 1, 2
    return MetaTensor(organs, affine=torch.from_numpy(AFFINE))


def save(path, volume):
    """Channels along the fourth axis, as NIfTI has them."""
    values = volume.numpy().transpose(1, 2, 3, 0)
    nib.save(nib.Nifti1Image(values[..., 0] if len(volume) == 1 else values, AFFINE), path)
    return path


@pytest.mark.slow
def test_a_file_is_the_volume(label, tmp_path):
    path, priors = (
        save(tmp_path / "label.nii.gz", label),
        SpatialPrior.estimate_several(label, organs=[1, 2]),
    )
    assert check_orientation(path, priors) == check_orientation(label, priors)
    assert check_orientation(str(path), priors).agrees
    for function in (
        lambda volume: organ_position(volume, organ=2),
        lambda volume: measure_position(volume, priors[1]),
        lambda volume: priors[0].place((1, 2, 3), volume),
        lambda volume: SpatialPrior.estimate([volume], organ=1).probability,
    ):
        assert torch.equal(function(path), function(label))


def test_probabilities_of_a_file(label, tmp_path):
    priors = SpatialPrior.estimate_several(label, organs=[1, 2])
    both = MetaTensor(torch.cat([label == 1, label == 2]).float(), affine=label.affine)
    known = locate_organs(both, priors)
    organs = save(tmp_path / "organs.nii.gz", both)
    # as `segment --probabilities` writes them
    whole = torch.cat([1 - both.sum(0, keepdim=True), both])
    prob = save(tmp_path / "prob.nii.gz", whole)
    for path in (organs, prob):
        found = locate_organs(path, priors)
        assert torch.equal(found.position_mm, known.position_mm)
        assert torch.equal(found.confidence, known.confidence)
    expected = check_orientation(both, priors)
    assert check_orientation(organs, priors) == check_orientation(prob, priors) == expected
    one = save(tmp_path / "one.nii.gz", both[:1])
    assert torch.equal(locate_organ(one, priors[0]), locate_organ(both[:1], priors[0]))
    with pytest.raises(PositionError, match="a map of axes 2 W H D, got the shape"):
        locate_organs(one, priors)


def test_a_scan_of_a_file_keeps_its_channels(label, tmp_path):
    """One more than organs; what a network predicts of them has no background."""
    priors = SpatialPrior.estimate_several(label, organs=[1, 2])
    scan = save(tmp_path / "scan.nii.gz", torch.cat([label, label, label]))

    def predict(image):
        assert len(image) == 3
        return MetaTensor(torch.cat([image[:1] == 1, image[:1] == 2]).float(), affine=image.affine)

    assert check_orientation(scan, priors, predict=predict) == check_orientation(label, priors)


def test_what_is_no_volume(tmp_path):
    with pytest.raises(DatasetError, match=r"or a NIfTI file, got .*none\.nii: no file"):
        open_volume(tmp_path / "none.nii")
    (tmp_path / "a.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"a\.nii\.gz cannot be read as NIfTI"):
        open_volume(tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 4)), AFFINE), tmp_path / "flat.nii")
    with pytest.raises(DatasetError, match=r"flat\.nii must have the axes W H D, or W H D C"):
        open_volume(tmp_path / "flat.nii")
