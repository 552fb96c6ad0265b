"""Prior-driven softmax and sigmoid (equations 2 and 3 of the paper) as pure functions.

Words used here:
    logits: what a network returns before its activation, ``s~`` in the paper.
    prior: per organ and voxel, the probability in ``[0, 1]`` that the organ is there; it holds the
        ``K`` organs only, the background is what they leave over.
    adjusted logits: logits plus the logarithm of the prior. Their plain softmax or sigmoid is the
        prior-driven one, so losses, activations and exports need not know about the prior.
    neutral prior: ``1 / (K + 1)`` for every organ (softmax) or ``0.5`` (sigmoid); it changes no
        probability.
    calibration: numbers ``(K, 5)`` that say how much network and prior count for each organ, see
        `stipple_monai.networks.calibration`. Without it both count as they are.

A prior of exactly 0 or 1 would make its logarithm infinite and the product form ``0 / 0``, and
``1e-6`` already underflows to 0 when ``log(1 − p)`` is formed in half precision. Therefore every
probability is held at least ``floor`` away from 0 and 1 and the sum is done in float32 (float64
for float64 logits), whatever the precision of the network.

Calibrated odds are added as their difference to the plain ones, which is exactly 0 for
``a = b = 1, c = 0``: calibrated or not, equation 2 has the same bits.

Pass ``strength``, ``floor`` and ``calibration`` by name. They are not declared keyword-only
because TorchScript compiles no function that has keyword-only arguments with defaults.

Source: Petit, Thome, Soler, "3D Spatial Priors for Semi-Supervised Organ Segmentation with Deep
Convolutional Neural Networks", IJCARS 17 (2022), section 3.2.
"""

import torch
from torch import Tensor

from stipple_monai.errors import PriorError
from stipple_monai.networks.calibrated_odds import calibration_change

DEFAULT_FLOOR = 1e-3


def softmax_logits(
    logits: Tensor,
    prior: Tensor,
    strength: float = 1.0,
    floor: float = DEFAULT_FLOOR,
    calibration: Tensor | None = None,
) -> Tensor:
    """Add ``strength · log p`` to logits that are meant for a softmax (equation 2).

    The background's prior is ``p_0 = 1 − Σ_k p_k``. It is held above ``floor`` also where organs
    overlap (``Σ_k p_k > 1``), and the ``K + 1`` probabilities are then scaled to sum to 1.

    Args:
        logits: ``(B, K + 1, *spatial)``, channel 0 is the background.
        prior: ``(B, K, *spatial)``, the organs in the order of the channels 1 … K, in ``[0, 1]``.
            The values are not checked: this runs in every training step and a check would wait
            for the GPU.
        strength: 1 is the paper, 0 returns the logits as they are; finite and not negative.
        floor: lowest probability of a class, in ``[1e-30, 1 / (K + 1))``.
        calibration: numbers ``(K, 5)`` of :meth:`Calibration.tensor`; with them the odds of organ k
            against the background are ``a_k (s~_k − s~_0) + b_k strength ln(p_k / p_0) + c_k``. An
            organ whose prior is silent in a sample, ``|strength ln(p_k / p_0)| < 0.05`` in all its
            voxels, has the probability that ``a'_k (s~_k − s~_0) + c'_k`` of *all* organs give it,
            and what is left goes to the others and the background as above. ``None`` or no rows:
            equation 2. Values are not checked.

    Returns:
        Adjusted logits ``(B, K + 1, *spatial)`` in the dtype of ``logits``.

    Raises:
        PriorError: the shapes do not belong together, also that of ``calibration``.
        ValueError: ``strength`` or ``floor`` is out of range.

    Example:
        >>> logits = torch.zeros(1, 2, 1, 1)
        >>> prior = torch.full((1, 1, 1, 1), 0.9)
        >>> softmax_logits(logits, prior).exp().flatten()
        tensor([0.1000, 0.9000])
    """
    _check_arguments(logits, prior, 1, strength, floor, calibration)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    bias = strength * _log_prior(prior.to(dtype), floor)
    adjusted = logits.to(dtype) + bias
    if calibration is not None and calibration.shape[0] > 0:
        evidence = logits[:, 1:].to(dtype) - logits[:, :1].to(dtype)
        change = calibration_change(evidence, bias[:, 1:] - bias[:, :1], calibration, "softmax")
        adjusted = torch.cat([adjusted[:, :1], adjusted[:, 1:] + change], dim=1)
    return adjusted.to(logits.dtype)


