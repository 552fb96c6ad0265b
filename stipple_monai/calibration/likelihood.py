"""The likelihood of calibrated odds, and its maximum.

With evidence ``d``, prior odds ``r`` and label ``y`` of voxel v (see `networks.calibration`), the
negative log-likelihood

``Σ_v w_v [ ln(1 + Σ_k exp z_vk) − z_vy ]``,   ``z_vk = a_k d_vk + b_k r_vk + c_k``,  ``z_v0 = 0``

(for sigmoids ``Σ_v w_v Σ_k [ ln(1 + exp z_vk) − y_vk z_vk ]``) is convex in a, b and c, so that
L-BFGS-B finds its minimum in the box ``BOUNDS``, from wherever it starts. The box keeps numbers
finite where the evidence tells organs apart without any error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from stipple_monai.calibration.samples import Samples

BOUNDS = ((0.0, 10.0), (0.0, 10.0), (-30.0, 30.0))
"""Of a, b and c."""

Array = NDArray[np.float64]


class Likelihood:
    """Negative log-likelihood of samples, in nats.

    A voxel of an organ whose prior is silent tells nothing about the numbers beside priors, and
    neither does that organ in the other voxels of its scan.

    Args:
        samples: with at least one organ.
        activation: ``"softmax"`` or ``"sigmoid"``.
        silent: whether the prior is left out, as where it is silent: every voxel counts.
    """

    def __init__(self, samples: Samples, *, activation: str, silent: bool = False) -> None:
        self.activation = activation
        known = np.ones_like(samples.known) if silent else samples.known
        rows = np.arange(len(samples.label))
        organ = samples.label.astype(np.int64) - 1
        usable = (organ < 0) | known[rows, np.maximum(organ, 0)] | (activation == "sigmoid")
        self.features = np.stack([samples.evidence, samples.odds], axis=-1).astype(np.float64)
        self.features, self.known = self.features[usable], known[usable]
        if silent:
            self.features[..., 1] = 0
        self.rows = np.flatnonzero(usable)
        self.weight = samples.weight[usable]
        self.target = organ[usable][:, None] == np.arange(known.shape[1])
        self.organs = known.shape[1]

    def log_odds(self, theta: Array) -> Array:
        """``z``, ``(N, K)``, of numbers ``(K, 3)``; −∞ for an organ that is not heard."""
        z = (self.features * theta[:, :2]).sum(-1) + theta[:, 2]
        return np.where(self.known, z, -np.inf)

    def probabilities(self, theta: Array) -> Array:
        """Probabilities of the organs, ``(N, K)``, of numbers ``(K, 3)``."""
        z = self.log_odds(theta)
        return expit(z) if self.activation == "sigmoid" else _softmax(z)[0]

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """Value and gradient ``(K, 3)`` at numbers ``(K, 3)``."""
        z = self.log_odds(theta)
        if self.activation == "sigmoid":
            total, excess = np.logaddexp(0, z), expit(z) - self.target
            excess = np.where(self.known, excess, 0)
        else:
            p, total = _softmax(z)
            excess = p - self.target
        hit = np.where(self.target & self.known, z, 0).sum(1)
        value = float(self.weight @ (total.sum(1) - hit))
        excess = excess * self.weight[:, None]
        slope = np.einsum("nk,nkf->kf", excess, self.features)
        return value, np.concatenate([slope, excess.sum(0)[:, None]], axis=1)


def _softmax(z: Array) -> tuple[Array, Array]:
    """Probabilities ``(N, K)`` and ``ln(1 + Σ_k exp z_k)``, ``(N, 1)``; the background's z is 0."""
    top = np.maximum(z.max(1, keepdims=True), 0)
    shares = np.exp(z - top)
    sums = shares.sum(1, keepdims=True) + np.exp(-top)
    return shares / sums, top + np.log(sums)


def most_likely(
    likelihood: Likelihood,
    start: Array,
    *,
    free: Sequence[bool] = (True, True, True),
    shared: bool = False,
    center: Array | None = None,
    tightness: Array | None = None,
) -> Array:
    """Numbers ``(K, 3)`` of the highest likelihood.

    Args:
        likelihood: of the samples.
        start: ``(K, 3)``; numbers that are not free stay what they are here.
        free: whether a, b and c may change.
        shared: one a, b and c for all organs.
        center: ``(3,)``, numbers that organs are drawn to.
        tightness: ``(3,)``, how strongly: ``Σ_k Σ_i tightness_i (θ_ki − center_i)² / 2`` is added.
    """
    free_ = np.asarray(free)
    rows = 1 if shared else likelihood.organs
    # The scale of logits differs by a factor of hundred between networks: solve in their units.
    unit = 1 / np.maximum(np.sqrt((likelihood.features**2).mean((0, 1))), 1e-3)
    unit = np.append(unit, 1.0)[free_]
    scale = 1 / max(likelihood.weight.sum(), 1e-300)

    def full(x: Array) -> Array:
        theta = start.copy()
        theta[:, free_] = np.broadcast_to(x.reshape(rows, -1) * unit, (len(start), free_.sum()))
        return theta

    def objective(x: Array) -> tuple[float, Array]:
        theta = full(x)
        value, slope = likelihood(theta)
        if center is not None and tightness is not None:
            value += float((tightness * (theta - center) ** 2).sum()) / 2
            slope = slope + tightness * (theta - center)
        slope = slope[:, free_] * unit
        return value * scale, (slope.sum(0) if shared else slope).ravel() * scale

    bounds = [
        (low / u, high / u)
        for (low, high), u in zip(_free_bounds(BOUNDS, free_), unit, strict=True)
    ]
    first = (start[:rows, free_] / unit).ravel()
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-15, "gtol": 1e-9, "maxls": 50}
    found = minimize(
        objective, first, jac=True, method="L-BFGS-B", bounds=bounds * rows, options=options
    )
    return full(found.x)


def _free_bounds(
    bounds: Sequence[tuple[float, float]], free: NDArray[np.bool_]
) -> list[tuple[float, float]]:
    return [bound for bound, may in zip(bounds, free, strict=True) if may]
