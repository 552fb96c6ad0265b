"""Arguments at the edge of what a prior takes: an error of this package each, or right."""

from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from stipple_monai import PriorError, SpatialPrior, organ_position
from stipple_monai.errors import DatasetError, PositionError
from stipple_monai.networks.fusion import sigmoid_logits, softmax_logits
from stipple_monai.priors import open_volume
from stipple_monai.transforms import PriorAlign, PriorAlignd, PriorAugment


def label():
    array = torch.zeros(1, 8, 8, 6)
    array[0, 2:5, 2:6, 1:4] = 1
    return MetaTensor(array, affine=torch.diag(torch.tensor([2.0, 2.0, 4.0, 1.0])))


@pytest.mark.parametrize("bins", [2.5, True, 0, -1, float("nan")])
def test_bins_are_whole_numbers(bins):
    with pytest.raises(PriorError, match="`bins` must be a whole number of at least 1"):
        SpatialPrior.estimate(label(), bins=bins)


@pytest.mark.parametrize(
    "organs",
    [["1"], "1", 1, [], [1, 1], [1.5], [True], torch.tensor([1.0]), torch.ones(2, 2), None],
)
def test_organs_are_label_values(organs):
    match = "`organs` must be one label value or more, whole numbers and each once, got"
    with pytest.raises(PriorError, match=match):
        SpatialPrior.estimate_several(label(), organs=organs)


@pytest.mark.parametrize(
    "organs",
    [torch.tensor([1]), np.array([1], np.uint8), [torch.tensor(1)], (np.int64(1),), {1: "organ"}],
)
def test_organs_are_of_any_integral_type(organs):
    (prior,) = SpatialPrior.estimate_several(label(), organs=organs)
    assert type(prior.organ) is int
    assert torch.equal(prior.probability, SpatialPrior.estimate(label()).probability)


@pytest.mark.parametrize("organ", [0, -1, 255, 300])
def test_background_and_what_a_label_map_cannot_hold_are_no_organs(organ):
    values = np.full((4, 4, 4), organ, np.int16)
    volume = MetaTensor(values[None], affine=torch.eye(4))
    match = rf"`organ` must be a label value from 1 to 254, got {organ}: 0 is the background"
    with pytest.raises(PriorError, match=match):
        SpatialPrior.estimate(volume, organ=organ)
    with pytest.raises(PriorError, match=match):
        SpatialPrior(np.ones((2, 2, 2)), spacing_mm=(1, 1, 1), organ=organ)


def test_a_label_map_may_be_of_bfloat16():
    found = SpatialPrior.estimate(label().bfloat16())
    assert torch.equal(found.probability, SpatialPrior.estimate(label()).probability)


@pytest.mark.parametrize("spacing", [2.5, "near", [1, 2], [1, 2, 0], [1, None, 2]])
def test_a_spacing_is_three_lengths(spacing):
    match = "`spacing_mm` must be three positive lengths, got .*: one each along R, A and S"
    with pytest.raises(PriorError, match=match):
        SpatialPrior.estimate(label(), spacing_mm=spacing)


@pytest.mark.parametrize("smoothing", [-1, 1000, float("inf"), float("nan"), [4, 5], {}])
def test_smoothing_is_of_an_organ_s_size(smoothing):
    with pytest.raises(PriorError, match="`smoothing_mm` must be a length from 0 to 100 mm"):
        SpatialPrior.estimate(label(), bins=None, smoothing_mm=smoothing)


@pytest.mark.parametrize("values", [torch.ones(2, 2, 2), np.ones((2, 2, 2), np.float32)])
def test_a_prior_is_a_copy_of_what_it_was_made_of(values):
    prior = SpatialPrior(values, spacing_mm=(1, 1, 1))
    values[:] = 0
    assert prior.probability.min() == 1


@pytest.mark.parametrize("count", [-5, 1.5, True])
def test_a_count_of_maps_is_one(count):
    with pytest.raises(PriorError, match="`case_count` must be a number of maps"):
        SpatialPrior(torch.ones(2, 2, 2), spacing_mm=(1, 1, 1), case_count=count)


def test_probabilities_are_real():
    with pytest.raises(PriorError, match="of real numbers, got complex"):
        SpatialPrior(torch.ones(2, 2, 2, dtype=torch.complex64), spacing_mm=(1, 1, 1))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"translation_mm": float("inf")}, "`translation_mm` must be finite"),
        ({"translation_mm": float("nan")}, "`translation_mm` must be finite"),
        ({"translation_mm": 1.0, "prob": 2}, r"`prob` must be a probability in \[0, 1\], got 2"),
    ],
)
def test_shifts_are_finite(options, match):
    with pytest.raises(PositionError, match=match):
        PriorAugment(**options)


@pytest.mark.parametrize(
    ("logits", "prior"),
    [
        (torch.zeros(2), torch.zeros(2)),
        (torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 1, 3)),
        (torch.zeros(1, 2, 3), torch.zeros(1, 1, 3, dtype=torch.int64)),
    ],
)
def test_logits_are_of_floating_point_with_channels(logits, prior):
    for fuse in (softmax_logits, sigmoid_logits):
        with pytest.raises(PriorError, match="of floating point and have the axes B and C"):
            fuse(logits, prior)


def test_an_empty_batch_stays_empty():
    fused = softmax_logits(torch.zeros(0, 2, 4, 4), torch.zeros(0, 1, 4, 4))
    assert fused.shape == (0, 2, 4, 4)


@pytest.mark.parametrize("kind", ["rgb", "gii"])
def test_files_that_are_no_priors(tmp_path, kind):
    path = tmp_path / "prior_1.nii"
    if kind == "rgb":
        colours = np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
        nib.save(nib.Nifti1Image(colours, np.eye(4)), path)
    else:
        path = tmp_path / "prior_1.gii"
        array = nib.gifti.GiftiDataArray(np.zeros((3, 3), np.float32))
        nib.save(nib.GiftiImage(darrays=[array]), path)
    with pytest.raises(PriorError, match="prior_1"):
        SpatialPrior.load(path)


def test_labels_of_complex_numbers_and_volumes_that_are_not_in_mm_are_refused(tmp_path):
    label = MetaTensor(torch.zeros(1, 4, 4, 4, dtype=torch.complex64), affine=torch.eye(4))
    with pytest.raises(DatasetError, match="must hold whole numbers, got complex64: export it"):
        organ_position(label)
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(DatasetError, match=r"must be in mm, got micron in .*a\.nii"):
        open_volume(tmp_path / "a.nii")


def test_how_a_prior_is_placed_is_known_when_the_transform_is_made():
    priors = [SpatialPrior(torch.ones(2, 2, 2), spacing_mm=(1, 1, 1))]
    match = "`mode` must be 'auto', 'nearest' or 'linear', got 'cubic'"
    for transform in (partial(PriorAlign, priors), partial(PriorAlignd, "image", priors)):
        with pytest.raises(PriorError, match=match):
            transform(mode="cubic")