def sigmoid_logits(
    logits: Tensor,
    prior: Tensor,
    strength: float = 1.0,
    floor: float = DEFAULT_FLOOR,
    calibration: Tensor | None = None,
) -> Tensor:
    """Add ``strength · (log p − log(1 − p))`` to logits that are meant for a sigmoid (equation 3).

    Args:
        logits: ``(B, K, *spatial)``, one channel per organ and none for the background.
        prior: ``(B, K, *spatial)``, in ``[0, 1]``; the values are not checked, as in
            `softmax_logits`.
        strength: 1 is the paper, 0 returns the logits as they are; finite and not negative.
        floor: distance that ``p`` keeps from 0 and 1, in ``[1e-30, 0.5)``.
        calibration: as in `softmax_logits`, for ``a_k s~_k + b_k strength ln(p / (1 − p)) + c_k``.

    Returns:
        Adjusted logits ``(B, K, *spatial)`` in the dtype of ``logits``.

    Raises:
        PriorError: the shapes do not belong together, also that of ``calibration``.
        ValueError: ``strength`` or ``floor`` is out of range.

    Example:
        >>> sigmoid_logits(torch.zeros(1, 1, 2), torch.tensor([[[0.5, 0.75]]]))
        tensor([[[0.0000, 1.0986]]])
    """
    _check_arguments(logits, prior, 0, strength, floor, calibration)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    bias = strength * _log_odds(prior.to(dtype), floor)
    adjusted = logits.to(dtype) + bias
    if calibration is not None and calibration.shape[0] > 0:
        adjusted = adjusted + calibration_change(logits.to(dtype), bias, calibration, "sigmoid")
    return adjusted.to(logits.dtype)


def prior_odds(prior: Tensor, activation: str = "softmax", floor: float = DEFAULT_FLOOR) -> Tensor:
    """What the prior adds to an organ's odds: ``ln(p_k / p_0)``, or ``ln(p / (1 − p))`` (sigmoid).

    Args:
        prior: ``(B, K, *spatial)`` in ``[0, 1]``, organs only.
        activation: ``"softmax"`` or ``"sigmoid"``.
        floor: as in `softmax_logits` and `sigmoid_logits`.

    Returns:
        Log-odds ``(B, K, *spatial)`` in float32, float64 for a float64 prior.

    Example:
        >>> prior_odds(torch.tensor([[[0.5, 0.75]]]))
        tensor([[[0.0000, 1.0986]]])
    """
    prior = prior.to(torch.float64 if prior.dtype == torch.float64 else torch.float32)
    if activation == "sigmoid":
        return _log_odds(prior, floor)
    log_p = _log_prior(prior, floor)
    return log_p[:, 1:] - log_p[:, :1]


def _log_prior(organs: Tensor, floor: float) -> Tensor:
    background = (1.0 - organs.sum(dim=1, keepdim=True)).clamp(min=floor)
    p = torch.cat([background, organs.clamp(floor, 1.0 - floor)], dim=1)
    return torch.log(p / p.sum(dim=1, keepdim=True))


def _log_odds(p: Tensor, floor: float) -> Tensor:
    # 1 − p is clamped by itself: 1 − (1 − floor) would be 0 for a floor below float32's resolution
    inside = torch.log(p.clamp(floor, 1.0 - floor))
    return inside - torch.log((1.0 - p).clamp(floor, 1.0 - floor))


def prior_driven_softmax(
    logits: Tensor,
    prior: Tensor,
    strength: float = 1.0,
    floor: float = DEFAULT_FLOOR,
    calibration: Tensor | None = None,
) -> Tensor:
    """Probabilities ``s_k p_k / Σ_c s_c p_c`` (equation 2), ``s`` being the softmax of the logits.

    Args:
        logits: ``(B, K + 1, *spatial)``, channel 0 is the background.
        prior: ``(B, K, *spatial)``, organs only, finite and in ``[0, 1]``; checked except inside
            TorchScript, ``torch.export`` and ``torch.compile``.
        strength: as in `softmax_logits`.
        floor: as in `softmax_logits`.
        calibration: as in `softmax_logits`.

    Returns:
        Probabilities ``(B, K + 1, *spatial)`` that sum to 1 over the channels.

    Raises:
        PriorError: the prior is not finite, not in ``[0, 1]`` or of another shape.
        ValueError: ``strength`` or ``floor`` is out of range.

    Example:
        >>> prior_driven_softmax(torch.zeros(1, 2, 1), torch.tensor([[[0.75]]])).flatten()
        tensor([0.2500, 0.7500])
    """
    if not torch.jit.is_scripting():
        _check_probabilities(prior)
    return torch.softmax(softmax_logits(logits, prior, strength, floor, calibration), dim=1)


