"""Organs that are wanted alone: segmented together with the others, written alone."""

import csv

import nibabel as nib
import numpy as np
import pytest
import torch

from stipple_monai import SpatialPrior
from stipple_monai.__main__ import main
from stipple_monai.bundle import BUNDLE, configs_of, write_model

OVERLAY = """\
organs: [7, 9]
backbone: {_target_: torch.nn.Conv2d, in_channels: 1, out_channels: 3, kernel_size: 1}
mean_hu: 0
slice_size: [32, 32]
num_workers: 0
progress: false
minimum_confidence: 0
device: $torch.device('cpu')
"""
AFFINE = np.diag([3.0, 3.0, 5.0, 1.0])


@pytest.fixture
def labels():
    values = np.zeros((20, 20, 12), np.uint8)
    values[3:9, 5:13, 3:9], values[11:17, 5:13, 3:9] = 7, 9
    return values


@pytest.fixture
def model(tmp_path, labels):
    """Above 60 HU it is a liver, around 0 HU a spleen."""
    folder = tmp_path / "model"
    folder.mkdir()
    weight = torch.tensor([-200.0, 200.0, 0.0])[:, None, None, None]
    state = {"network.weight": weight, "network.bias": torch.tensor([0.0, 0.0, 50.0])}
    torch.save(state, folder / "model.pt")
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(labels, AFFINE), label)
    for prior in SpatialPrior.estimate_several([label], organs=[7, 9]):
        prior.save(folder / f"prior_{prior.organ}.nii.gz")
    (tmp_path / "overlay.yaml").write_text(OVERLAY, encoding="utf-8")
    organs, overlays = {7: "liver", 9: "spleen"}, [tmp_path / "overlay.yaml"]
    write_model(folder, configs_of(BUNDLE), organs=organs, overlays=overlays)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "kept"), [([], [7, 9]), (["--organs", "9"], [9]), (["--organs", "Liver"], [7])]
)
def test_only_what_is_wanted_is_written(model, labels, tmp_path, given, kept):
    scan = np.select([labels == 7, labels == 9], [100, 0], -100).astype(np.int16)
    nib.save(nib.Nifti1Image(scan, AFFINE), tmp_path / "scan.nii.gz")
    command = ["segment", str(tmp_path / "scan.nii.gz"), "--models", str(model)]
    assert main([*command, "--out", str(tmp_path / "out"), *given]) == 0
    found = np.asarray(nib.load(tmp_path / "out" / "scan_seg.nii.gz").dataobj)
    assert np.array_equal(found, np.where(np.isin(labels, kept), labels, 0))
    with (tmp_path / "out" / "volumes.csv").open(encoding="utf-8") as file:
        assert [int(row["organ"]) for row in csv.DictReader(file)] == kept


def test_organs_that_the_network_does_not_know(model, tmp_path, capsys):
    command = ["segment", str(tmp_path), "--models", str(model), "--out", str(tmp_path / "out")]
    assert main([*command, "--organs", "9", "heart"]) == 1
    said = capsys.readouterr().err
    assert "`organs` must be among those of the network, 7 (liver), 9 (spleen), got heart" in said
    assert main([*command, "--labels", "9=Milz", "3=heart", "--organs", "heart"]) == 1
    said = capsys.readouterr().err
    assert "`labels` must be among those of the network, 7 (liver), 9 (spleen), got 3=heart" in said
    assert not (tmp_path / "out").exists()


def test_a_name_of_two_organs_wants_none_of_them(model, labels, tmp_path, capsys):
    scan = np.select([labels == 7, labels == 9], [100, 0], -100).astype(np.int16)
    nib.save(nib.Nifti1Image(scan, AFFINE), tmp_path / "scan.nii.gz")
    command = ["segment", str(tmp_path / "scan.nii.gz"), "--models", str(model)]
    same = ["--out", str(tmp_path / "out"), "--labels", "0=background", "7=kidney", "9=Kidney"]
    assert main([*command, *same, "--organs", "kidney"]) == 1
    said = capsys.readouterr().err
    assert "`organs` must name one organ each, got kidney, the name of 7 and 9: give" in said
    assert main([*command, *same, "--organs", "9"]) == 0
    found = np.asarray(nib.load(tmp_path / "out" / "scan_seg.nii.gz").dataobj)
    assert np.array_equal(found, np.where(labels == 9, 9, 0))
