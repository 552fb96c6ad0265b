"""What a calibration adds to the odds of equation 2, in tensors that TorchScript can compile.

Words as in `stipple_monai.networks.calibration`: evidence ``d``, prior odds ``r``, numbers ``a``,
``b``, ``c`` beside a prior and ``a'``, ``c'`` where it is silent.
"""

import torch
from torch import Tensor

SILENT = 0.05
"""A prior whose log-odds stay below this everywhere says nothing; rounding in half precision is."""


def calibration_change(
    evidence: Tensor, odds: Tensor, calibration: Tensor, activation: str
) -> Tensor:
    """Calibrated odds less the plain ones, ``d + r``; exactly 0 for the numbers of equation 2.

    Args:
        evidence: ``d``, ``(B, K, *spatial)``.
        odds: ``r``, of the same shape.
        calibration: numbers ``(K, 5)``.
        activation: ``"softmax"``, in which organs share a voxel's probability, or ``"sigmoid"``.

    Returns:
        ``(B, K, *spatial)``.
    """
    silent = _silent(odds)
    change = _change(evidence, odds, calibration, silent)
    if activation == "softmax" and _some_silent(silent):
        change = change + _silent_beside_others(evidence, odds, change, calibration, silent)
    return change


def _silent(odds: Tensor, silence: float = SILENT) -> Tensor:
    """Whose prior says nothing in a sample, ``(B, K)`` and an axis of one for each of space."""
    # A number of the module reaches TorchScript as a default, and in no other way.
    silent = odds.abs().flatten(2).amax(dim=2) < silence
    return silent.reshape(list(silent.shape) + [1] * (odds.ndim - 2))


def _some_silent(silent: Tensor) -> bool:
    """Whether an organ is silent beside others; true where looking would cost more than it saves.

    That is where a graph is recorded, and in training, which must not wait for a GPU.
    """
    if silent.shape[1] == 1:
        return False
    if not torch.jit.is_scripting():
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if recorded or torch.is_grad_enabled():
            return True
    return bool(silent.any())


def _change(evidence: Tensor, odds: Tensor, calibration: Tensor, silent: Tensor) -> Tensor:
    """``(a − 1) d + (b − 1) r + c``, or ``(a' − 1) d + c'`` where the prior is silent."""
    scale, strength, offset, scale_alone, offset_alone = _columns(calibration, evidence)
    scale = torch.where(silent, scale_alone, scale)
    strength = torch.where(silent, torch.ones_like(strength), strength)
    offset = torch.where(silent, offset_alone, offset)
    return (scale - 1.0) * evidence + (strength - 1.0) * odds + offset


def _columns(calibration: Tensor, like: Tensor) -> list[Tensor]:
    """The columns of the calibration, each ``(K, 1, …)`` beside an array ``(B, K, …)``."""
    shape = [1] * (like.ndim - 1)
    shape[0] = -1
    return [column.reshape(shape) for column in calibration.to(like.dtype).unbind(dim=1)]


def _silent_beside_others(
    evidence: Tensor, odds: Tensor, change: Tensor, calibration: Tensor, silent: Tensor
) -> Tensor:
    """What the odds of organs whose prior is silent need beside organs whose prior is not.

    Scales differ: an odds of 2 that counts as it is would outdo one of 6 that counts a fifth. So
    the probability of a silent organ is ``exp(z'_k) / (1 + Σ_j exp(z'_j))`` with
    ``z' = a' d + c'`` of all organs, and the rest is shared out as if it were not there:
    ``z_k = z'_k − ln(1 + Σ_placed exp z'_j) + ln(1 + Σ_placed exp z_j)``. The two logarithms are
    the shift that is returned. For equation 2 all scales are 1: none outdoes another, and the shift
    is set to 0.
    """
    columns = _columns(calibration, evidence)
    alone = columns[3] * evidence + columns[4]
    # not −∞: where all are silent, the slope must be zero and not undefined
    nothing = -1e4
    before = torch.logsumexp(alone.masked_fill(silent, nothing), dim=1, keepdim=True)
    fused = (evidence + odds + change).masked_fill(silent, nothing)
    beside = torch.logsumexp(fused, dim=1, keepdim=True)
    shift = torch.nn.functional.softplus(beside) - torch.nn.functional.softplus(before)
    return torch.where(silent & _is_calibrated(columns), shift, torch.zeros_like(shift))


def _is_calibrated(columns: list[Tensor]) -> Tensor:
    """Whether the columns of a calibration are others than those of equation 2, of no axis."""
    scale, strength, offset, scale_alone, offset_alone = columns
    factors = (scale != 1.0) | (strength != 1.0) | (scale_alone != 1.0)
    return (factors | (offset != 0.0) | (offset_alone != 0.0)).any()
