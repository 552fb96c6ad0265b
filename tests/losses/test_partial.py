import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss

from stipple_monai.errors import DatasetError
from stipple_monai.losses.partial import PartialDiceCELoss


def masked_loss(
    logits,
    label,
    *,
    softmax=False,
    sigmoid=False,
    include_background=True,
    batch=False,
    smooth_nr=1e-5,
    smooth_dr=1e-5,
    weight=None,
    lambda_dice=1.0,
    lambda_ce=1.0,
    ignore_index=255,
):
    """The definition on lists of known voxels; ignored ones are never touched."""
    channels = logits.shape[1]
    samples = []
    for one, classes in zip(logits, label[:, 0].long(), strict=True):
        known = classes != ignore_index
        if known.any():
            samples.append((one[:, known], classes[known]))
    pooled = [torch.cat(parts, -1) for parts in zip(*samples, strict=True)]
    groups = [pooled] if batch else samples

    dice = []
    for values, classes in groups:
        probability = values.softmax(0) if softmax else values.sigmoid()
        first = 1 if softmax and not include_background else 0
        for channel in range(first, channels):
            truth = (classes == (channel if softmax else 1)).to(values)
            overlap = 2 * (probability[channel] * truth).sum() + smooth_nr
            total = probability[channel].sum() + truth.sum() + smooth_dr
            factor = weight[channel] if weight is not None and channels - first > 1 else 1
            dice.append(factor * (1 - overlap / total))

    terms, mass = [], 0
    for values, classes in samples:
        for voxel, c in zip(values.T, classes.tolist(), strict=True):
            if softmax:
                factor = 1 if weight is None else weight[c]
                terms.append(-factor * voxel.log_softmax(0)[c])
                mass += factor
            else:
                factor = weight[0] if weight is not None and c else 1
                p = voxel[0].sigmoid()
                terms.append(-factor * (p if c else 1 - p).log())
                mass += 1
    return lambda_dice * sum(dice) / len(dice) + lambda_ce * sum(terms) / mass


def example(channels, spatial, *, batch=3, ignored=0.4, ignore_index=255, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, *spatial)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    label = torch.randint(0, max(channels, 2), (batch, 1, *spatial), generator=generator)
    label[torch.rand(label.shape, generator=generator) < ignored] = ignore_index
    return logits.requires_grad_(), label


FORMS = [
    ({"softmax": True}, 2),
    ({"softmax": True, "include_background": False}, 2),
    ({"softmax": True, "weight": [0.5, 2.0, 0.0, 1.5]}, 4),
    ({"softmax": True, "include_background": False, "weight": [0.5, 2.0, 1.0, 1.5]}, 4),
    ({"softmax": True, "batch": True, "lambda_dice": 0.3, "lambda_ce": 2.0}, 3),
    ({"softmax": True, "smooth_nr": 0.0, "smooth_dr": 0.5}, 3),
    ({"sigmoid": True}, 1),
    ({"sigmoid": True, "weight": [3.0], "batch": True}, 1),
    ({"sigmoid": True, "include_background": False, "smooth_nr": 1.0}, 1),
]
EACH_FORM = pytest.mark.parametrize(("options", "channels"), FORMS)


@pytest.mark.filterwarnings("error")
@EACH_FORM
@pytest.mark.parametrize("spatial", [(5, 4), (4, 3, 3)])
@pytest.mark.parametrize("ignore_index", [255, -1, 0])
def test_equals_the_loss_over_the_list_of_known_voxels(options, channels, spatial, ignore_index):
    logits, label = example(channels, spatial, ignore_index=ignore_index)
    label[1] = ignore_index
    options = {**options, "ignore_index": ignore_index}
    loss = PartialDiceCELoss(**options)(logits, label)
    expected = masked_loss(logits, label, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-9)
    (gradient,) = torch.autograd.grad(loss, logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)


@EACH_FORM
def test_ignored_voxels_change_nothing_and_have_gradient_exactly_zero(options, channels):
    logits, label = example(channels, (6, 5))
    ignored = (label == 255).expand_as(logits)
    loss = PartialDiceCELoss(**options)
    changed = torch.where(ignored, 30 * torch.randn_like(logits), logits).detach().requires_grad_()
    assert loss(changed, label).item() == pytest.approx(loss(logits, label).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss(changed, label), changed)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any()


@EACH_FORM
def test_all_ignored_is_zero_with_zero_gradient(options, channels):
    logits, label = example(channels, (4, 3), ignored=2.0)
    loss = PartialDiceCELoss(**options)(logits, label)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@EACH_FORM
