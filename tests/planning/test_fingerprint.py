"""What is looked at before a plan: figures of labels and scans."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from stipple_monai import DatasetError
from stipple_monai.planning import take_fingerprint

AFFINE = np.diag([-2.0, 2.0, 5.0, 1.0])


def write(root, name, label, *, image=None, affine=AFFINE):
    image = np.where(label > 0, label * 10.0, -1000.0) if image is None else image
    paths = {"image": root / f"{name}.nii.gz", "label": root / f"{name}_label.nii.gz"}
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), paths["image"])
    nib.save(nib.Nifti1Image(label, affine), paths["label"])
    return {key: path.name for key, path in paths.items()}


def boxes(*values, shape=(12, 10, 8)):
    label = np.zeros(shape, np.uint8)
    for index, value in enumerate(values):
        label[1 + 3 * index : 3 + 3 * index, 2:6, 2:5] = value
    return label


def data(root, items, **content):
    path = root / "dataset.json"
    path.write_text(json.dumps({**content, "training": items}), encoding="utf-8")
    return path


def test_figures_of_labels_and_scans(tmp_path):
    items = [write(tmp_path, "a", boxes(63, 126)), write(tmp_path, "b", boxes(63, 255))]
    labels = {"background": 0, "liver": 63, "spleen": 126, "heart": 9}
    path = data(tmp_path, items, labels=labels, channel_names={"0": "MR"})
    found = take_fingerprint(path, progress=False)
    assert (found.modality, found.channels, found.scans, found.labelled) == ("MR", 1, 2, 2)
    assert found.organs == {63: "liver", 126: "spleen"}
    assert found.without == {9: "heart"}
    assert found.cases == {63: 2, 126: 1}
    # 24 voxels of 20 mm³
    assert found.volumes_ml[63] == {"mean": 0.48, "sd": 0.0, "least": 0.48, "greatest": 0.48}
    assert found.spacing_mm["median"] == [2.0, 2.0, 5.0]
    assert found.shape["greatest"] == [12.0, 10.0, 8.0]
    # 255 is ignored: three boxes of organs, of 630 and 1260
    assert found.intensity["mean"] == pytest.approx((2 * 630 + 1260) / 3)
    assert found.scan_intensity["p50"] == -1000
    assert json.loads(json.dumps(found.facts()))["organs"] == {"63": "liver", "126": "spleen"}


def test_the_same_data_twice_and_axes_in_another_order(tmp_path):
    label = boxes(1)
    one = data(tmp_path, [write(tmp_path, "a", label)])
    other = tmp_path / "turned"
    other.mkdir()
    affine = AFFINE[:, [2, 0, 1, 3]]
    two = data(other, [write(other, "a", label.transpose(2, 0, 1), affine=affine)])
    first = take_fingerprint(one, progress=False)
    assert first == take_fingerprint(one, progress=False)
    turned = take_fingerprint(two, progress=False)
    assert (turned.spacing_mm, turned.shape) == (first.spacing_mm, first.shape)


@pytest.mark.parametrize(
    ("content", "modality"),
    [
        ({"modality": {"0": "CT"}}, "CT"),
        ({"modality": {"0": "MRI"}}, "MR"),
        ({"channel_names": {"0": "T1"}}, "T1"),
        ({"modality": {"0": "unknown"}}, "CT"),
        ({}, "CT"),
    ],
)
def test_the_modality_is_told_or_seen(tmp_path, content, modality):
    path = data(tmp_path, [write(tmp_path, "a", boxes(1))], **content)
    assert take_fingerprint(path, progress=False).modality == modality


@pytest.mark.parametrize(
    ("content", "modality"),
    [
        ({"modality": {"0": "CT", "1": "PET"}}, "CT + PET"),
        ({"channel_names": {"0": "CT"}}, "CT + unknown"),
        ({}, "CT + unknown"),
        ({"modality": {"0": "CT", "1": "CTA"}}, "CT"),
        ({"modality": "MRI"}, "MR"),
    ],
)
def test_modalities_of_several_channels(tmp_path, content, modality):
    item = write(tmp_path, "a", boxes(1))
    several = {**item, "image": [item["image"]] * 2}
    found = take_fingerprint(data(tmp_path, [several], **content), progress=False)
    assert (found.modality, found.mixed) == (modality, "+" in modality)


def test_no_air_is_no_ct(tmp_path):
    item = write(tmp_path, "a", boxes(1), image=np.ones((12, 10, 8)))
    assert take_fingerprint(data(tmp_path, [item]), progress=False).modality == "unknown"


@pytest.mark.parametrize("content", [boxes(), np.where(boxes(1), np.nan, -1000.0)])
def test_intensities_of_scans_whose_organs_tell_none(tmp_path, monkeypatch, content):
    """The first of two scans alone is sampled, and has no organ, or no number in it."""
    monkeypatch.setattr("stipple_monai.planning.fingerprint.MOST_SCANS", 1)
    first = write(tmp_path, "a", boxes() if content.dtype == np.uint8 else boxes(1), image=content)
    items = [first, write(tmp_path, "b", boxes(1))]
    found = take_fingerprint(data(tmp_path, items, modality={"0": "CT"}), progress=False)
    assert (found.sampled, found.labelled) == (1, 2)
    # the volumes are of all
    assert found.cases == {1: 1 + int(content.dtype != np.uint8)}
    assert found.intensity == found.scan_intensity
    assert found.scan_intensity["p50"] == (0 if content.dtype == np.uint8 else -1000)


def test_endings_may_be_upper_case(tmp_path):
    item = write(tmp_path, "a", boxes(1))
    for name in item.values():
        (tmp_path / name).rename(tmp_path / name.upper())
    upper = {key: name.upper() for key, name in item.items()}
    assert take_fingerprint(data(tmp_path, [upper]), progress=False).cases == {1: 1}


def test_channels_of_several_files(tmp_path):
    item = write(tmp_path, "a", boxes(1))
    several = {**item, "image": [item["image"]] * 2}
    assert take_fingerprint(data(tmp_path, [several]), progress=False).channels == 2
    with pytest.raises(DatasetError, match=r"Scans must have the same channels, got \[1, 2\]"):
        take_fingerprint(data(tmp_path, [several, write(tmp_path, "b", boxes(1))]), progress=False)


def test_labels_that_are_nearly_whole_are_labels(tmp_path):
    nearly = write(tmp_path, "a", boxes(1).astype(np.float32) * np.float32(0.99999994))
    exact = write(tmp_path, "b", boxes(1))
    found, expected = (
        take_fingerprint(data(tmp_path, [item]), progress=False) for item in (nearly, exact)
    )
    assert found.volumes_ml == expected.volumes_ml
    assert list(found.volumes_ml) == [1]


def test_what_is_refused(tmp_path):
    item = write(tmp_path, "a", boxes(1))
    with pytest.raises(DatasetError, match="must have labelled scans in training, got none"):
        take_fingerprint(data(tmp_path, [{"image": item["image"]}]), progress=False)
    with pytest.raises(DatasetError, match="Labels must have organs, got empty ones alone"):
        take_fingerprint(data(tmp_path, [write(tmp_path, "b", boxes())]), progress=False)
    half = write(tmp_path, "c", boxes(1).astype(np.float32) / 2)
    with pytest.raises(DatasetError, match=r"`label` must have whole numbers, got 0\.5 and"):
        take_fingerprint(data(tmp_path, [half]), progress=False)
    cut = write(tmp_path, "d", boxes(1))
    data_of_cut = bytearray(gzip.decompress((tmp_path / cut["image"]).read_bytes()))
    (tmp_path / "cut.nii").write_bytes(data_of_cut[: len(data_of_cut) // 2])
    with pytest.raises(
        DatasetError, match=r"/cut\.nii must be a whole NIfTI file, got one that is"
    ):
        take_fingerprint(data(tmp_path, [{**cut, "image": "cut.nii"}]), progress=False)
    (tmp_path / "series").mkdir()
    with pytest.raises(DatasetError, match=r"Scans must be NIfTI files, got .*run `ingest` first"):
        take_fingerprint(data(tmp_path, [{**item, "image": "series"}]), progress=False)
    (tmp_path / "torn.nii.gz").write_bytes((tmp_path / item["image"]).read_bytes()[:100])
    with pytest.raises(DatasetError, match="must be a whole NIfTI file"):
        take_fingerprint(data(tmp_path, [{**item, "image": "torn.nii.gz"}]), progress=False)
