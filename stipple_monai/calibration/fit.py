"""A calibration by maximum likelihood, on scans that the network was not trained on.

Words used here: *evidence* of an organ is its labelled volume in the scans. An organ with little
evidence is drawn to the *shared* numbers, which are the most likely ones for all organs alike.

The network alone (b = 0) and the prior alone (a = 0) are among what is compared, hence the fitted
fusion is at least as likely as both on the scans of the fit. Shrinkage could break that; it is
halved until it does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stipple_monai.calibration.decision import best_thresholds
from stipple_monai.calibration.likelihood import Likelihood, most_likely
from stipple_monai.calibration.reliability import weighted_reliability
from stipple_monai.calibration.samples import Samples, draw_samples, join_samples
from stipple_monai.errors import DatasetError
from stipple_monai.networks import DEFAULT_FLOOR, Calibration

__all__ = ["fit_calibration", "fit_samples"]

OBSERVATIONS = 50.0
"""What the voxels of an average organ in a scan tell, in independent observations: neighbours agree
over about a centimetre."""

SPREAD = (0.5, 0.5, 1.0)
"""How far organs are expected to stray from the shared numbers: half of a and b, 1 from c."""

_PLAIN = (1.0, 1.0, 0.0)
Array = NDArray[np.float64]


def fit_calibration(
    logits: Iterable[Tensor],
    priors: Iterable[Tensor],
    labels: Iterable[Tensor],
    *,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    strength: float = 1.0,
    floor: float = DEFAULT_FLOOR,
    shrinkage: float = 1.0,
    most: int | None = 2000,
    seed: int = 0,
) -> Calibration:
    """Fit how much network and prior count, scan by scan as they come.

    Args:
        logits: one ``(K + 1, *spatial)`` a scan, for sigmoids ``(K, *spatial)``, of networks that
            were not trained on it. Scans may have different shapes.
        priors: ``(K, *spatial)`` likewise, placed as they will be.
        labels: ``(1, *spatial)`` likewise, 0 to K and 255 (ignored).
        activation: what the logits are meant for.
        strength: τ of the fusion that the numbers are for.
        floor: lowest prior probability of that fusion.
        shrinkage: of organs with little evidence towards the shared numbers, at least 0.
        most: voxels of a stratum that are looked at, see `draw_samples`; None: all.
        seed: of the draw.

    Returns:
        Numbers and thresholds. Its record has the mean negative log-likelihood, in nats for each
        labelled organ voxel, of equation 2, network alone, prior alone and the fit, and how
        reliable probabilities of the network alone and of the fit are, see `reliability`: all
        organs together in ten bins, and each organ's expected calibration error. An organ that no
        scan has gets the shared numbers and the threshold 0.5.

    Raises:
        PriorError, DatasetError, ValueError: as `draw_samples` and `fit_samples`.

    Example:
        >>> import torch
        >>> label = (torch.arange(40)[None] % 4 == 0).long()
        >>> noise = torch.linspace(-9, 9, 40)
        >>> logits = torch.stack([torch.zeros(40), 8 * label[0] + noise])
        >>> prior = 0.1 + 0.5 * label
        >>> fit = fit_calibration([logits], [prior], [label])
        >>> fit.scale[0] < 1 < fit.strength[0]
        True
    """
    drawn = [
        draw_samples(
            *scan,
            activation=activation,
            strength=strength,
            floor=floor,
            most=most,
            seed=seed + number,
        )
        for number, scan in enumerate(zip(logits, priors, labels, strict=True))
    ]
    return fit_samples(drawn, activation=activation, shrinkage=shrinkage)


def fit_samples(
    samples: Sequence[Samples],
    *,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    shrinkage: float = 1.0,
) -> Calibration:
    """Fit to drawn voxels, see :func:`fit_calibration`.

    Raises:
        DatasetError: no scan has an organ whose prior is known.
        ValueError: ``shrinkage`` is negative or not finite.
    """
    if not 0 <= shrinkage < np.inf:
        raise ValueError(f"`shrinkage` must be finite and at least 0, got {shrinkage}.")
    joined = join_samples(samples)
    volume = _volumes(joined)
    present = np.flatnonzero(volume)
    if not len(present):
        raise DatasetError(
            "Scans to calibrate on must have a labelled organ whose prior is placed, got "
            f"{len(samples)} without: give other scans, or check positions and labels."
        )
    kept = _with_organs(joined, present)
    observation = shrinkage * volume.sum() / (len(present) * (joined.scan.max() + 1)) / OBSERVATIONS
    fused, shared, values = _fit_fused(Likelihood(kept, activation=activation), observation)
    silent = Likelihood(kept, activation=activation, silent=True)
    alone, shared_alone = _shrunk(silent, (True, False, True), observation)
    theta = _fill_absent(fused, shared, present, len(volume))
    theta_alone = _fill_absent(alone, shared_alone, present, len(volume))
    thresholds = np.full(len(volume), 0.5)
    thresholds[present] = best_thresholds(kept, fused, activation=activation)
    record = _record(joined, volume, values, theta, activation)
    return Calibration(
        scale=theta[:, 0].tolist(),
        strength=theta[:, 1].tolist(),
        offset=theta[:, 2].tolist(),
        scale_alone=theta_alone[:, 0].tolist(),
        offset_alone=theta_alone[:, 2].tolist(),
        activation=activation,
        thresholds=thresholds.tolist(),
        record=record,
    )


def _record(
    samples: Samples, volume: Array, values: dict[str, float], theta: Array, activation: str
) -> dict[str, Any]:
    plain = np.tile((1.0, 0.0, 0.0), (len(volume), 1))
    return {
        "fitted": True,
        "scans": int(samples.scan.max()) + 1,
        "voxels": len(samples.label),
        "organ_voxels": volume.tolist(),
        "nats_per_organ_voxel": {n: float(v / volume.sum()) for n, v in values.items()},
        "reliability": {
            "network_alone": _reliability(samples, plain, activation),
            "fused": _reliability(samples, theta, activation),
        },
    }


def _reliability(samples: Samples, theta: Array, activation: str) -> dict[str, Any]:
    """What organs' probabilities are worth, all organs together, and each organ's error."""
    likelihood = Likelihood(samples, activation=activation)
    p = torch.from_numpy(likelihood.probabilities(theta))
    classes = torch.from_numpy(samples.label[likelihood.rows].astype(np.int64))
    weight = torch.from_numpy(likelihood.weight)
    each = weighted_reliability(p.T, classes, weight)
    voxels = each.voxels.double()
    count = voxels.sum(0)
    confidence, frequency = (
        ((table.nan_to_num() * voxels).sum(0) / count).nan_to_num().tolist()
        for table in (each.confidence, each.frequency)
    )
    return {
        "confidence": confidence,
        "frequency": frequency,
        "voxels": count.long().tolist(),
        "error": [None if math.isnan(error) else error for error in each.error.tolist()],
    }


def _fill_absent(theta: Array, shared: Array, present: NDArray[np.int64], organs: int) -> Array:
    """Numbers of all organs, the shared ones where an organ is not present."""
    result = np.tile(shared, (organs, 1))
    result[present] = theta
    return result


def _fit_fused(likelihood: Likelihood, observation: float) -> tuple[Array, Array, dict[str, float]]:
    """Numbers of each organ, those for all alike, and negative log-likelihoods."""
    plain = np.tile(_PLAIN, (likelihood.organs, 1))
    network = most_likely(likelihood, plain * (1, 0, 1), free=(True, False, True))
    prior = most_likely(likelihood, plain * (0, 1, 1), free=(False, True, True))
    specials = {"network_alone": network, "prior_alone": prior}
    values = {name: likelihood(theta)[0] for name, theta in specials.items()}
    limit = min(values.values())
    strength = observation
    while True:
        both, shared = _shrunk(likelihood, (True, True, True), strength)
        if likelihood(both)[0] <= limit:
            break
        if strength == 0:
            # the optimiser stopped short of a special case, from which it can only gain
            best = min(specials.values(), key=lambda theta: likelihood(theta)[0])
            both = most_likely(likelihood, best)
            both = min((both, best), key=lambda theta: likelihood(theta)[0])
            break
        strength = strength / 2 if strength > observation / 1000 else 0.0
    values = {"equation_2": likelihood(plain)[0], **values, "fused": likelihood(both)[0]}
    return both, shared, values


def _shrunk(
    likelihood: Likelihood, free: tuple[bool, bool, bool], observation: float
) -> tuple[Array, Array]:
    """Numbers of each organ, drawn to those for all alike, ``(K, 3)`` and ``(3,)``.

    ``observation`` is what counts as one independent observation, in voxels; 0 does not draw.
    """
    start = np.tile(_PLAIN, (likelihood.organs, 1)) * (1, free[1], 1)
    shared = most_likely(likelihood, start, free=free, shared=True)
    if likelihood.organs == 1:
        return shared, shared[0]
    spread = np.array(SPREAD) * np.maximum([*shared[0, :2], 1.0], [0.05, 0.05, 1.0])
    own = most_likely(
        likelihood, shared, free=free, center=shared[0], tightness=observation / spread**2
    )
    return own, shared[0]


def _volumes(samples: Samples) -> Array:
    """Labelled voxels of each organ where its prior is known."""
    organs = samples.evidence.shape[1]
    hit = (samples.label[:, None] == np.arange(1, organs + 1)) & samples.known
    return (hit * samples.weight[:, None]).sum(0)


def _with_organs(samples: Samples, present: NDArray[np.int64]) -> Samples:
    """Only these organs; voxels of others, whose priors are all silent, are left out."""
    number = np.zeros(samples.evidence.shape[1] + 1, dtype=np.int64) - 1
    number[0] = 0
    number[present + 1] = np.arange(1, len(present) + 1)
    label = number[samples.label]
    rows = label >= 0
    return Samples(
        samples.evidence[rows][:, present],
        samples.odds[rows][:, present],
        samples.known[rows][:, present],
        label[rows].astype(np.uint8),
        samples.weight[rows],
        samples.scan[rows],
    )
