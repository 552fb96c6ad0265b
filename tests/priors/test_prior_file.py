"""A prior as a file: written, read, refused."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.affines import apply_affine

from stipple_monai.errors import PositionError, PriorError
from stipple_monai.positioning import positioned_together
from stipple_monai.priors.prior import SpatialPrior


@pytest.fixture
def random_prior():
    values = np.random.default_rng(5).random((7, 6, 5))
    return SpatialPrior(values, spacing_mm=(1.1, 0.9, 2.3), organ=2, case_count=3)


@pytest.mark.parametrize("name", ["prior.nii", "new/prior.nii.gz"])
def test_save_and_load_keep_everything(tmp_path, random_prior, name):
    random_prior.center = "mass"
    random_prior.save(tmp_path / name)
    loaded = SpatialPrior.load(str(tmp_path / name))
    assert torch.equal(loaded.probability, random_prior.probability)
    assert loaded.spacing_mm == pytest.approx(random_prior.spacing_mm, rel=1e-6)
    assert (loaded.organ, loaded.case_count, loaded.center, loaded.bins) == (2, 3, "mass", 5)
    affine = np.eye(4)
    affine[:3, 3] = -7, 3, 50
    like = MetaTensor(torch.zeros(1, 8, 8, 8), affine=affine)
    torch.testing.assert_close(
        loaded.place((0, 0, 54), like), random_prior.place((0, 0, 54), like), atol=1e-5, rtol=0
    )


def test_any_viewer_sees_an_image_in_mm_centred_on_the_origin(tmp_path, random_prior):
    random_prior.save(tmp_path / "prior.nii.gz")
    image = nib.load(tmp_path / "prior.nii.gz")
    assert image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms() == pytest.approx((1.1, 0.9, 2.3))
    np.testing.assert_allclose(apply_affine(image.affine, [3, 2.5, 2]), 0, atol=1e-5)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), random_prior.probability)


def test_wrong_ending(tmp_path, random_prior):
    with pytest.raises(PriorError, match=r"saved as '\.nii' or '\.nii\.gz', got .*prior\.pt"):
        random_prior.save(tmp_path / "prior.pt")
    assert os.listdir(tmp_path) == []


def test_a_failed_save_leaves_the_old_file(tmp_path, random_prior, monkeypatch):
    path = tmp_path / "prior.nii.gz"
    random_prior.save(path)
    before = path.read_bytes()

    def half(image, target):
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", half)
    with pytest.raises(OSError, match="disk full"):
        SpatialPrior(torch.ones(2, 2, 2), spacing_mm=(1, 1, 1)).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["prior.nii.gz"]


def with_record(path, change, values=None, affine=None):
    """Rewrite a prior with another record, other values or another affine."""
    image = nib.load(path)
    record = json.loads(image.header.extensions[0].get_content())
    change(record)
    # a copy: the file is mapped, and written over
    values = np.array(image.dataobj) if values is None else values
    other = nib.Nifti1Image(values, image.affine if affine is None else affine)
    other.header.extensions.append(
        nib.nifti1.Nifti1Extension("comment", json.dumps(record).encode())
    )
    nib.save(other, path)


def test_missing_file(tmp_path):
    with pytest.raises(PriorError, match=r"There is no prior at .*gone\.nii\.gz.*Estimate it"):
        SpatialPrior.load(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:100] + bytes(255 - b for b in raw[100:140]) + raw[140:],
        lambda raw: b"a text",
        lambda raw: b"",
    ],
    ids=["truncated", "damaged", "text", "empty"],
)
@pytest.mark.parametrize("name", ["prior.nii", "prior.nii.gz"])
def test_file_that_cannot_be_read(tmp_path, random_prior, spoil, name):
    path = tmp_path / name
    random_prior.save(path)
    raw = path.read_bytes()
    path.write_bytes(spoil(raw))
    with pytest.raises(PriorError, match=r"(?s)prior\.nii.*Estimate it again") as caught:
        SpatialPrior.load(path)
    assert "There is no prior" not in str(caught.value)


@pytest.mark.parametrize("note", [None, b"a note", b"[1, 2]", b'{"other": 1}', b"\xff\xfe"])
def test_image_without_a_record(tmp_path, note):
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), np.eye(4))
    if note is not None:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", note))
    nib.save(image, tmp_path / "scan.nii.gz")
    with pytest.raises(PriorError, match=r"scan\.nii\.gz is an image, but not a prior"):
        SpatialPrior.load(tmp_path / "scan.nii.gz")


def test_files_of_before_know_no_estimation_and_are_positioned_together(tmp_path):
    label = torch.zeros(1, 20, 12, 8)
    label[0, 2:7, 3:8, 2:6], label[0, 12:17, 3:8, 2:6] = 1, 2
    scan = MetaTensor(label, affine=torch.diag(torch.tensor([4.0, 4, 4, 1])))
    priors = SpatialPrior.estimate_several([scan], organs=[1, 2])
    paths = [tmp_path / f"prior_{prior.organ}.nii.gz" for prior in priors]
    for prior, path in zip(priors, paths, strict=True):
        prior.save(path)
        assert SpatialPrior.load(path).offsets_id == prior.offsets_id == priors[0].offsets_id
        with_record(path, lambda record: record.pop("offsets_id"))
    old = [SpatialPrior.load(path) for path in paths]
    assert [prior.offsets_id for prior in old] == [None, None]
    assert positioned_together(old)
    with pytest.raises(PositionError, match="must be of one estimation"):
        positioned_together([old[0], priors[1]])


def test_newer_format(tmp_path, random_prior):
    path = tmp_path / "prior.nii"
    random_prior.save(path)
    with_record(path, lambda record: record.update(stipple_prior=2))
    with pytest.raises(PriorError, match="format 2, and this version reads format 1: update"):
        SpatialPrior.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(bins=4), "it has 5 bins, its record says 4"),
        (lambda r: r.pop("organ"), "not a valid prior: its record lacks 'organ'"),
        (lambda r: r.pop("smoothing_mm"), "not a valid prior: its record lacks 'smoothing_mm'"),
        (lambda r: r.pop("volumes_ml"), "not a valid prior: its record lacks 'volumes_ml'"),
        (lambda r: r.update(volumes_ml={"mean": 1}), "not a valid prior: .*missing 3 required"),
        (lambda r: r.pop("log_likelihood"), "not a valid prior: its record lacks 'log_lik"),
        (lambda r: r.update(organ="liver"), "not a valid prior: invalid literal"),
        (lambda r: r.update(case_count=None), "not a valid prior: `case_count` must be"),
        (lambda r: r.update(center="top"), "not a valid prior: `center` must be"),
    ],
)
def test_record_that_does_not_fit(tmp_path, random_prior, change, message):
    path = tmp_path / "prior.nii"
    random_prior.save(path)
    with_record(path, change)
    with pytest.raises(PriorError, match=message):
        SpatialPrior.load(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((7, 6, 5), 2, np.float32), r"must lie in \[0, 1\], got \[2, 2\]"),
        (np.full((7, 6, 5), np.nan, np.float32), "must be finite"),
        (np.zeros((7, 6, 5, 2), np.float32), "must have three axes"),
    ],
)
def test_values_out_of_range_in_a_file(tmp_path, random_prior, values, message):
    path = tmp_path / "prior.nii"
    random_prior.save(path)
    with_record(path, lambda record: None, values=values)
    with pytest.raises(PriorError, match=f"not a valid prior: `probability` {message}"):
        SpatialPrior.load(path)


def test_reoriented_file_is_refused_because_it_would_be_mirrored(tmp_path, random_prior):
    path = tmp_path / "prior.nii"
    random_prior.save(path)
    mirrored = nib.load(path).affine @ np.diag([-1, 1, 1, 1])
    with_record(path, lambda record: None, affine=mirrored)
    with pytest.raises(PriorError, match=r"its affine must be .* so it was reoriented"):
        SpatialPrior.load(path)
