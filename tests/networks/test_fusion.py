"""The prior-driven softmax and sigmoid against the paper's product form."""

import math

import pytest
import torch
from torch import Tensor

from stipple_monai.errors import PriorError
from stipple_monai.networks.fusion import (
    DEFAULT_FLOOR,
    prior_driven_sigmoid,
    prior_driven_softmax,
    prior_odds,
    sigmoid_logits,
    softmax_logits,
)

SHAPES = {"2D": (5, 4), "3D": (4, 3, 5)}
FORMS = {
    "softmax": (softmax_logits, prior_driven_softmax, 1),
    "sigmoid": (sigmoid_logits, prior_driven_sigmoid, 0),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return str(request.param)


def softmax_oracle(
    logits: Tensor, prior: Tensor, strength: float = 1.0, floor: float = DEFAULT_FLOOR
) -> Tensor:
    """Equation 2 as it is printed, voxel by voxel in Python floats."""
    out = torch.empty_like(logits)
    for b in range(logits.shape[0]):
        for voxel in torch.cartesian_prod(*map(torch.arange, logits.shape[2:])).tolist():
            at = (b, slice(None), *voxel)
            exponentials = [math.exp(v) for v in logits[at].tolist()]
            s = [e / sum(exponentials) for e in exponentials]
            organs = prior[at].tolist()
            p = [max(1.0 - sum(organs), floor)]
            p += [min(max(v, floor), 1.0 - floor) for v in organs]
            product = [a * (v / sum(p)) ** strength for a, v in zip(s, p, strict=True)]
            out[at] = torch.tensor([v / sum(product) for v in product], dtype=out.dtype)
    return out


def sigmoid_oracle(
    logits: Tensor, prior: Tensor, strength: float = 1.0, floor: float = DEFAULT_FLOOR
) -> Tensor:
    """Equation 3 as it is printed."""
    s = 1.0 / (1.0 + torch.exp(-logits))
    p = prior.clamp(floor, 1.0 - floor)
    inside, outside = s * p**strength, (1.0 - s) * (1.0 - p) ** strength
    return inside / (inside + outside)


ORACLES = {"softmax": softmax_oracle, "sigmoid": sigmoid_oracle}


def example(
    form: str, organs: int, shape: tuple[int, ...], overlap: bool = False
) -> tuple[Tensor, Tensor]:
    """Float64 logits and a prior; without overlap the organs and the background sum to 1."""
    background = FORMS[form][2]
    logits = 3 * torch.randn(2, organs + background, *shape, dtype=torch.float64)
    prior = torch.rand(2, organs + 1, *shape, dtype=torch.float64)
    return logits, prior[:, 1:] if overlap else (prior / prior.sum(1, keepdim=True))[:, 1:]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("organs", [1, 2, 5])
@pytest.mark.parametrize("form", FORMS)
def test_equals_product_form(form, organs, shape, overlap):
    adjusted, probabilities, _ = FORMS[form]
    logits, prior = example(form, organs, shape, overlap)
    if overlap and organs > 1:
        assert (prior.sum(1) > 1).any()
    expected = ORACLES[form](logits, prior)
    torch.testing.assert_close(probabilities(logits, prior), expected, rtol=0, atol=1e-12)
    assert adjusted(logits, prior).dtype == torch.float64
    single = probabilities(logits.float(), prior.float())
    assert single.dtype == torch.float32
    # 1 − Σ p cancels: float32 leaves a background near the floor about four digits
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("strength", "floor"), [(0.5, 1e-3), (2.0, 1e-3), (1.0, 0.1), (1.5, 1e-6)])
@pytest.mark.parametrize("form", FORMS)
def test_strength_and_floor(form, strength, floor):
    logits, prior = example(form, 2, (4, 4))
    prior[:, :, 0] = 0.0
    prior[:, 1, 1] = 1.0
    got = FORMS[form][1](logits, prior, strength=strength, floor=floor)
    expected = ORACLES[form](logits, prior, strength, floor)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_adjusted_logits_are_logits_plus_log_prior():
    logits, prior = example("softmax", 2, (3, 3))
    p = torch.cat([1 - prior.sum(1, keepdim=True), prior], dim=1)
    assert p.min() > DEFAULT_FLOOR
    torch.testing.assert_close(softmax_logits(logits, prior), logits + p.log())
    torch.testing.assert_close(
        sigmoid_logits(logits[:, 1:], prior), logits[:, 1:] + torch.logit(prior)
    )


