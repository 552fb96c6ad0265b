"""Labels against priors: mirrored together with their scan, or with organs in another's place."""

import nibabel as nib
import numpy as np
import pytest

from stipple_monai import DatasetError, PriorError, SpatialPrior
from stipple_monai.__main__ import main
from stipple_monai.data import write_datalist
from stipple_monai.ingest import check_labels
from stipple_monai.priors import prior_organs

AFFINE = np.diag([-4.0, 4.0, 4.0, 1.0])


def organs(seed=0):
    """A large, a small and a middle organ, no two of one size."""
    a, b, c = np.random.default_rng(seed).integers(-1, 2, 3)
    label = np.zeros((60, 30, 40), np.uint8)
    label[4 + a : 22 + a, 5:25, 20:36] = 1
    label[46 + b : 54, 6:14, 24 : 32 + b] = 2
    label[40:50, 14 + c : 22 + c, 3:12] = 3
    return label


def save(path, label):
    nib.save(nib.Nifti1Image(label, AFFINE), path)
    return str(path)


def datalist(folder, labels):
    """The same mirrored scan goes with a mirrored label: nothing else tells."""
    items = []
    for name, label in labels.items():
        rng = np.random.default_rng(0)
        scan = (rng.normal(0, 10, label.shape) + 60 * (label > 0)).astype(np.int16)
        items.append(
            {
                "image": save(folder / f"{name}.nii.gz", scan),
                "label": save(folder / f"{name}_label.nii.gz", label),
            }
        )
    write_datalist(folder / "dataset.json", {"training": items})
    return folder / "dataset.json"


@pytest.fixture
def priors(tmp_path):
    files = [save(tmp_path / f"prior_case_{i}.nii.gz", organs(i)) for i in range(3)]
    for prior in SpatialPrior.estimate_several(files, organs=[1, 2, 3]):
        prior.save(tmp_path / "priors" / f"prior_{prior.organ}.nii.gz")
    return tmp_path / "priors"


@pytest.mark.slow
def test_a_pair_that_is_mirrored_together_is_found(tmp_path, priors, capsys):
    path = datalist(tmp_path, {"right": organs(5), "wrong": organs(6)[::-1]})
    assert main(["check", str(path)]) == 0
    capsys.readouterr()
    assert main(["check", str(path), "--priors", str(priors)]) == 1
    done = capsys.readouterr()
    assert "problem: wrong_label: the label fits the priors better with the axes RAS" in done.out
    assert done.out.count("problem:") == 1
    assert "got 1 problems" in done.err


def test_labels_that_are_whole_but_for_rounding(tmp_path, priors):
    """They are judged; maps with other fractions are left to the check of the data set."""
    nearly = np.float32(0.9999999)
    known = [SpatialPrior.load(priors / f"prior_{organ}.nii.gz") for organ in (1, 2, 3)]
    path = datalist(tmp_path, {"right": organs(5) * nearly, "wrong": organs(6)[::-1] * nearly})
    (told,) = check_labels(path, known, progress=False).problems
    assert told.startswith("wrong_label: the label fits the priors better with the axes RAS")
    half = datalist(tmp_path, {"right": organs(5), "half": organs(6)[::-1] / 2})
    assert check_labels(half, known, progress=False) == ([], [])


@pytest.mark.slow
def test_organs_in_another_place(tmp_path, priors):
    label = organs(5)
    swapped = np.array([0, 1, 3, 2], np.uint8)[label]
    far = np.where(label == 3, 0, label).astype(np.uint8)
    far[0:6, 14:22, 3:12] = 3
    path = datalist(tmp_path, {"right": label, "far": far, "swapped": swapped, "few": label * 0})
    known = [SpatialPrior.load(priors / f"prior_{organ}.nii.gz") for organ in (1, 2, 3)]
    found = check_labels(path, known, progress=False)
    assert found.notes == []
    assert {text.partition(":")[0] for text in found.problems} >= {"far_label"}
    (told,) = [text for text in found.problems if "organ 3 lies" in text and "far" in text]
    assert "from where the others put it, towards the right" in told
    assert not any(text.startswith("right") for text in found.problems)


@pytest.mark.slow
def test_a_scan_is_not_held_against_its_own_label(tmp_path):
    """One mirrored label of two would draw the prior to itself."""
    labels = {"a": organs(1), "b": organs(2), "wrong": organs(3)[::-1]}
    path = datalist(tmp_path, labels)
    files = [tmp_path / f"{name}_label.nii.gz" for name in labels]
    priors = SpatialPrior.estimate_several(files, organs=[1, 2, 3])
    found = check_labels(path, priors, progress=False)
    assert {text.partition(":")[0] for text in found.problems} == {"wrong_label"}


def test_one_organ_alone_is_a_note(tmp_path):
    label = (organs(0) == 1).astype(np.uint8)
    label[4:13, 5:25, 20:28] = 0
    prior = SpatialPrior.estimate(save(tmp_path / "p.nii.gz", label), smoothing_mm=None)
    found = check_labels(datalist(tmp_path, {"a": label[::-1]}), [prior], progress=False)
    assert found.problems == []
    assert "one organ alone may seem so" in found.notes[0]


def test_labels_that_cannot_be_read_and_organs_without_others_are_passed_over(tmp_path, priors):
    """`check_dataset` tells of the one; of two organs nobody knows which lies elsewhere."""
    label = organs(5)
    far = np.where(label == 3, 0, label).astype(np.uint8)
    far[0:6, 14:22, 3:12] = 3
    path = datalist(tmp_path, {"far": far, "broken": label})
    (tmp_path / "broken_label.nii.gz").write_bytes(b"no NIfTI")
    known = [SpatialPrior.load(priors / f"prior_{organ}.nii.gz") for organ in (1, 3)]
    assert check_labels(path, known, progress=False).problems == []


def test_what_cannot_be_compared(tmp_path, priors):
    path = datalist(tmp_path, {"a": organs(0) * 20})
    known = [SpatialPrior.load(priors / "prior_1.nii.gz")]
    with pytest.raises(DatasetError, match=r"labels with the organs of the priors \(1\)"):
        check_labels(path, known, progress=False)
    with pytest.raises(PriorError, match=r"a folder with prior_ORGAN\.nii\.gz, got none in"):
        prior_organs(tmp_path)