def test_an_ignored_sample_is_as_good_as_absent(options, channels):
    logits, label = example(channels, (4, 3))
    label[0] = 255
    loss = PartialDiceCELoss(**options)
    whole = loss(logits, label)
    assert whole.item() == pytest.approx(loss(logits[1:], label[1:]).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(whole, logits)
    assert (gradient[0] == 0).all()
    assert gradient.isfinite().all()


@EACH_FORM
@pytest.mark.parametrize("spatial", [(6, 5), (4, 3, 3)])
def test_fully_labelled_equals_monai(options, channels, spatial):
    logits, label = example(channels, spatial, ignored=0.0)
    logits = logits.detach().float().requires_grad_()
    given = dict(options)
    if "weight" in given:
        given["weight"] = torch.tensor(given["weight"])
    if "sigmoid" in given:
        given["include_background"] = True
    monai = DiceCELoss(to_onehot_y="softmax" in given, **given)(logits, label)
    loss = PartialDiceCELoss(**options)(logits, label)
    torch.testing.assert_close(loss, monai, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    (wanted,) = torch.autograd.grad(monai, logits)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_known_voxels_of_weight_zero_alone_do_not_divide_by_zero():
    logits, label = example(2, (4, 4), batch=1)
    label[label == 1] = 0
    loss = PartialDiceCELoss(softmax=True, weight=[0.0, 1.0], lambda_dice=0.0)(logits, label)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@EACH_FORM
def test_gradcheck(options, channels):
    logits, label = example(channels, (3, 2), batch=2)
    assert torch.autograd.gradcheck(PartialDiceCELoss(**options), (logits, label))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("scale", [1, 100])
@EACH_FORM
def test_half_precision_is_computed_in_float32(options, channels, scale, autocast, dtype):
    logits, label = example(channels, (48, 48))
    half = (scale * logits.detach()).to(dtype).requires_grad_()
    loss = PartialDiceCELoss(**options)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(half, label)
    assert value.dtype == torch.float32
    exact = loss(half.detach().double(), label)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    value.backward()
    assert half.grad.dtype == dtype
    assert half.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
@EACH_FORM
def test_every_label_dtype_and_metatensor(options, channels, dtype):
    logits, label = example(channels, (4, 3))
    loss = PartialDiceCELoss(**options)
    expected = loss(logits, label)
    assert torch.equal(loss(logits, label.to(dtype)), expected)
    value = loss(MetaTensor(logits), MetaTensor(label.to(dtype)))
    assert type(value) is torch.Tensor
    assert torch.equal(value, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@EACH_FORM
def test_deep_supervision_keeps_ignored_voxels_in_the_lower_heads(options, channels, dtype):
    logits, label = example(channels, (8, 8))
    heads = [logits.detach().float().requires_grad_()]
    heads += [heads[0].detach()[..., ::step, ::step].clone().requires_grad_() for step in (2, 4)]
    # nearest-exact takes the voxel under the centre of each coarse one, rounded up.
    labels = [label, label[..., 1::2, 1::2], label[..., 2::4, 2::4]]
    loss = PartialDiceCELoss(**options)
    value = DeepSupervisionLoss(loss)(heads, label.to(dtype))
    expected = sum(
        0.5**i * loss(head, part) for i, (head, part) in enumerate(zip(heads, labels, strict=True))
    )
    torch.testing.assert_close(value, expected)
    value.backward()
    for head, part in zip(heads, labels, strict=True):
        ignored = (part == 255).expand_as(head)
        assert ignored.any()
        assert (head.grad[ignored] == 0).all()


def test_deep_supervision_with_nothing_known():
    heads = [torch.randn(1, 2, n, n, requires_grad=True) for n in (8, 4)]
    label = torch.full((1, 1, 8, 8), 255.0)
    value = DeepSupervisionLoss(PartialDiceCELoss(softmax=True))(heads, label)
    value.backward()
    assert value.item() == 0
    assert all((head.grad == 0).all() for head in heads)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@EACH_FORM
def test_cuda_equals_cpu(options, channels):
    logits, label = example(channels, (8, 8))
    logits = logits.detach().half()
    loss = PartialDiceCELoss(**options)
    with torch.autocast("cuda"):
        value = loss(logits.cuda(), label.cuda())
    torch.testing.assert_close(value.cpu(), loss(logits, label), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of `softmax` and `sigmoid` must be True"),
        ({"softmax": True, "sigmoid": True}, "exactly one of `softmax` and `sigmoid`"),
        ({"softmax": True, "lambda_dice": -1.0}, "`lambda_dice` and `lambda_ce` must be at least"),
        ({"softmax": True, "lambda_ce": float("nan")}, "must be at least 0, got 1.0 and nan"),
        ({"softmax": True, "smooth_nr": -1.0}, "`smooth_nr` must be at least 0"),
        ({"softmax": True, "smooth_dr": 0.0}, "`smooth_dr` above 0, got 1e-05 and 0.0"),
        ({"softmax": True, "weight": [1.0, -1.0]}, r"`weight` must be a list of finite non-neg"),
        ({"softmax": True, "weight": [1.0, float("inf")]}, r"got \[1.0, inf\]"),
        ({"sigmoid": True, "weight": torch.tensor(2.0)}, r"one per channel, got 2.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        PartialDiceCELoss(**options)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"softmax": True}, (2, 1, 4, 4), r"`logits` must be \(B, K\+1, .* with softmax=True"),
        ({"sigmoid": True}, (2, 2, 4, 4), r"`logits` must be \(B, 1, .* got \(2, 2, 4, 4\)"),
        ({"softmax": True}, (2, 2), r"`logits` must be \(B, K\+1, \*spatial\), .* got \(2, 2\)"),
        ({"softmax": True, "weight": [1.0]}, (2, 2, 4, 4), r"one number per channel \(2\), got 1"),
    ],
)
def test_logits_that_do_not_fit(options, shape, message):
    with pytest.raises(ValueError, match=message):
        PartialDiceCELoss(**options)(torch.zeros(shape), torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 2, 4, 4), (2, 1, 4, 5), (1, 1, 4, 4)])
def test_labels_of_another_shape(shape):
    with pytest.raises(DatasetError, match=r"`label` must be \(B, 1, \*spatial\) on the grid"):
        PartialDiceCELoss(softmax=True)(torch.zeros(2, 2, 4, 4), torch.zeros(shape))


@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True}])
@pytest.mark.parametrize("value", [2, -1, 254, 0.5, 127.5, float("nan")])
def test_labels_outside_the_classes(options, value):
    label = torch.zeros(1, 1, 4, 4)
    label[0, 0, 1, 2] = value
    logits = torch.zeros(1, 2 if "softmax" in options else 1, 4, 4)
    with pytest.raises(DatasetError, match=rf"classes 0 to 1 or 255 \(ignored\), got {value}"):
        PartialDiceCELoss(**options)(logits, label)
