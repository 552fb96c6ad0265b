"""Results lie where they were asked for, whatever folders are called."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from helpers.threshold_model import write_model, write_scan

from stipple_monai.segmentation import segment


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["#", "@", "%", "@#", "%#", "::", "$", "[0]", "{a}", " : "])
def test_results_lie_in_the_folder_that_was_named(tmp_path, model, sign):
    mask = np.zeros((12, 10, 6), bool)
    mask[3:8, 2:7, 1:5] = True
    scan = tmp_path / f"scans{sign}1" / f"a{sign}.nii.gz"
    scan.parent.mkdir()
    write_scan(scan, mask, np.diag([-3.0, 2.0, 5.0, 1.0]))
    models, bundle_overlay = tmp_path / f"models{sign}2", tmp_path / f"overlay{sign}.yaml"
    shutil.copytree(model["models"], models)
    shutil.copy(model["models"] / "threshold.yaml", bundle_overlay)
    others = {p.name for p in tmp_path.iterdir()}
    out = tmp_path / f"results{sign}1"
    segment([scan], out, models=models, overlays=[bundle_overlay])
    np.testing.assert_array_equal(nib.load(out / f"a{sign}_seg.nii.gz").dataobj, mask)
    assert {p.name for p in tmp_path.iterdir()} - others == {out.name}


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".NII.GZ", ".NII"])
def test_endings_may_be_upper_case(tmp_path, model, ending):
    mask = np.zeros((12, 10, 6), bool)
    mask[3:8, 2:7, 1:5] = True
    (tmp_path / "in").mkdir()
    write_scan(tmp_path / f"in/B{ending}", mask, np.diag([-3.0, 2.0, 5.0, 1.0]))
    segment([tmp_path / "in"], tmp_path / "out", **model)
    np.testing.assert_array_equal(nib.load(tmp_path / "out/B_seg.nii.gz").dataobj, mask)