@pytest.mark.parametrize("organs", [1, 2, 5])
def test_bias_is_the_logarithm_of_probabilities_that_sum_to_one(organs):
    logits, prior = example("softmax", organs, (4, 4), overlap=True)
    prior[:, :, 0], prior[:, :, 1] = 0.0, 1.0
    total = softmax_logits(torch.zeros_like(logits), prior).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("organs", [1, 2, 5])
@pytest.mark.parametrize("form", FORMS)
def test_strength_zero_returns_the_logits(form, organs, dtype):
    logits, prior = example(form, organs, (4, 4))
    prior[:, :, 0], prior[:, :, 1] = 0.0, 1.0
    logits = logits.to(dtype)
    assert torch.equal(FORMS[form][0](logits, prior.to(dtype), strength=0.0), logits)


@pytest.mark.parametrize("organs", [1, 2, 5])
def test_neutral_prior_reduces_to_softmax(organs):
    logits = example("softmax", organs, (4, 4))[0].float()
    neutral = torch.full_like(logits[:, 1:], 1 / (organs + 1))
    for strength in (0.5, 1.0, 3.0):
        torch.testing.assert_close(
            prior_driven_softmax(logits, neutral, strength=strength),
            logits.softmax(1),
            rtol=0,
            atol=5e-7,
        )
    bias = softmax_logits(torch.zeros_like(logits), neutral)
    if organs == 1:
        assert torch.equal(bias[:, :1], bias[:, 1:])


@pytest.mark.parametrize("organs", [1, 2, 5])
def test_neutral_prior_reduces_to_sigmoid_bitwise(organs):
    logits = example("sigmoid", organs, (4, 4))[0].float()
    neutral = torch.full_like(logits, 0.5)
    assert torch.equal(prior_driven_sigmoid(logits, neutral), logits.sigmoid())


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("floor", [DEFAULT_FLOOR, 1e-6, 1e-30])
@pytest.mark.parametrize("organs", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_certain_prior_stays_finite(form, organs, floor, dtype, device):
    adjusted, probabilities, background = FORMS[form]
    size = 2**organs
    logits = 20 * torch.randn(1, organs + background, size, size, device=device)
    logits = logits.to(dtype).requires_grad_()
    bits = torch.tensor([[i >> k & 1 for i in range(size)] for k in range(organs)])
    prior = bits[None, :, :, None].expand(1, organs, size, size).to(device, dtype)
    prior = prior.contiguous().requires_grad_()
    for out in (
        adjusted(logits, prior, floor=floor),
        probabilities(logits, prior, floor=floor),
    ):
        assert out.dtype == dtype
        assert out.isfinite().all()
        for gradient in torch.autograd.grad(out.float().square().sum(), (logits, prior)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_rounds_once(form, dtype, device):
    logits, prior = example(form, 2, (6, 6))
    logits, prior = logits.to(device, dtype), prior.to(device, dtype)
    exact = FORMS[form][0](logits.double(), prior.double())
    assert torch.equal(FORMS[form][0](logits, prior), exact.float().to(dtype))


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form):
    logits, prior = example(form, 2, (2, 2))
    prior = prior.clamp(0.01, 0.48)
    assert (prior.sum(1) < 0.99).all()
    logits, prior = logits[:1].requires_grad_(), prior[:1].requires_grad_()
    for function in FORMS[form][:2]:
        assert torch.autograd.gradcheck(
            lambda a, b, function=function: function(a, b, strength=0.7), (logits, prior)
        )


@pytest.mark.parametrize("form", FORMS)
def test_boolean_prior_is_a_mask(form):
    logits, prior = example(form, 1, (4, 4))
    mask = prior > 0.5
    function = FORMS[form][0]
    assert torch.equal(function(logits, mask), function(logits, mask.double()))


@pytest.mark.parametrize("form", FORMS)
def test_torchscript(form):
    logits, prior = example(form, 2, (4, 4))
    for function in FORMS[form][:2]:
        scripted = torch.jit.script(function)
        got = scripted(logits, prior, strength=0.5, floor=1e-2)
        torch.testing.assert_close(got, function(logits, prior, strength=0.5, floor=1e-2))
        with pytest.raises(torch.jit.Error, match="must have one channel per organ"):
            scripted(logits, prior[:, :1])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_export_leaves_the_value_check_out(form):
    class Fusion(torch.nn.Module):
        def forward(self, logits: Tensor, prior: Tensor) -> Tensor:
            return FORMS[form][1](logits, prior)

    logits, prior = example(form, 2, (4, 4))
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Fusion(), (logits, prior), dynamic_shapes=({0: batch}, {0: batch})
    )
    three = (torch.cat([logits, logits[:1]]), torch.cat([prior, prior[:1]]))
    torch.testing.assert_close(program.module()(*three), FORMS[form][1](*three))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("organs", [1, 3, 4])
