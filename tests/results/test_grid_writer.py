"""Results have their scan's grid, and are whole or absent."""

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.threshold_model import same_grid, write_scan
from monai.data import MetaTensor
from monai.transforms import LoadImage, SaveImage

from stipple_monai import DatasetError
from stipple_monai.results.grid_writer import GridWriter, on_grid_of

TILTED = np.array([[0.7, 0, 0.2, -11], [0, -0.7, 1.3, 7], [0.1, 0, 5, 3], [0, 0, 0, 1.0]])


def saved(scan, folder, values, dtype=np.float32):
    meta = LoadImage(image_only=True)(scan).meta
    save = SaveImage(
        output_dir=folder,
        output_postfix="seg",
        separate_folder=False,
        output_dtype=dtype,
        writer="stipple_monai.results.grid_writer.GridWriter",
        print_log=False,
    )
    # what rounding does to an affine on its way through transforms
    meta["affine"] = meta["affine"] * 1.001
    save(MetaTensor(values, meta=meta))
    return folder / f"{scan.name.split('.')[0]}_seg.nii.gz"


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (2, 0), (0, 0)])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 1), (1, 1, 1)])
def test_what_a_header_says_of_its_grid_is_copied(tmp_path, shape, codes, dtype):
    mask = np.ones(shape, bool)
    scan = write_scan(
        tmp_path / "a.nii.gz", mask, TILTED, dtype=dtype, codes=codes, units=("mm", "sec")
    )
    values = torch.rand(3, *shape)
    path = saved(scan, tmp_path / "new", values)
    assert same_grid(path, scan)
    assert nib.load(path).shape == (*shape, 3)
    np.testing.assert_array_equal(nib.load(path).get_fdata(), values.permute(1, 2, 3, 0).numpy())
    path = saved(scan, tmp_path / "label", values[:1].round(), torch.uint8)
    assert same_grid(path, scan)
    assert nib.load(path).shape == shape
    assert nib.load(path).get_data_dtype() == np.uint8


def test_scaled_intensities_do_not_scale_labels(tmp_path):
    image = nib.Nifti1Image(np.ones((3, 3, 3), np.int16), np.eye(4))
    image.header.set_slope_inter(2, -1000)
    nib.save(image, tmp_path / "a.nii")
    path = saved(tmp_path / "a.nii", tmp_path, torch.ones(1, 3, 3, 3))
    assert set(np.unique(nib.load(path).get_fdata())) == {1}


def test_another_shape_is_refused(tmp_path):
    scan = write_scan(tmp_path / "a.nii.gz", np.ones((4, 5, 6)), np.eye(4))
    with pytest.raises(DatasetError, match=r"scan's shape \(4, 5, 6\), got \(4, 5, 5\)"):
        on_grid_of(scan, np.zeros((4, 5, 5)), {})


def test_a_scan_of_another_format_gives_its_affine(tmp_path):
    image = on_grid_of(tmp_path, np.zeros((2, 3, 4), np.uint8), {"original_affine": TILTED})
    np.testing.assert_allclose(image.affine, TILTED)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert int(image.header["sform_code"]) == 1


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    scan = write_scan(tmp_path / "a.nii.gz", np.ones((4, 5, 6)), np.eye(4))
    out = tmp_path / "b.nii.gz"
    out.write_bytes(b"old")

    def torn(image, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", torn)
    writer = GridWriter(output_dtype=np.uint8)
    writer.set_data_array(torch.zeros(1, 4, 5, 6))
    writer.set_metadata({"filename_or_obj": str(scan)})
    with pytest.raises(OSError, match="No space"):
        writer.write(out)
    assert out.read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"a.nii.gz", "b.nii.gz"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_volume_may_lie_on_a_gpu_or_carry_a_gradient(tmp_path, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    scan = write_scan(tmp_path / "a.nii.gz", np.ones((4, 5, 6)), np.eye(4))
    values = torch.arange(120.0, device=device, requires_grad=True).reshape(1, 4, 5, 6)
    writer = GridWriter(output_dtype=np.uint8)
    writer.set_data_array(values)
    writer.set_metadata({"filename_or_obj": str(scan)})
    writer.write(tmp_path / "b.nii.gz")
    written = np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj)
    np.testing.assert_array_equal(written, np.arange(120, dtype=np.uint8).reshape(4, 5, 6))
