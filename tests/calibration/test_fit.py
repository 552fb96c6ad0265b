"""Fitting against simulated truth, an independent optimiser and the special cases."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from stipple_monai.calibration import (
    Samples,
    draw_samples,
    fit_calibration,
    fit_samples,
    reliability,
)
from stipple_monai.calibration.fit import OBSERVATIONS, SPREAD
from stipple_monai.calibration.likelihood import BOUNDS, Likelihood, most_likely
from stipple_monai.calibration.samples import join_samples
from stipple_monai.errors import DatasetError, PriorError
from stipple_monai.networks import sigmoid_logits, softmax_logits

COLUMNS = ("evidence", "odds", "known")
TRUE = np.array([[0.12, 0.8, 1.5], [0.3, 1.4, -0.5]])
"""a, b and c of two organs."""


def simulated(theta, *, voxels=40_000, scans=2, activation="softmax", seed=0):
    """Overconfident logits and rough priors, and labels drawn with the probabilities of theta."""
    rng = np.random.default_rng(seed)
    organs, found = len(theta), []
    for _ in range(scans):
        d = rng.normal(-6, 8, (voxels, organs))
        r = rng.uniform(-6.5, 3, (voxels, organs))
        z = d * theta[:, 0] + r * theta[:, 1] + theta[:, 2]
        if activation == "softmax":
            p = np.exp(np.c_[np.zeros(voxels), z])
            cumulative = (p / p.sum(1, keepdims=True)).cumsum(1)
            label = (rng.uniform(size=(voxels, 1)) > cumulative).sum(1)
        else:
            label = (rng.uniform(size=voxels) < 1 / (1 + np.exp(-z[:, 0]))).astype(int)
        one = np.ones(voxels)
        known = np.ones((voxels, organs), bool)
        scan = np.zeros(voxels, np.int64)
        found.append(Samples(d, r, known, label.astype(np.uint8), one, scan))
    return found


def numbers(calibration):
    return calibration.tensor().double().numpy()[:, :3]


def oracle(samples, activation="softmax"):
    """The same maximum by torch: its own losses, its own optimiser, no bounds."""
    parts = [torch.as_tensor(np.concatenate(x)) for x in zip(*samples, strict=True)]
    d, r, _, label, weight, _ = parts
    theta = torch.zeros(d.shape[1], 3, dtype=torch.float64, requires_grad=True)
    steps = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def loss():
        steps.zero_grad()
        z = d.double() * theta[:, 0] + r.double() * theta[:, 1] + theta[:, 2]
        if activation == "softmax":
            z = torch.cat([torch.zeros(len(z), 1), z], dim=1)
            each = F.cross_entropy(z, label.long(), reduction="none")
        else:
            each = F.binary_cross_entropy_with_logits(z[:, 0], label.double(), reduction="none")
        value = (each * weight).sum() / weight.sum()
        value.backward()
        return value

    steps.step(loss)
    return theta.detach().numpy()


def likelihoods(samples, calibration, activation="softmax"):
    """Negative log-likelihood of the fit, of the best b = 0 and of the best a = 0."""
    joined = Samples(*map(np.concatenate, zip(*samples, strict=True)))
    likelihood = Likelihood(joined, activation=activation)
    start = np.zeros((likelihood.organs, 3))
    network = most_likely(likelihood, start, free=(True, False, True))
    prior = most_likely(likelihood, start, free=(False, True, True))
    return [likelihood(theta)[0] for theta in (numbers(calibration), network, prior)]


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_known_numbers_are_recovered(activation):
    true = TRUE if activation == "softmax" else TRUE[:1]
    samples = simulated(true, activation=activation)
    fit = fit_samples(samples, activation=activation, shrinkage=0)
    np.testing.assert_allclose(numbers(fit), true, rtol=0.05, atol=0.06)
    assert fit.activation == activation
    assert fit.record["scans"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_equals_an_independent_optimiser(activation):
    true = TRUE if activation == "softmax" else TRUE[:1]
    samples = simulated(true, voxels=300, activation=activation, seed=3)
    rng = np.random.default_rng(0)
    samples = [part._replace(weight=rng.uniform(0.5, 40, 300)) for part in samples]
    fit = fit_samples(samples, activation=activation, shrinkage=0)
    np.testing.assert_allclose(numbers(fit), oracle(samples, activation), atol=2e-4)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_gradient(activation):
    (part,) = simulated(TRUE, voxels=50, scans=1)
    if activation == "sigmoid":
        known = part.known.copy()
        known[:20, 1] = False
        part = part._replace(known=known)
    likelihood = Likelihood(part, activation=activation)
    theta, step = TRUE + 0.1, 1e-6
    got, numeric = likelihood(theta)[1], np.zeros_like(theta)
    for at in np.ndindex(theta.shape):
        change = np.zeros_like(theta)
        change[at] = step
        both = [likelihood(theta + sign * change)[0] for sign in (1, -1)]
        numeric[at] = (both[0] - both[1]) / (2 * step)
    np.testing.assert_allclose(got, numeric, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shrinkage", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("case", ["both", "only network", "only prior", "neither", "against"])
def test_at_least_as_likely_as_network_alone_and_prior_alone(case, shrinkage):
    factors = {
        "both": (1, 1, 1),
        "only network": (1, 0, 1),
        "only prior": (0, 1, 1),
        "neither": (0, 0, 1),
        "against": (-1, -1, 1),
    }
    samples = simulated(TRUE * factors[case], voxels=2000, seed=5)
    fit = fit_samples(samples, shrinkage=shrinkage)
    fused, network, prior = likelihoods(samples, fit)
    assert fused <= min(network, prior) * (1 + 1e-6)
    if case == "against":
        np.testing.assert_allclose(numbers(fit)[:, :2], 0, atol=1e-6)
    nats = fit.record["nats_per_organ_voxel"]
    assert nats["fused"] <= min(nats["network_alone"], nats["prior_alone"])
    assert nats["fused"] <= nats["equation_2"]


def few_of_the_second(seed):
    """Two organs with the same numbers, the prior of the second near in 60 voxels only."""
    (part,) = simulated(np.repeat(TRUE[:1], 2, axis=0), scans=1, voxels=20_000, seed=seed)
    far = np.arange(20_000) >= 60
    odds = part.odds.copy()
    odds[far, 1] = -30
    kept = ~(far & (part.label == 2))
    return Samples(*(column[kept] for column in part._replace(odds=odds)))


@pytest.mark.slow
def test_an_organ_with_little_evidence_is_drawn_to_the_shared_numbers():
    errors = {0.0: [], 1.0: []}
    for seed in range(6):
        for shrinkage, found in errors.items():
            theta = numbers(fit_samples([few_of_the_second(seed)], shrinkage=shrinkage))
            np.testing.assert_allclose(theta[0], TRUE[0], rtol=0.2)
            found.append(abs(theta[1] - TRUE[0]) / TRUE[0])
    assert np.mean(errors[1.0]) < np.mean(errors[0.0]) / 2


@pytest.mark.slow
def test_organs_are_drawn_to_the_shared_numbers_by_what_they_are_expected_to_stray():
    samples = simulated(TRUE, voxels=3000)
    fit = fit_samples(samples)
    own = np.array([fit.scale, fit.strength, fit.offset]).T
    likelihood = Likelihood(join_samples(samples), activation="softmax")
    shared = most_likely(likelihood, np.ones((2, 3)), shared=True)
    # an average organ of a scan is so many observations
    organ_voxels = sum((part.label > 0).sum() for part in samples) / (2 * 2)
    spread = np.array(SPREAD) * [*shared[0, :2], 1]
    pull = organ_voxels / OBSERVATIONS * (own - shared) / spread**2
    np.testing.assert_allclose(-likelihood(own)[1], pull, rtol=0.02, atol=0.02 * abs(pull).max())


@pytest.mark.slow
def test_labels_beside_a_silent_prior_tell_of_the_network_alone():
    one, two = simulated(TRUE, voxels=2000)
    known = two.known.copy()
    known[:, 1] = False
    every, some = (
        fit_samples([one, part], shrinkage=0) for part in (two, two._replace(known=known))
    )
    counts = [int((one.label == k).sum() + (two.label == k).sum()) for k in (1, 2)]
    assert every.record["organ_voxels"] == counts
    assert some.record["organ_voxels"] == [counts[0], int((one.label == 2).sum())]
    for name in ("scale_alone", "offset_alone"):
        assert getattr(some, name) == pytest.approx(getattr(every, name), rel=1e-3)
    with pytest.raises(DatasetError, match="must have a labelled organ whose prior is placed"):
        fit_samples([two._replace(known=np.zeros_like(known))])


def test_an_absent_organ_gets_the_shared_numbers():
    (part,) = simulated(TRUE, scans=1, voxels=5000)
    absent = part._replace(label=np.where(part.label == 2, 0, part.label).astype(np.uint8))
    fit = fit_samples([absent])
    one = fit_samples([absent._replace(**{n: getattr(absent, n)[:, :1] for n in COLUMNS})])
    np.testing.assert_allclose(fit.tensor()[0], one.tensor()[0], rtol=1e-5)
    np.testing.assert_allclose(fit.tensor()[1], one.tensor()[0], rtol=1e-5)
    assert fit.thresholds[1] == 0.5
    assert fit.record["organ_voxels"][1] == 0


def test_separable_evidence_stays_finite():
    label = np.array([0, 1] * 50, np.uint8)
    d = np.where(label == 1, 5.0, -5.0)[:, None]
    part = Samples(d, d, np.ones((100, 1), bool), label, np.ones(100), np.zeros(100, np.int64))
    fit = fit_samples([part])
    assert all(low <= v <= high for v, (low, high) in zip(numbers(fit)[0], BOUNDS, strict=True))


def test_a_silent_prior_tells_nothing_of_the_prior_and_has_numbers_of_its_own():
    one, other = simulated(TRUE[:1], voxels=5000)
    other = other._replace(odds=0 * other.odds, known=np.zeros_like(other.known))
    fit, alone = fit_samples([one, other]), fit_samples([one])
    np.testing.assert_allclose(numbers(fit), numbers(alone), rtol=1e-4)
    assert fit.scale_alone != alone.scale_alone
    silent = Likelihood(one, activation="softmax", silent=True)
    best = most_likely(silent, np.zeros((1, 3)), free=(True, False, True))
    expected = [[alone.scale_alone[0], 0, alone.offset_alone[0]]]
    np.testing.assert_allclose(best, expected, rtol=1e-3, atol=1e-4)


def scan(seed, shape, *, organs=2):
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    label[0, 2:6, 2:6] = 1
    label[0, 6:8, 1:4] = organs
    logits = 6 * torch.randn(organs + 1, *shape, generator=generator) - 3
    logits[0] = 0
    for k in range(1, organs + 1):
        logits[k] += 5 * (label[0] == k)
    prior = 0.4 * torch.rand(organs, *shape, generator=generator)
    for k in range(organs):
        prior[k] += 0.1 * (label[0] == k + 1)
    label[0, 0, 0] = 255
    return logits, prior, label


def test_scans_of_any_shape_are_read_one_by_one():
    scans = [scan(0, (10, 9, 4)), scan(1, (12, 8, 5))]
    taken = []

    def stream(column):
        for number, item in enumerate(scans):
            taken.append(number)
            yield item[column]

    fit = fit_calibration(stream(0), stream(1), stream(2), most=None)
    assert taken == [0, 0, 0, 1, 1, 1]
    assert fit == fit_calibration(*zip(*scans, strict=True), most=None)
    meta = [[MetaTensor(x) for x in item] for item in scans]
    assert fit == fit_calibration(*zip(*meta, strict=True), most=None)
    for logits, prior, label in scans:
        plain, fused = (
            F.cross_entropy(
                softmax_logits(logits[None], prior[None], calibration=numbers),
                label.long(),
                ignore_index=255,
            )
            for numbers in (None, fit.tensor())
        )
        assert fused < plain


@pytest.mark.slow
def test_a_few_voxels_stand_for_all():
    scans = [scan(seed, (32, 30, 12)) for seed in range(3)]
    columns = list(zip(*scans, strict=True))
    every, few = (numbers(fit_calibration(*columns, most=most)) for most in (None, 300))
    np.testing.assert_allclose(few, every, rtol=0.3, atol=0.3)
    again = numbers(fit_calibration(*columns, most=300))
    assert np.array_equal(few, again)
    assert not np.array_equal(few, numbers(fit_calibration(*columns, most=300, seed=1)))


def test_each_scan_has_a_draw_of_its_own():
    columns = scan(0, (10, 9, 4))
    once, twice = (
        numbers(fit_calibration(*([c] * n for c in columns), most=10, shrinkage=0)) for n in (1, 2)
    )
    assert not np.allclose(once, twice, rtol=1e-2)


def test_ignored_voxels_do_not_count():
    logits, prior, label = scan(0, (10, 9, 4))
    other = logits.clone()
    other[:, 0, 0] = 50
    one, two = (fit_calibration([x], [prior], [label]) for x in (logits, other))
    assert one == two


def test_the_sigmoid_form_is_fitted_for_the_sigmoid_fusion():
    logits, prior, label = scan(2, (10, 9, 4), organs=1)
    fit = fit_calibration([logits[1:]], [prior], [label], activation="sigmoid")
    target, known = (label == 1).float(), label != 255
    plain, fused = (
        F.binary_cross_entropy_with_logits(
            sigmoid_logits(logits[None, 1:], prior[None], calibration=numbers)[0][known],
            target[known],
        )
        for numbers in (None, fit.tensor())
    )
    assert fused < plain


def test_strength_is_that_of_the_fusion():
    columns = list(zip(scan(0, (10, 9, 4)), strict=True))
    one, two = (numbers(fit_calibration(*columns, strength=s, shrinkage=0)) for s in (1, 2))
    np.testing.assert_allclose(two[:, 1], one[:, 1] / 2, rtol=1e-3)
    np.testing.assert_allclose(two[:, ::2], one[:, ::2], rtol=1e-3, atol=1e-3)


def test_weights_are_the_voxels_that_a_drawn_one_stands_for():
    logits, prior, label = scan(0, (20, 20, 6))
    samples = draw_samples(logits, prior, label, most=10)
    assert samples.weight.sum() == pytest.approx(int((label != 255).sum()))
    for k in range(3):
        assert samples.weight[samples.label == k].sum() == pytest.approx(int((label == k).sum()))


def test_no_voxel_lies_beside_a_silent_prior():
    logits = torch.tensor([1.0, 0, 0])[:, None].repeat(1, 100)
    prior, label = torch.zeros(2, 100), torch.zeros(1, 100)
    prior[0, :40], label[0, :20] = 0.6, 1
    prior[1] = (1 - prior[0]) / 2
    samples = draw_samples(logits, prior, label, most=5)
    # the organ, and background beside the prior of organ 1 and elsewhere
    assert samples.label.tolist() == [0] * 10 + [1] * 5
    assert samples.weight.tolist() == [12.0] * 5 + [4.0] * 10


def test_errors():
    logits, prior, label = scan(0, (10, 9, 4))
    with pytest.raises(ValueError, match=r"`most` must be at least 1, or None .* got 0"):
        draw_samples(logits, prior, label, most=0)
    with pytest.raises(PriorError, match="`activation` must be 'softmax' or 'sigmoid', got 'tanh'"):
        draw_samples(logits, prior, label, activation="tanh")
    with pytest.raises(PriorError, match=r"`prior` must be \(2, 10, 9, 4\) .* got \(1, 10, 9, 4\)"):
        draw_samples(logits, prior[:1], label)
    with pytest.raises(DatasetError, match=r"`label` must be \(1, 10, 9, 4\), got \(10, 9, 4\)"):
        draw_samples(logits, prior, label[0])
    with pytest.raises(DatasetError, match=r"`label` must hold 0 to 2 or 255 .* got \[7\]"):
        draw_samples(logits, prior, torch.where(label == 2, 7, label))
    samples = draw_samples(logits, prior, label)
    for value in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="`shrinkage` must be finite and at least 0, got"):
            fit_samples([samples], shrinkage=value)
    with pytest.raises(PriorError, match=r"`samples` must be of one scan or more, .* got 0 with"):
        fit_samples([])
    other = draw_samples(logits[:2], prior[:1], (label == 1).byte())
    with pytest.raises(PriorError, match=r"got 2 with \[1, 2\] organs"):
        fit_samples([samples, other])
    empty = draw_samples(logits, prior, torch.zeros_like(label))
    with pytest.raises(DatasetError, match="must have a labelled organ whose prior is placed"):
        fit_samples([empty])


@pytest.mark.slow
def test_the_record_tells_what_probabilities_are_worth():
    """Equal to counting on all voxels: fused probabilities come true, those of the network not."""
    samples = simulated(TRUE, voxels=30_000, scans=1)
    told = fit_samples(samples, shrinkage=0).record["reliability"]
    assert max(told["fused"]["error"]) < 0.02
    assert min(told["network_alone"]["error"]) > 0.1
    d, label = torch.from_numpy(samples[0].evidence), torch.from_numpy(samples[0].label)
    p = torch.cat([torch.zeros(len(d), 1), d], dim=1).T.softmax(0)
    counted = reliability(p, label[None].long())
    assert told["network_alone"]["error"] == pytest.approx(counted.error.tolist())
    assert told["network_alone"]["voxels"] == counted.voxels.sum(0).tolist()
