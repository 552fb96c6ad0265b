"""Where the organ is in a scan without a label (section 3.2 of Petit et al. 2022).

The paper moves a coarse prediction ``Q`` over a labelled reference ``R`` and keeps the
translation with the lowest Kullback-Leibler divergence. With a Bernoulli variable in each voxel,

``KL(R ‖ Q_t) = Σ_v R log(R / Q_t) + (1 − R) log((1 − R) / (1 − Q_t))``,

where ``Q_t(v) = Q(v + t)`` and ``Q = ε`` outside the field of view. Summed over all space,
``Σ log(1 − Q_t)`` does not depend on ``t``, nor does what ``R`` alone contributes, so that

``KL(R ‖ Q_t) = const − Σ_v R(v) [logit Q(v + t) − logit ε]``:

the best translation is the greatest value of one cross-correlation, and a Fourier transform
gives it for all translations at once. The divergence is linear in ``R`` up to a constant, hence
its mean over all labelled volumes is the same correlation with their mean, the prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from scipy.fft import next_fast_len

from stipple_monai.errors import PositionError
from stipple_monai.organ import is_invertible
from stipple_monai.prior import SpatialPrior

DEFAULT_EPSILON = 1e-3


def locate_organ(
    probability: MetaTensor,
    reference: SpatialPrior,
    *,
    max_shift_mm: float | None = None,
    minimum: float = 0.5,
    epsilon: float = DEFAULT_EPSILON,
) -> torch.Tensor | None:
    """Find the position that a coarse prediction of one organ supports best.

    Args:
        probability: ``(1, W, H, D)``, the network's probability of the organ in [0, 1].
        reference: the organ around its centre: the mean over all labelled volumes (the prior
            itself, or one estimated with ``bins=None``), or as in the paper one volume,
            ``SpatialPrior.estimate([label], bins=None)``.
        max_shift_mm: greatest distance from the centre of mass of what is predicted (the voxel
            nearest to it is searched in any case); ``None`` searches all positions at which the
            reference overlaps the prediction.
        minimum: a prediction that reaches this nowhere is no prediction.
        epsilon: ``Q`` is kept in [ε, 1 − ε], and is ε outside the field of view.

    Returns:
        ``(3,)`` float64 on the CPU, the world point (RAS mm) of the organ's centre, on the grid
        of voxel centres; ``None`` where nothing is predicted. Of equally good positions, the
        nearest to the prediction's centre of mass.

    Raises:
        PositionError: ``probability`` is not a 3D probability map with an invertible affine, or
            an option is out of range.

    Example:
        >>> ball = SpatialPrior(torch.ones(5, 5, 5), spacing_mm=(1, 1, 1))
        >>> scan = MetaTensor(torch.zeros(1, 20, 20, 20), affine=torch.eye(4))
        >>> scan[0, 4:9, 8:13, 10:15] = 0.9
        >>> scan[0, 18, 18, 1] = 1.0
        >>> locate_organ(scan, ball)
        tensor([ 6., 10., 12.], dtype=torch.float64)
    """
    if not 0 < epsilon < 0.5:
        raise PositionError(f"`epsilon` must lie in (0, 0.5), got {epsilon}.")
    if max_shift_mm is not None and not max_shift_mm > 0:
        raise PositionError(f"`max_shift_mm` must be positive or None, got {max_shift_mm}.")
    if not 0 <= minimum <= 1:
        raise PositionError(f"`minimum` must be a probability in [0, 1], got {minimum}.")
    _check_probability(probability)
    q = probability.as_tensor().detach()[0].double()
    predicted = torch.nonzero((q >= minimum) & (q > epsilon)).double()
    if not len(predicted):
        return None

    affine = probability.affine.to(dtype=torch.float64, device="cpu")
    evidence = q.clamp(epsilon, 1 - epsilon).logit() - math.log(epsilon / (1 - epsilon))
    # Where Q is ε there is no evidence: the correlation needs the rest of the volume alone.
    first, evidence = _crop_to_positive(evidence)
    kernel = _around_center(reference, affine).to(evidence)
    score = _correlate(evidence, kernel)
    first = first - (torch.tensor(kernel.shape) - 1) // 2

    # Rounding, which follows the greatest score, must neither choose among equals nor move a limit.
    slack = 1e-9 * score.abs().max()
    mean_mm = _to_world(affine, predicted.mean(0).cpu())
    if max_shift_mm is not None:
        distance = _distance_mm(score.shape, first, affine, mean_mm)
        limit = max(max_shift_mm, float(distance.min())) * (1 + 1e-9)
        score = score.masked_fill((distance > limit).to(score.device), -math.inf)
    candidates = torch.nonzero(score >= score.max() - slack).cpu() + first
    points = _to_world(affine, candidates.double())
    return points[(points - mean_mm).norm(dim=-1).argmin()]


def _check_probability(probability: MetaTensor) -> None:
    if not isinstance(probability, MetaTensor):
        raise PositionError(
            "`probability` must be a MetaTensor, whose affine says where it lies, got "
            f"{type(probability)}."
        )
    if probability.ndim != 4 or probability.shape[0] != 1:
        raise PositionError(
            "`probability` must be one organ's map with the axes 1 W H D, got the shape "
            f"{tuple(probability.shape)}."
        )
    if not is_invertible(probability.affine.cpu()):
        raise PositionError(
            "`probability` must have an invertible 4 × 4 affine, got "
            f"{probability.affine.tolist()}: correct the scan's header."
        )
    low, high = (float(v) for v in probability.as_tensor().detach().aminmax())
    if not (low >= 0 and high <= 1 + 1e-6):
        raise PositionError(
            f"`probability` must lie in [0, 1], got [{low:g}, {high:g}]: apply softmax or sigmoid "
            "to logits first."
        )


def _crop_to_positive(volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The index of the first voxel of the box around positive values, and the box."""
    starts, stops = [], []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        used = torch.nonzero((volume > 0).any(others[1]).any(others[0]))
        starts.append(int(used[0]))
        stops.append(int(used[-1]) + 1)
    box = volume[starts[0] : stops[0], starts[1] : stops[1], starts[2] : stops[2]]
    return torch.tensor(starts), box


