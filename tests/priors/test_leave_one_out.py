"""A prior without some of its labels, against estimating anew; cases in files; recognition."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, Spacing

from stipple_monai import SpatialPrior, estimate_priors, load_priors
from stipple_monai.errors import DatasetError, PriorError
from stipple_monai.priors import own_cases, prior_path
from stipple_monai.priors.case_file import cases_path
from stipple_monai.priors.likelihood import leave_one_out
from stipple_monai.priors.organ import open_label, organ_masks
from stipple_monai.priors.recognition import SAME, overlap

SHAPE = (30, 28, 26)


def organ_of(seed, size=9.0, *, spacing=(1.5, 1.5, 2.0), values=1):
    """A label map with a body of two ellipsoids, in another form for each seed."""
    rng = np.random.default_rng(seed)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = rng.normal(size=3) * 100
    points = np.moveaxis(np.indices(SHAPE), 0, -1) * spacing
    middle = np.array(SHAPE) * spacing / 2 + rng.uniform(-3, 3, 3)
    inside = np.zeros(SHAPE, bool)
    for _ in range(2):
        axes = size * rng.uniform(0.6, 1.2, 3)
        inside |= (((points - middle - rng.uniform(-6, 6, 3)) / axes) ** 2).sum(-1) < 1
    return MetaTensor(torch.from_numpy(values * inside.astype(np.uint8))[None], affine=affine)


LABELS = [organ_of(seed) for seed in range(5)]
KINDS = {
    "density": {"smoothing_mm": 5.0},
    "on a grid": {"smoothing_mm": 4.0, "spacing_mm": (2.0, 3.0, 2.5)},
    "bins": {"bins": 4},
    "slices": {"smoothing_mm": None},
}
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=list(KINDS))


def in_files(labels, folder):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"scan_{i}.nii.gz") for i in range(len(labels))]
    for label, path in zip(labels, paths, strict=True):
        nib.save(nib.Nifti1Image(np.asarray(label)[0], label.affine.numpy()), path)
    return paths


def same_grid(prior, like):
    """A prior's values on the grid of another, of which it may be a part."""
    pads = []
    for n, m in zip(like.probability.shape, prior.probability.shape, strict=True):
        assert (n - m) % 2 == 0
        pads.append(((n - m) // 2,) * 2)
    return np.pad(prior.probability.numpy(), pads)


# leaving out


@pytest.mark.parametrize("smoothing_mm", [0.0, 4.0, "auto"])
def test_the_likelihood_of_a_prior_is_that_of_its_width(smoothing_mm):
    prior = SpatialPrior.estimate(LABELS, smoothing_mm=smoothing_mm)
    assert prior.cases.smoothing_mm == prior.smoothing_mm
    assert prior.log_likelihood == pytest.approx(leave_one_out(prior.cases))


@pytest.mark.parametrize("kind", ["density", "on a grid"])
@pytest.mark.parametrize("center", ["bbox", "mass"])
@pytest.mark.parametrize("without", [[0], [3], [1, 4], [0, 1, 2, 3]])
def test_a_density_without_labels_is_that_of_estimating_anew(kind, center, without):
    prior = SpatialPrior.estimate(LABELS, center=center, **KINDS[kind])
    rest = [label for i, label in enumerate(LABELS) if i not in without]
    anew = SpatialPrior.estimate(rest, center=center, **KINDS[kind])
    left = prior.leave_out(without)
    # Of the tail there is more, where the box is that of larger organs: below 3 widths' value.
    difference = np.abs(left.probability.numpy() - same_grid(anew, left))
    inside = same_grid(SpatialPrior(torch.ones_like(anew.probability), spacing_mm=[1] * 3), left)
    assert difference[inside > 0].max() < 2e-6
    assert difference.max() < 2e-3
    assert (left.case_count, left.center) == (len(rest), center)
    assert left.smoothing_mm == anew.smoothing_mm


@pytest.mark.parametrize("options", [{"bins": 4}, {"smoothing_mm": None}])
def test_a_histogram_without_a_label_is_that_of_estimating_anew(options):
    # The largest stays, so that the box is the same.
    largest = MetaTensor(torch.zeros(1, *SHAPE), affine=torch.eye(4))
    largest[0, 3:27, 2:26, 1:25] = 1
    smaller = [MetaTensor(torch.zeros(1, *SHAPE), affine=torch.eye(4)) for _ in range(3)]
    for i, label in enumerate(smaller):
        label[0, 5 + i : 20 + i, 4 : 20 - i, 3:20] = 1
    prior = SpatialPrior.estimate([*smaller, largest], **options)
    anew = SpatialPrior.estimate([smaller[0], smaller[2], largest], **options)
    left = prior.leave_out([1])
    torch.testing.assert_close(left.probability, anew.probability, atol=1e-6, rtol=0)


def test_group_wise_centres_stay_those_of_all_labels():
    prior = SpatialPrior.estimate(LABELS, center="groupwise", smoothing_mm=5.0)
    contributions = [prior.cases.contribution(i) for i in range(5)]
    np.testing.assert_allclose(prior.probability, np.mean(contributions, axis=0), atol=1e-6)
    left = prior.leave_out([2]).probability
    expected = np.mean([q for i, q in enumerate(contributions) if i != 2], axis=0)
    np.testing.assert_allclose(left, expected, atol=1e-6)


@every_kind
def test_contributions_add_up(options):
    prior = SpatialPrior.estimate(LABELS, **options)
    total = sum(prior.cases.contribution(i) for i in range(5))
    np.testing.assert_allclose(total / 5, prior.probability, atol=1e-6)
    assert prior.probability.shape == prior.cases.whole_shape


@every_kind
@pytest.mark.parametrize("mode", ["auto", "nearest", "linear"])
@pytest.mark.parametrize(
    "grid",
    [
        ((20, 18, 16), (0, 0, 0)),
        ((60, 60, 1), (0, 0, 0)),
        ((1, 60, 60), (3, 0, 0)),
        ((9, 9, 9), (25, -25, 25)),
        ((5, 5, 5), (500, 0, 0)),
    ],
)
def test_placing_without_a_label_is_placing_the_prior_without_it(options, mode, grid):
    prior = SpatialPrior.estimate(LABELS, **options)
    shape, offset = grid
    turn = np.array([[0.99, -0.1, 0.02], [0.1, 0.99, 0.05], [-0.03, -0.05, 0.99]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [1.3, 1.2, 2.2]
    affine[:3, 3] = offset - affine[:3, :3] @ (np.array(shape) - 1) / 2
    like = MetaTensor(torch.zeros(1, *shape), affine=affine)
    found = prior.place((1.0, -2.0, 0.5), like, mode=mode, without=[1, 3])
    left = prior.leave_out([1, 3])
    expected = left.place((1.0, -2.0, 0.5), like, mode=mode)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), atol=2e-5, rtol=0)
    torch.testing.assert_close(found.affine, expected.affine)


def test_what_cannot_be_left_out():
    prior = SpatialPrior.estimate(LABELS[:2], smoothing_mm=5.0)
    like = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.eye(4))
    for leave in (prior.leave_out, lambda w: prior.place((0, 0, 0), like, without=w)):
        for given in ([0, 1], [-1], [2]):
            with pytest.raises(PriorError, match=r"be numbers of label maps, 0 to 1, and leave"):
                leave(given)
    assert prior.leave_out([0, 0]).case_count == 1
    plain = SpatialPrior(prior.probability, spacing_mm=prior.spacing_mm, case_count=2)
    with pytest.raises(PriorError, match=r"without what each label map .* \.\.\._cases|…_cases"):
        plain.leave_out([0])
    for smoothing in (float("nan"), -1.0):
        with pytest.raises(PriorError, match="`smoothing_mm` must be a length of at least 0, got"):
            SpatialPrior(torch.zeros(3, 3, 3), spacing_mm=(1, 1, 1), smoothing_mm=smoothing)
    with pytest.raises(PriorError, match="`cases` must be those that the prior was made of"):
        SpatialPrior(torch.zeros(3, 3, 3), spacing_mm=(1, 1, 1), cases=prior.cases)


def test_a_case_is_small():
    prior = SpatialPrior.estimate(LABELS)
    bytes_of_a_case = np.mean([len(case.packed) for case in prior.cases])
    assert bytes_of_a_case < 0.2 * prior.probability.numel()


# files


@every_kind
def test_cases_come_back_with_the_prior(tmp_path, options):
    priors = estimate_priors(LABELS, organs=[1], folder=tmp_path, **options)
    (loaded,) = load_priors(tmp_path, [1])
    assert loaded.cases == priors[0].cases
    assert loaded.smoothing_mm == priors[0].smoothing_mm
    assert loaded.volumes_ml == priors[0].volumes_ml
    assert loaded.log_likelihood == priors[0].log_likelihood
    assert torch.equal(loaded.leave_out([2]).probability, priors[0].leave_out([2]).probability)


def test_a_prior_can_be_handed_on_without_its_cases(tmp_path):
    (prior,) = estimate_priors(LABELS, organs=[1], folder=tmp_path / "a")
    (tmp_path / "b").mkdir()
    shutil.copy(prior_path(tmp_path / "a", 1), tmp_path / "b")
    (loaded,) = load_priors(tmp_path / "b", [1])
    assert loaded.cases is None
    assert loaded.log_likelihood == prior.log_likelihood
    loaded.save(prior_path(tmp_path / "a", 1))
    assert not cases_path(prior_path(tmp_path / "a", 1)).exists()


def test_cases_of_another_prior_are_not_used(tmp_path):
    for name, labels in (("a", LABELS), ("b", LABELS[:3])):
        estimate_priors(labels, organs=[1], folder=tmp_path / name, smoothing_mm=5.0)
    shutil.copy(tmp_path / "b" / "prior_1_cases.npz", tmp_path / "a")
    with pytest.warns(UserWarning, match=r"_cases.npz was made with another prior .* Delete it"):
        (prior,) = load_priors(tmp_path / "a", [1])
    assert prior.cases is None


def test_a_prior_that_cannot_be_written_leaves_the_one_before_and_its_cases(tmp_path, monkeypatch):
    (prior,) = estimate_priors(LABELS, organs=[1], folder=tmp_path, smoothing_mm=5.0)
    path = prior_path(tmp_path, 1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stipple_monai.priors.prior_file.nib.save", full)
    with pytest.raises(OSError, match="No space left"):
        SpatialPrior(prior.probability, spacing_mm=prior.spacing_mm).save(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_file_of_the_users_is_not_taken_for_cases(tmp_path):
    np.savez(tmp_path / "liver_cases.npz", mine=np.ones(3))
    before = (tmp_path / "liver_cases.npz").read_bytes()
    prior = SpatialPrior(torch.zeros(3, 3, 3), spacing_mm=(1, 1, 1))
    with pytest.raises(PriorError, match=r"liver_cases.npz is beside the prior .* rename it"):
        prior.save(tmp_path / "liver.nii.gz")
    assert [file.name for file in tmp_path.iterdir()] == ["liver_cases.npz"]
    assert (tmp_path / "liver_cases.npz").read_bytes() == before


@pytest.mark.parametrize("spoil", [b"", b"text", b"half", b"no record"])
def test_cases_that_cannot_be_read(tmp_path, spoil):
    estimate_priors(LABELS[:2], organs=[1], folder=tmp_path)
    path = tmp_path / "prior_1_cases.npz"
    if spoil == b"no record":
        np.savez(path, record=np.frombuffer(json.dumps({}).encode(), np.uint8))
    else:
        path.write_bytes(path.read_bytes()[:400] if spoil == b"half" else spoil)
    with pytest.raises(PriorError, match=r"prior_1_cases.npz cannot be read: .* Delete it, or"):
        load_priors(tmp_path, [1])


def test_no_pickle_is_loaded(tmp_path):
    estimate_priors(LABELS[:2], organs=[1], folder=tmp_path)
    np.savez(tmp_path / "prior_1_cases.npz", record=np.array([{"a": 1}], dtype=object))
    with pytest.raises(PriorError, match="cannot be read: ValueError: Object arrays"):
        load_priors(tmp_path, [1])


# recognition


@every_kind
@pytest.mark.parametrize("center", ["bbox", "mass", "groupwise"])
def test_every_label_is_known_again(options, center):
    prior = SpatialPrior.estimate(LABELS, center=center, **options)
    for i, label in enumerate(LABELS):
        assert own_cases(label, prior) == [i]
        assert (
            overlap(*organ_masks(open_label(label), [1])[0], prior.cases.items[i], prior.cases)
            > SAME
        )


@pytest.mark.parametrize("pixdim", [None, (2.0, 2.0, 2.0), (3.0, 3.0, 4.0)])
def test_a_label_from_a_pipeline_is_known_again(tmp_path, pixdim):
    paths = in_files(LABELS, tmp_path)
    prior = SpatialPrior.estimate(paths, center="groupwise")
    steps = [LoadImage(image_only=True), EnsureChannelFirst(), Orientation("LPS", labels=None)]
    if pixdim is not None:
        steps.append(Spacing(pixdim, mode="nearest"))
    for i, path in enumerate(paths):
        assert own_cases(Compose(steps)(path), prior) == [i]


@pytest.mark.slow
def test_another_patients_label_is_not_known_whatever_its_name(tmp_path):
    prior = SpatialPrior.estimate(in_files(LABELS, tmp_path))
    for i in range(5, 12):
        other = organ_of(i)
        assert own_cases(other, prior) == []
        other.meta["filename_or_obj"] = "elsewhere/scan_2.nii.gz"
        assert own_cases(other, prior) in ([], [2])
    absent = organ_of(0, values=0)
    assert own_cases(absent, prior) == []


def thinner(label):
    """Without the first slices of its organ."""
    label = label.clone()
    first = (label[0].numpy() > 0).any((1, 2)).argmax()
    label[0, first : first + 4] = 0
    return label


def test_a_name_decides_where_the_overlap_is_not_clear(tmp_path):
    prior = SpatialPrior.estimate(in_files(LABELS, tmp_path))
    part = thinner(LABELS[1])
    crop = organ_masks(open_label(part), [1])[0]
    assert 0.6 < overlap(*crop, prior.cases.items[1], prior.cases) < SAME
    assert own_cases(part, prior) == []
    part.meta["filename_or_obj"] = "moved/scan_1.nii.gz"
    assert own_cases(part, prior) == [1]
    # an organ of three times the volume is another's, whatever the name
    other = organ_of(1, size=13.0)
    other.meta["filename_or_obj"] = "moved/scan_1.nii.gz"
    assert own_cases(other, prior) == []


@pytest.mark.parametrize(
    ("names", "own"),
    [
        (["a/label.nii.gz"], []),
        (["a/liver.nii.gz"], []),
        (["a/Seg-Mask.nii.gz", "a/other.nii.gz"], []),
        (["a/scan_1.nii.gz", "b/scan_1.nii.gz"], []),
        (["a/scan_1.nii.gz"], [0]),
        (["a/jones.nii.gz", "a/smith.nii.gz"], [0]),
    ],
)
def test_a_name_that_every_patient_may_have_decides_nothing(tmp_path, names, own):
    for name, label in zip(names, LABELS[1:], strict=False):
        (path,) = in_files([label], (tmp_path / name).parent)
        Path(path).replace(tmp_path / name)
    prior = SpatialPrior.estimate([tmp_path / name for name in names])
    other = thinner(LABELS[1])
    crop = organ_masks(open_label(other), [1])[0]
    assert 0.6 < overlap(*crop, prior.cases.items[0], prior.cases) < SAME
    other.meta["filename_or_obj"] = f"elsewhere/{Path(names[0]).name}"
    assert own_cases(other, prior) == own


def test_a_scan_that_was_given_twice_is_left_out_twice():
    prior = SpatialPrior.estimate([*LABELS, LABELS[1]])
    assert own_cases(LABELS[1], prior) == [1, 5]


def test_of_two_patients_who_are_alike_the_label_is_known_for_its_own():
    boxes = []
    for length in (20, 22):
        values = torch.zeros(1, 30, 20, 20, dtype=torch.uint8)
        values[0, 3 : 3 + length, 5:15, 4:16] = 1
        boxes.append(MetaTensor(values, affine=torch.diag(torch.tensor([2.0, 2, 2, 1]))))
    prior = SpatialPrior.estimate(boxes, smoothing_mm=4.0, spacing_mm=(2.0, 2.0, 2.0))
    crop = organ_masks(open_label(boxes[0]), [1])[0]
    assert overlap(*crop, prior.cases.items[1], prior.cases) > SAME
    for number, label in enumerate(boxes):
        assert own_cases(label, prior) == [number]


def test_numbers_are_those_of_the_maps_that_have_the_organ():
    labels = [organ_of(0, values=2), *LABELS[:3]]
    with pytest.warns(UserWarning, match="does not contain organ 1"):
        prior = SpatialPrior.estimate(labels)
    assert own_cases(LABELS[2], prior) == [2]


def test_what_own_cases_needs(tmp_path):
    bare = SpatialPrior(torch.ones(3, 3, 3), spacing_mm=(1, 1, 1))
    with pytest.raises(PriorError, match=r"must know its cases.*: estimate it again"):
        own_cases(LABELS[0], bare)
    prior = SpatialPrior.estimate(LABELS)
    with pytest.raises(DatasetError, match="There is no label map at"):
        own_cases(tmp_path / "gone.nii.gz", prior)