def test_wrong_number_of_prior_channels(form, organs):
    logits, prior = example(form, 2, (4, 4))[0], torch.rand(2, organs, 4, 4)
    for function in FORMS[form][:2]:
        with pytest.raises(
            PriorError, match=rf"`prior` must have one channel per organ, 2 .*got {organs}"
        ):
            function(logits, prior)


def test_background_alone_is_no_segmentation():
    with pytest.raises(PriorError, match="`prior` must have one channel per organ, 0 "):
        softmax_logits(torch.zeros(1, 1, 4), torch.zeros(1, 0, 4))


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (2, 2, 4, 5), (2, 2, 1, 1), (2, 2, 4)])
@pytest.mark.parametrize("form", FORMS)
def test_wrong_prior_shape(form, shape):
    logits, _ = example(form, 2, (4, 4))
    for function in FORMS[form][:2]:
        with pytest.raises(PriorError, match="must have the batch and spatial shape of `logits`"):
            function(logits, torch.full(shape, 0.2))


@pytest.mark.parametrize("strength", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize("form", FORMS)
def test_strength_out_of_range(form, strength):
    for function in FORMS[form][:2]:
        with pytest.raises(ValueError, match="`strength` must be finite and at least 0, got"):
            function(*example(form, 2, (2, 2)), strength=strength)


@pytest.mark.parametrize(
    ("form", "floor"),
    [
        *[(form, floor) for form in FORMS for floor in (0.0, -1e-3, 1e-31, math.nan, 1.0)],
        ("softmax", 1 / 3),
        ("sigmoid", 0.5),
    ],
)
def test_floor_out_of_range(form, floor):
    for function in FORMS[form][:2]:
        with pytest.raises(ValueError, match=r"`floor` must lie in \[1e-30, 0\.[35]"):
            function(*example(form, 2, (2, 2)), floor=floor)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", FORMS)
def test_non_finite_prior(form, value):
    logits, prior = example(form, 2, (4, 4))
    prior[0, 1, 2, 3] = prior[1, 0, 0, 0] = value
    with pytest.raises(PriorError, match="`prior` must be finite, got 2 of 64 values"):
        FORMS[form][1](logits, prior)


@pytest.mark.parametrize(("value", "found"), [(-0.5, "from -0.5 to"), (100.0, "to 100.0")])
@pytest.mark.parametrize("form", FORMS)
def test_prior_out_of_range(form, value, found):
    logits, prior = example(form, 2, (4, 4))
    prior[0, 1, 2, 3] = value
    with pytest.raises(PriorError, match=rf"`prior` must lie in \[0, 1\], got values .*{found}"):
        FORMS[form][1](logits, prior)


def test_rounding_beyond_one_is_accepted():
    prior = torch.full((1, 1, 2), 1.0 + 1e-6)
    assert prior_driven_softmax(torch.zeros(1, 2, 2), prior)[0, 1, 0] > 0.99


CALIBRATION = torch.tensor([[0.1, 0.8, 1.5, 0.3, -0.5], [0.4, 1.2, -0.7, 0.2, 0.25]])
"""a, b, c, and a' and c' where the prior is silent, of two organs."""


def calibrated_oracle(form: str, logits: Tensor, prior: Tensor, numbers: Tensor) -> Tensor:
    """The definition, organ by organ, with the odds of organs as they are printed."""
    p = prior.clamp(DEFAULT_FLOOR, 1 - DEFAULT_FLOOR)
    background = (1 - prior.sum(1)).clamp(min=DEFAULT_FLOOR)
    beside, alone, known = [], [], []
    for k in range(prior.shape[1]):
        if form == "softmax":
            d, r = logits[:, k + 1] - logits[:, 0], p[:, k].log() - background.log()
        else:
            d, r = logits[:, k], p[:, k].log() - (1 - p[:, k]).log()
        a, b, c, a_alone, c_alone = numbers[k].double().tolist()
        beside.append(a * d + b * r + c)
        alone.append(a_alone * d + c_alone)
        known.append((r.abs() >= 0.05).flatten(1).any(1)[:, None, None].expand_as(d))
    fused, network, placed = (torch.stack(x, dim=1) for x in (beside, alone, known))
    if form == "sigmoid":
        return torch.where(placed, fused.sigmoid(), network.sigmoid())
    # the silent ones as the network has them among all, and the rest of each voxel to the others
    shares = torch.where(placed, fused.exp(), 0.0)
    others = torch.cat([torch.ones_like(shares[:, :1]), shares], dim=1)
    every = network.exp() / (1 + network.exp().sum(1, keepdim=True))
    silent = torch.where(placed, 0.0, every)
    result = others / others.sum(1, keepdim=True) * (1 - silent.sum(1, keepdim=True))
    result[:, 1:] += silent
    return result


@pytest.mark.parametrize("form", FORMS)
def test_calibrated_odds(form):
    logits, prior = example(form, 2, (4, 4))
    prior[:, :, 0], prior[0, 1, 1], prior[0, 0, 1] = 0.0, 1.0, 0.0
    expected = calibrated_oracle(form, logits, prior, CALIBRATION)
    got = FORMS[form][1](logits, prior, calibration=CALIBRATION)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_silent_prior_has_numbers_of_its_own(form):
    logits, prior = example(form, 2, (4, 4))
    # as PriorAlign gives organ 2 of the first sample half of what organ 1 leaves
    prior[0, 1] = (1 - prior[0, 0]) / 2 if form == "softmax" else 0.5
    expected = calibrated_oracle(form, logits, prior, CALIBRATION)
    other = calibrated_oracle(form, logits, prior, CALIBRATION[:, [0, 1, 2, 0, 2]])
    assert not torch.allclose(expected[0], other[0])
    assert torch.equal(expected[1], other[1])
    for dtype, atol in ((torch.float64, 1e-9), (torch.float32, 1e-5), (torch.float16, 5e-3)):
        got = FORMS[form][1](logits.to(dtype), prior.to(dtype), calibration=CALIBRATION)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("form", FORMS)
def test_a_prior_that_speaks_in_one_voxel_alone_is_not_silent(form):
    logits, prior = example(form, 2, (20, 20))
    prior[0, 1] = (1 - prior[0, 0]) / 2 if form == "softmax" else 0.5
    prior[0, 1, 3, 4] *= 0.9
    expected = calibrated_oracle(form, logits, prior, CALIBRATION)
    got = FORMS[form][1](logits, prior, calibration=CALIBRATION)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_a_silent_organ_does_not_outdo_one_of_which_the_network_is_surer():
    # the network is sure of organ 1, and organ 2, whose position is unknown, comes second
    logits = torch.tensor([0.0, 6.0, 2.0]).reshape(1, 3, 1).repeat(1, 1, 2)
    prior = torch.tensor([[[0.5, 0.0], [0.25, 0.5]]])
    numbers = torch.tensor([[0.2, 0.5, 0.5, 1.0, 0.0]]).repeat(2, 1)
    p = prior_driven_softmax(logits, prior, calibration=numbers)[0, :, 0]
    torch.testing.assert_close(p[2], logits[0, :, 0].softmax(0)[2])
    assert p[1] > 0.8


def test_slopes_are_finite_where_all_or_some_priors_are_silent():
    logits, prior = example("softmax", 3, (4, 4))
    prior[0], prior[1, 2] = 0.25, (1 - prior[1, :2].sum(0)) / 2
    logits.requires_grad_()
    numbers = torch.tensor([[0.2, 0.5, 0.5, 1.0, 0.0]]).repeat(3, 1)
    fused = softmax_logits(logits, prior, calibration=numbers)
    (slope,) = torch.autograd.grad(fused.softmax(1)[:, 1].sum(), logits)
    assert slope.isfinite().all()
    assert (slope[0] != 0).any()


@pytest.mark.parametrize("form", FORMS)
def test_network_alone_and_prior_alone_are_special_cases(form):
    logits, prior = example(form, 2, (4, 4))
    fuse = FORMS[form][1]
    network, prior_alone = CALIBRATION.clone(), CALIBRATION.clone()
    network[:, 1], prior_alone[:, 0] = 0, 0
    got = fuse(logits, prior, calibration=network)
    torch.testing.assert_close(got, fuse(logits, prior.flip(0), calibration=network))
    got = fuse(logits, prior, calibration=prior_alone)
    torch.testing.assert_close(got, fuse(logits.flip(0), prior, calibration=prior_alone))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("organs", [1, 2, 5])
@pytest.mark.parametrize("form", FORMS)
def test_equation_2_has_the_same_bits_calibrated_or_not(form, organs, dtype):
    logits, prior = example(form, organs, (4, 4), overlap=True)
    prior[:, :, 0], prior[:, :, 1] = 0.0, 1.0
    logits, prior = (20 * logits).to(dtype).requires_grad_(), prior.to(dtype)
    identity = torch.tensor([[1.0, 1, 0, 1, 0]]).repeat(organs, 1)
    for function in FORMS[form][:2]:
        for strength in (0.0, 0.7, 1.0):
            plain = function(logits, prior, strength=strength)
            for numbers in (identity, identity[:0]):
                got = function(logits, prior, strength=strength, calibration=numbers)
                assert torch.equal(got, plain)
                one, two = (
                    torch.autograd.grad(x[:, 0].sum(), logits, retain_graph=True)
                    for x in (got, plain)
                )
                assert torch.equal(one[0], two[0])


def test_equation_2_has_the_same_bits_where_one_prior_of_several_is_silent():
    logits, prior = example("softmax", 3, (4, 4))
    prior = 0.2 * prior
    prior[:, 0] = (1 - prior[:, 1:].sum(1)) / 2
    plain = softmax_logits(5 * logits, prior)
    identity = torch.tensor([[1.0, 1, 0, 1, 0]]).repeat(3, 1)
    assert torch.equal(softmax_logits(5 * logits, prior, calibration=identity), plain)
    other = identity.clone()
    other[2, 0] = 0.2
    shared = softmax_logits(5 * logits, prior, calibration=other)
    assert (shared - plain)[:, 1].abs().max() > 0.1


def test_a_constant_on_all_logits_changes_nothing():
    logits, prior = example("softmax", 2, (4, 4))
    got = prior_driven_softmax(logits + 7, prior, calibration=CALIBRATION)
    torch.testing.assert_close(got, prior_driven_softmax(logits, prior, calibration=CALIBRATION))


@pytest.mark.parametrize("form", FORMS)
def test_strength_zero_makes_a_calibrated_prior_silent(form):
    logits, prior = example(form, 2, (4, 4))
    fuse = FORMS[form][1]
    got = fuse(logits, prior, strength=0.0, calibration=CALIBRATION)
    neutral = torch.full_like(prior, 1 / 3 if form == "softmax" else 0.5)
    torch.testing.assert_close(got, fuse(logits, neutral, calibration=CALIBRATION))


@pytest.mark.parametrize("form", FORMS)
def test_torchscript_of_a_calibrated_fusion(form):
    logits, prior = example(form, 2, (4, 4))
    unknown = prior.clone()
    unknown[0, 1] = (1 - prior[0, 0]) / 2 if form == "softmax" else 0.5
    for function in FORMS[form][:2]:
        scripted = torch.jit.script(function)
        traced = torch.jit.trace(
            lambda s, p, function=function: function(s, p, calibration=CALIBRATION), (logits, prior)
        )
        for p in (prior, unknown):
            with torch.no_grad():
                expected = function(logits, p, calibration=CALIBRATION)
                torch.testing.assert_close(scripted(logits, p, calibration=CALIBRATION), expected)
                torch.testing.assert_close(traced(logits, p), expected)
            again = function(logits, p, calibration=CALIBRATION)
            torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("form", FORMS)
def test_calibration_of_other_organs(form):
    with pytest.raises(PriorError, match="`calibration` must have a row for each organ, 2, got 1"):
        FORMS[form][0](*example(form, 2, (4, 4)), calibration=CALIBRATION[:1])


@pytest.mark.parametrize("form", FORMS)
def test_prior_odds_are_what_the_fusion_adds(form):
    _, prior = example(form, 2, (4, 4))
    zero = torch.zeros(2, 2 + FORMS[form][2], 4, 4, dtype=torch.float64)
    bias = FORMS[form][0](zero, prior)
    expected = bias[:, 1:] - bias[:, :1] if form == "softmax" else bias
    torch.testing.assert_close(prior_odds(prior, form), expected)