def _around_center(reference: SpatialPrior, affine: torch.Tensor) -> torch.Tensor:
    """The reference on the axes of a grid, its centre on the middle voxel of odd lengths."""
    half_box = torch.tensor(reference.size_mm, dtype=torch.float64) / 2
    to_voxel = torch.linalg.inv(affine[:3, :3])
    reach = (to_voxel.abs() @ half_box).ceil().long()
    centered = affine.clone()
    centered[:3, 3] = -affine[:3, :3] @ reach.double()
    grid = MetaTensor(torch.empty(1, *(2 * reach + 1).tolist()), affine=centered)
    return reference.place((0.0, 0.0, 0.0), grid).as_tensor()[0]


def _correlate(volume: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """``Σ_u kernel[u] volume[t + u − c]``, c the kernel's middle, for all t with an overlap."""
    shape = [n + m - 1 for n, m in zip(volume.shape, kernel.shape, strict=True)]
    fast = [next_fast_len(n, real=True) for n in shape]
    spectrum = torch.fft.rfftn(volume, s=fast)
    spectrum *= torch.fft.rfftn(kernel.flip((0, 1, 2)), s=fast)
    return torch.fft.irfftn(spectrum, s=fast)[: shape[0], : shape[1], : shape[2]]


def _to_world(affine: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return index @ affine[:3, :3].T + affine[:3, 3]


def _distance_mm(
    shape: Sequence[int], first: torch.Tensor, affine: torch.Tensor, point: torch.Tensor
) -> torch.Tensor:
    ranges = [torch.arange(n, dtype=torch.float64) + f for n, f in zip(shape, first, strict=True)]
    grid = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1)
    return (_to_world(affine, grid) - point).norm(dim=-1)
