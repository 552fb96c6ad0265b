import itertools
import math
from decimal import Decimal

import pytest
import torch
from monai.data import MetaTensor

from stipple_monai.pseudo_labels.selection import select_top_k


def oracle(probability, *, share=None, count=None, minimum=0.0, background_minimum=0.0, ignore=255):
    """The definition, one voxel at a time."""
    channels, *spatial = probability.shape
    organs = max(channels - 1, 1)
    label = torch.zeros(1, *spatial, dtype=torch.uint8)
    predicted = {organ: [] for organ in range(1, organs + 1)}
    for flat, where in enumerate(itertools.product(*map(range, spatial))):
        values = [float(probability[(c, *where)]) for c in range(channels)]
        if channels == 1:
            values = [0.5, *values]
        winner = values.index(max(values))
        if winner:
            predicted[winner].append((-values[winner], flat, where))
        elif (1 - values[1] if channels == 1 else values[0]) < background_minimum:
            label[(0, *where)] = ignore
    for organ, voxels in predicted.items():
        if share is not None:
            part = share[organ - 1] if isinstance(share, list) else share
            k = math.ceil(Decimal(str(part)) * len(voxels))
        else:
            k = count[organ - 1] if isinstance(count, list) else count
        for rank, (negative, _, where) in enumerate(sorted(voxels)):
            kept = rank < k and -negative >= minimum
            label[(0, *where)] = organ if kept else ignore
    return label


