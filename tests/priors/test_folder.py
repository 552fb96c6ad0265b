"""The priors of several organs as files in one folder."""

import sys

import nibabel as nib
import numpy as np
import pytest

from stipple_monai.errors import DatasetError, PriorError
from stipple_monai.priors.folder import estimate_priors, load_priors, prior_path
from stipple_monai.priors.prior import SpatialPrior


@pytest.fixture
def labels(tmp_path):
    """Two label maps; organ 3 is in the second only."""
    rng = np.random.default_rng(0)
    paths = []
    for case in range(2):
        label = np.zeros((20, 16, 12), np.uint8)
        x, y, z = rng.integers(2, 5, 3)
        label[x : x + 6, y : y + 4, z : z + 5] = 1
        label[x + 8 : x + 11, y : y + 7, z + 1 : z + 4] = 3 if case else 0
        path = tmp_path / f"{case}.nii.gz"
        nib.save(nib.Nifti1Image(label, np.diag([2.0, 2.0, 5.0, 1.0])), path)
        paths.append(str(path))
    return paths


def test_files_are_named_by_organ_and_come_in_the_order_asked_for(labels, tmp_path):
    folder = tmp_path / "new" / "models"
    with pytest.warns(UserWarning, match="does not contain organ 3: skipped"):
        priors = estimate_priors(labels, organs=[3, 1], folder=folder, bins=3)
    assert [prior.organ for prior in priors] == [3, 1]
    assert [prior.case_count for prior in priors] == [1, 2]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("prior_1.nii.gz", "prior_1_cases.npz", "prior_3.nii.gz", "prior_3_cases.npz")
    ]
    assert prior_path(folder, 3) == folder / "prior_3.nii.gz"
    for loaded, prior in zip(load_priors(folder, [3, 1]), priors, strict=True):
        assert loaded.organ == prior.organ
        np.testing.assert_array_equal(loaded.probability, prior.probability)
    assert [prior.organ for prior in load_priors(folder, [1, 3])] == [1, 3]


def test_options_are_those_of_estimate(labels, tmp_path):
    options = {"bins": 4, "spacing_mm": (3.0, 3.0, 5.0), "center": "mass"}
    (prior,) = estimate_priors(labels, organs=[1], folder=tmp_path, **options)
    direct = SpatialPrior.estimate(labels, organ=1, **options)
    np.testing.assert_array_equal(prior.probability, direct.probability)
    assert prior.bins == 4


def test_nothing_is_written_if_one_organ_is_missing(labels, tmp_path):
    folder = tmp_path / "models"
    with (
        pytest.warns(UserWarning, match="does not contain organ 2"),
        pytest.raises(PriorError, match="organ 2"),
    ):
        estimate_priors(labels, organs=[1, 2], folder=folder)
    assert not folder.exists()


def test_unreadable_label(labels, tmp_path):
    with pytest.raises(DatasetError, match=r"There is no label map at .*nowhere"):
        estimate_priors([*labels, str(tmp_path / "nowhere.nii.gz")], organs=[1], folder=tmp_path)
    assert not list(tmp_path.glob("prior_*"))


def test_missing_prior(labels, tmp_path):
    estimate_priors(labels, organs=[1], folder=tmp_path)
    with pytest.raises(PriorError, match=r"There is no prior at .*prior_2\.nii\.gz"):
        load_priors(tmp_path, [1, 2])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_progress_is_a_bar_on_a_terminal(labels, tmp_path, capsys, monkeypatch, num_workers):
    estimate_priors(labels, organs=[1], folder=tmp_path / "no", num_workers=num_workers)
    lines = [f"priors: scan {number}/{len(labels)}" for number in range(1, len(labels) + 1)]
    assert capsys.readouterr().err.splitlines() == lines
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    estimate_priors(labels, organs=[1], folder=tmp_path, num_workers=num_workers)
    assert "priors: 100%" in capsys.readouterr().err


@pytest.mark.slow
def test_files_do_not_depend_on_the_number_of_workers(labels, tmp_path):
    written = []
    for num_workers in (0, 1, 3):
        with pytest.warns(UserWarning, match=r"0\.nii\.gz does not contain organ 3: skipped"):
            estimate_priors(
                labels * 3, organs=[1, 3], folder=tmp_path / "new", num_workers=num_workers
            )
        written.append([prior_path(tmp_path / "new", organ).read_bytes() for organ in (1, 3)])
    assert written[0] == written[1] == written[2]


def test_each_map_is_read_once_for_all_organs(labels, tmp_path, monkeypatch):
    read, load = [], nib.load
    monkeypatch.setattr(nib, "load", lambda path, **how: read.append(path) or load(path, **how))
    with pytest.warns(UserWarning, match="does not contain organ 3"):
        several = estimate_priors(labels, organs=[1, 3], folder=tmp_path)
    assert read == labels
    with pytest.warns(UserWarning, match="does not contain organ 3"):
        alone = [SpatialPrior.estimate(labels, organ=organ) for organ in (1, 3)]
    for one, other in zip(several, alone, strict=True):
        np.testing.assert_array_equal(one.probability, other.probability)
        assert one.spacing_mm == other.spacing_mm


def test_the_record_decides_whose_prior_it_is(labels, tmp_path):
    with pytest.warns(UserWarning, match="does not contain organ 3: skipped"):
        estimate_priors(labels, organs=[1, 3], folder=tmp_path, bins=3)
    one, three = prior_path(tmp_path, 1), prior_path(tmp_path, 3)
    for cases in tmp_path.glob("*_cases.npz"):
        cases.unlink()
    one.rename(tmp_path / "x.nii.gz")
    three.rename(one)
    (tmp_path / "x.nii.gz").rename(three)
    with pytest.raises(PriorError, match=r"prior_1\.nii\.gz must be the prior of organ 1"):
        load_priors(tmp_path, [1, 3])