def prior_driven_sigmoid(
    logits: Tensor,
    prior: Tensor,
    strength: float = 1.0,
    floor: float = DEFAULT_FLOOR,
    calibration: Tensor | None = None,
) -> Tensor:
    """Probabilities ``s p / (s p + (1 − s)(1 − p))`` (equation 3), ``s`` the sigmoid of the logits.

    Args:
        logits: ``(B, K, *spatial)``.
        prior: ``(B, K, *spatial)``, finite and in ``[0, 1]``; checked as in
            `prior_driven_softmax`.
        strength: as in `sigmoid_logits`.
        floor: as in `sigmoid_logits`.
        calibration: as in `sigmoid_logits`.

    Returns:
        Probabilities ``(B, K, *spatial)``.

    Raises:
        PriorError: the prior is not finite, not in ``[0, 1]`` or of another shape.
        ValueError: ``strength`` or ``floor`` is out of range.

    Example:
        >>> prior_driven_sigmoid(torch.zeros(1, 1, 1), torch.tensor([[[0.75]]])).flatten()
        tensor([0.7500])
    """
    if not torch.jit.is_scripting():
        _check_probabilities(prior)
    return torch.sigmoid(sigmoid_logits(logits, prior, strength, floor, calibration))


def _check_arguments(
    logits: Tensor,
    prior: Tensor,
    background: int,
    strength: float,
    floor: float,
    calibration: Tensor | None,
) -> None:
    real = prior.is_floating_point() or prior.dtype == torch.bool  # a mask is a prior, too
    if logits.ndim < 2 or not logits.is_floating_point() or not real:
        raise PriorError(
            "`logits` and `prior` must be of floating point and have the axes B and C, got "
            f"{logits.dtype} {list(logits.shape)} and {prior.dtype} {list(prior.shape)}"
        )
    organs = logits.shape[1] - background
    if organs < 1 or prior.shape[1] != organs:
        raise PriorError(
            f"`prior` must have one channel per organ, {organs} for logits with "
            f"{logits.shape[1]} channels, got {prior.shape[1]}; leave the background out of it"
        )
    if prior.shape[0] != logits.shape[0] or prior.shape[2:] != logits.shape[2:]:
        raise PriorError(
            "`prior` must have the batch and spatial shape of `logits`, got "
            f"{list(prior.shape)} for {list(logits.shape)}; place it on the grid of the image"
        )
    if not 0.0 <= strength < float("inf"):
        raise ValueError(
            f"`strength` must be finite and at least 0, got {strength}; 0 switches the prior off"
        )
    ceiling = 1.0 / (organs + 1) if background else 0.5
    if not 1e-30 <= floor < ceiling:
        raise ValueError(
            f"`floor` must lie in [1e-30, {ceiling}), got {floor}; the default suits most cases"
        )
    if calibration is not None and calibration.shape[0] not in (0, organs):
        raise PriorError(
            f"`calibration` must have a row for each organ, {organs}, got {calibration.shape[0]}; "
            "fit it for this network"
        )


def _check_probabilities(prior: Tensor) -> None:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not prior.numel():
        return
    prior = prior.detach()
    invalid = int((~torch.isfinite(prior)).sum())
    if invalid:
        raise PriorError(
            f"`prior` must be finite, got {invalid} of {prior.numel()} values NaN or infinite; "
            "rebuild it from its labels"
        )
    low, high = float(prior.min()), float(prior.max())
    # interpolation leaves rounding errors at both ends
    if low < -1e-5 or high > 1.0 + 1e-5:
        raise PriorError(
            f"`prior` must lie in [0, 1], got values from {low} to {high}; "
            "pass probabilities, neither percentages nor logarithms"
        )