def tied_softmax(channels, spatial, seed):
    """Probabilities in multiples of 1/8, exact in float16, so that most voxels tie."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, channels, (8, *spatial), generator=generator)
    return torch.stack([(draws == c).sum(0) / 8 for c in range(channels)])


@pytest.mark.parametrize("channels", [2, 3, 6])
@pytest.mark.parametrize("spatial", [(40,), (9, 8), (6, 5, 4)])
@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.3},
        {"share": 1.0},
        {"count": 0},
        {"count": 3},
        {"count": 10**9},
        {"share": 0.7, "minimum": 0.5, "ignore": 77},
        {"share": 0.5, "background_minimum": 0.7},
    ],
)
def test_equals_the_voxelwise_definition(channels, spatial, options):
    for seed in range(3):
        probability = tied_softmax(channels, spatial, seed)
        assert torch.equal(select_top_k(probability, **options), oracle(probability, **options))


@pytest.mark.parametrize("options", [{"share": 0.3}, {"count": 7}, {"share": 1, "minimum": 0.75}])
def test_one_channel_equals_the_voxelwise_definition(options):
    probability = tied_softmax(2, (6, 5, 4), 0)[1:]
    assert (probability == 0.5).any()
    result = select_top_k(probability, **options)
    assert torch.equal(result, oracle(probability, **options))
    assert (result[probability <= 0.5] == 0).all()


def test_a_sequence_holds_one_value_per_organ():
    probability = tied_softmax(4, (9, 9, 3), 5)
    for options in ({"share": [0.1, 1.0, 0.5]}, {"count": [0, 4, 10**6]}):
        result = select_top_k(probability, **options)
        assert torch.equal(result, oracle(probability, **options))
    assert (result == 1).sum() == 0
    assert (result == 2).sum() == 4
    assert (result == 3).sum() == (probability.argmax(0) == 3).sum()


def test_equal_confidences_are_taken_in_flat_order():
    organ = torch.full((1, 3, 4), 0.75)
    result = select_top_k(torch.cat([1 - organ, organ]), count=5)
    assert result.flatten().tolist() == [1] * 5 + [255] * 7


def test_background_wins_equal_probabilities():
    half = torch.full((2, 4), 0.5)
    assert (select_top_k(half, share=1.0) == 0).all()
    assert (select_top_k(half[:1], share=1.0) == 0).all()


@pytest.mark.parametrize("options", [{"share": 0.5}, {"count": 4}])
def test_nothing_predicted_gives_background_everywhere(options):
    organ = torch.full((1, 3, 4), 0.25)
    for probability in (organ, torch.cat([1 - organ, organ])):
        result = select_top_k(probability, **options)
        assert result.shape == (1, 3, 4)
        assert (result == 0).all()


@pytest.mark.parametrize(
    ("share", "size", "kept"), [(0.1, 30, 3), (0.1, 31, 4), (1e-9, 5, 1), (0.29, 100, 29)]
)
def test_a_share_rounds_up_as_written_in_decimal(share, size, kept):
    result = select_top_k(torch.full((1, size), 0.9), share=share)
    assert (result == 1).sum() == kept
    assert (result == 255).sum() == size - kept


def test_minimum_is_inclusive_and_leaves_the_share_of_all_predicted():
    organ = torch.tensor([[0.75, 0.875, 0.625, 1.0]])
    assert select_top_k(organ, share=0.5, minimum=0.875).tolist() == [[255, 1, 255, 1]]
    assert select_top_k(organ, share=0.25, minimum=0.75).tolist() == [[255, 255, 255, 1]]
    assert select_top_k(organ, share=1.0, minimum=1.0).tolist() == [[255, 255, 255, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_dtype(dtype):
    probability = tied_softmax(3, (7, 6), 1)
    result = select_top_k(probability.to(dtype), share=0.4)
    assert result.dtype == torch.uint8
    assert torch.equal(result, oracle(probability, share=0.4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_softmax_passes_the_sum_check(dtype):
    logits = torch.randn(7, 20, 20, generator=torch.Generator().manual_seed(0))
    assert select_top_k(logits.softmax(0).to(dtype), share=0.5).shape == (1, 20, 20)


def test_strided_input_and_metatensor_equal_the_plain_tensor_and_stay_untouched():
    probability = tied_softmax(3, (6, 5, 4), 2)
    expected = oracle(probability, share=0.4)
    strided = probability.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    assert not strided.is_contiguous()
    meta = MetaTensor(probability.clone(), meta={"filename_or_obj": "x"}).requires_grad_()
    for given in (strided, meta):
        result = select_top_k(given, share=0.4)
        assert type(result) is torch.Tensor
        assert not result.requires_grad
        assert torch.equal(result, expected)
    assert torch.equal(meta.as_tensor(), probability)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_equals_the_voxelwise_definition():
    probability = tied_softmax(3, (12, 10, 8), 3)
    result = select_top_k(probability.cuda(), share=0.3)
    assert result.is_cuda
    assert torch.equal(result.cpu(), oracle(probability, share=0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of `share` and `count` must be given"),
        ({"share": 0.5, "count": 3}, "exactly one of `share` and `count` must be given"),
        ({"share": 0.0}, r"`share` must lie in \(0, 1\], got 0.0"),
        ({"share": 1.5}, r"`share` must lie in \(0, 1\], got 1.5"),
        ({"share": float("nan")}, r"`share` must lie in \(0, 1\], got nan"),
        ({"share": [0.5, 0.5, -1]}, r"`share` must lie in \(0, 1\]"),
        ({"share": [0.5]}, r"`share` must be one number or one per organ \(3\), got 1 numbers"),
        ({"count": [1, 2, 3, 4]}, r"`count` must be one number or one per organ \(3\), got 4"),
        ({"count": -1}, "`count` must be whole numbers of at least 0, got -1"),
        ({"count": [1, 2, 2.5]}, "`count` must be whole numbers of at least 0"),
        ({"count": 1, "minimum": 1.5}, r"`minimum` must be a probability in \[0, 1\], got 1.5"),
        ({"count": 1, "minimum": float("nan")}, r"`minimum` must be a probability"),
        ({"count": 1, "ignore": 3}, r"`ignore` must lie above the classes .* \[4, 255\], got 3"),
        ({"count": 1, "ignore": 256}, r"`ignore` must lie above the classes .* got 256"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        select_top_k(tied_softmax(4, (5, 5), 0), **options)


@pytest.mark.parametrize(
    ("probability", "message"),
    [
        (torch.tensor([0.5, 0.5]), r"`probability` must be a non-empty floating-point .* \(2,\)"),
        (torch.zeros(2, 0, 4), "`probability` must be a non-empty floating-point"),
        (torch.ones(1, 4, dtype=torch.uint8), "floating-point .* torch.uint8"),
        (torch.full((256, 3), 1 / 256), "at most 255 channels .* got 256"),
        (torch.tensor([[3.0, -2.0]]), r"must lie in \[0, 1\], got \[-2, 3\]; apply softmax"),
        (torch.tensor([[0.5, float("nan")]]), r"must lie in \[0, 1\], got \[nan, nan\]"),
        (torch.tensor([[0.5, float("inf")]]), r"must lie in \[0, 1\], got \[0.5, inf\]"),
        (torch.full((2, 3), 0.25), r"must sum to 1 .* got sums in \[0.5, 0.5\]"),
        (torch.full((2, 3), 0.75), r"must sum to 1 .* got sums in \[1.5, 1.5\]"),
    ],
)
def test_probabilities_that_are_none(probability, message):
    with pytest.raises(ValueError, match=message):
        select_top_k(probability, share=0.5)


def test_the_largest_channel_count_leaves_room_for_ignore():
    probability = torch.full((255, 2), 0.5 / 254)
    probability[254] = 0.5
    assert select_top_k(probability, count=1).tolist() == [[254, 255]]


def flood(mask):
    """Components of a mask by flooding, voxel by voxel, largest first, then first first."""
    left, found = {tuple(p) for p in mask.nonzero().tolist()}, []
    for start in mask.nonzero().tolist():
        if tuple(start) not in left:
            continue
        component, ways = set(), [tuple(start)]
        while ways:
            point = ways.pop()
            if point in left:
                left.remove(point)
                component.add(point)
                for axis in range(mask.ndim):
                    for step in (-1, 1):
                        ways.append(tuple(x + step * (a == axis) for a, x in enumerate(point)))
        found.append(component)
    return sorted(found, key=len, reverse=True)


@pytest.mark.parametrize("components", [1, 2, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_small_components_are_left_out_before_the_share_is_taken(components, seed):
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand((3, 6, 7, 5), generator=generator).log().mul(3).softmax(0)
    everything = select_top_k(probability, share=1.0)[0]
    some = select_top_k(probability, share=0.5, components=components)[0]
    for organ in (1, 2):
        parts = flood(everything == organ)
        kept = set().union(*parts[:components])
        ranked = sorted(kept, key=lambda p: (-float(probability[organ][p]), p))
        expected = set(ranked[: math.ceil(len(kept) / 2)])
        assert {tuple(p) for p in (some == organ).nonzero().tolist()} == expected
        for point in set().union(*parts) - expected:
            assert some[point] == 255
    assert torch.equal(some == 0, everything == 0)


def test_components_are_a_positive_number():
    with pytest.raises(ValueError, match="`components` must be at least 1, or None for all, got 0"):
        select_top_k(torch.full((2, 3, 3, 3), 0.5), share=1.0, components=0)
