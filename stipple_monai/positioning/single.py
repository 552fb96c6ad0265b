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

from stipple_monai.errors import PositionError
from stipple_monai.nifti import RAS_REMEDY, is_invertible, leads_to_lps
from stipple_monai.priors import (
    Label,
    SpatialPrior,
    Volume,
    open_volume,
    organ_crop,
    organ_position,
)
from stipple_monai.spatial import Box, promising, scores_in, seen_box

DEFAULT_EPSILON = 1e-3
ROUNDING = 1e-6
"""By so much a probability may be above 1."""
CELL_MM = 4.0
"""Translations are first compared in cells of about this size."""
_LARGE_BOX = 1_000_000
"""A search of more translations than this is narrowed with smaller cells first."""


def locate_organ(
    probability: Volume,
    reference: SpatialPrior,
    *,
    max_shift_mm: float | None = None,
    minimum: float = 0.5,
    epsilon: float = DEFAULT_EPSILON,
) -> torch.Tensor | None:
    """Find the position that a coarse prediction of one organ supports best.

    Args:
        probability: ``(1, W, H, D)``, the network's probability of the organ in [0, 1]; or a
            NIfTI file of it. Of a file with two channels, which are along the fourth axis, the
            first is the background.
        reference: the organ around its centre: the mean over all labelled volumes (the prior
            itself, or one of every slice, ``smoothing_mm=None``), or as in the paper one volume,
            ``SpatialPrior.estimate([label], smoothing_mm=None)``.
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
    check_search(minimum=minimum, epsilon=epsilon, max_shift_mm=max_shift_mm)
    probability = open_probability(probability, organs=1)
    q = probability.as_tensor().detach()[0]
    mean = predicted_mean(q, minimum=minimum, epsilon=epsilon)
    if mean is None:
        return None
    affine = probability.affine.to(dtype=torch.float64, device="cpu")
    mean_mm = to_world(affine, mean)
    # Where Q is ε there is no evidence: the correlation needs the rest of the volume alone.
    evidence = evidence_for(q, epsilon)
    seen = seen_box(evidence)
    first = torch.tensor(seen.start)
    evidence = evidence[tuple(slice(a, b) for a, b in zip(*seen, strict=True))]
    kernel = around_center(reference, affine, device=evidence.device).to(evidence)
    if max_shift_mm is None:
        box = _promising_box(evidence, kernel, cells_of(affine))
    else:
        nearest = _nearest_voxel(affine, mean)
        limit = max(max_shift_mm, float((to_world(affine, nearest) - mean_mm).norm()))
        limit *= 1 + 1e-9
        reach = torch.linalg.inv(affine[:3, :3]).norm(dim=1) * limit
        box = _box_around(mean, reach, nearest, first)
    score = scores_in(evidence, kernel, box)
    # Rounding, which follows the greatest score, must neither choose among equals nor move a limit.
    slack = 1e-9 * score.abs().max()
    first = first + torch.tensor(box.start)
    if max_shift_mm is not None:
        distance = _distance_mm(score.shape, first, affine, mean_mm)
        score = score.masked_fill((distance > limit).to(score.device), -math.inf)
    candidates = torch.nonzero(score >= score.max() - slack).cpu() + first
    points = to_world(affine, candidates.double())
    return points[(points - mean_mm).norm(dim=-1).argmin()]


def measure_position(label: Label, prior: SpatialPrior) -> torch.Tensor:
    """World point of an organ's centre in a label map, as the prior defines the centre.

    Args:
        label: label map, ``(1, W, H, D)`` or ``(W, H, D)``, or a NIfTI file of one.
        prior: its ``organ`` and ``center`` say what is measured. The group-wise centre is where
            the organ overlaps most with the prior.

    Returns:
        ``(3,)`` float64, RAS mm.

    Raises:
        PositionError: the map does not contain the organ.
        DatasetError: the map cannot be read, is not 3D or has no invertible affine.
    """
    if prior.center != "groupwise":
        return organ_position(label, organ=prior.organ, center=prior.center)
    mask, affine = organ_crop(label, prior.organ)
    organ = MetaTensor(torch.from_numpy(mask)[None].float(), affine=torch.from_numpy(affine))
    point = locate_organ(organ, prior)
    assert point is not None
    return point


def check_search(*, minimum: float, epsilon: float, max_shift_mm: float | None) -> None:
    """Raise :class:`PositionError` where an option of a search is out of range."""
    if not 0 < epsilon < 0.5:
        raise PositionError(f"`epsilon` must lie in (0, 0.5), got {epsilon}.")
    if max_shift_mm is not None and not max_shift_mm > 0:
        raise PositionError(f"`max_shift_mm` must be positive or None, got {max_shift_mm}.")
    if not 0 <= minimum <= 1:
        raise PositionError(f"`minimum` must be a probability in [0, 1], got {minimum}.")


def open_probability(probability: Volume, *, organs: int) -> MetaTensor:
    """A map of so many organs, of a file without its background; or :class:`PositionError`."""
    opened = open_without_background(probability, organs=organs)
    check_probability(opened, organs=organs)
    return opened


def open_without_background(volume: Volume, *, organs: int) -> MetaTensor:
    """A volume, of a file with a channel more than organs without the first."""
    opened = open_volume(volume)
    if opened is volume or len(opened) != organs + 1:
        return opened
    organ_channels: MetaTensor = opened[1:]
    return organ_channels


def check_probability(probability: MetaTensor, *, organs: int) -> None:
    """Raise :class:`PositionError` unless this is a probability map of so many organs."""
    if not isinstance(probability, MetaTensor):
        raise PositionError(
            "`probability` must be a MetaTensor, whose affine says where it lies, got "
            f"{type(probability)}."
        )
    if probability.ndim != 4 or probability.shape[0] != organs:
        what = "one organ's map with the axes 1" if organs == 1 else f"a map of axes {organs}"
        raise PositionError(
            f"`probability` must be {what} W H D, got the shape {tuple(probability.shape)}."
        )
    if leads_to_lps(probability):
        raise PositionError(
            f"`probability` must have an affine to RAS mm, got one to LPS: {RAS_REMEDY}."
        )
    if not is_invertible(probability.affine.cpu()):
        raise PositionError(
            "`probability` must have an invertible 4 × 4 affine, got "
            f"{probability.affine.tolist()}: correct the scan's header."
        )
    low, high = (float(v) for v in probability.as_tensor().detach().aminmax())
    if not (low >= 0 and high <= 1 + ROUNDING):
        raise PositionError(
            f"`probability` must lie in [0, 1], got [{low:g}, {high:g}]: apply softmax or sigmoid "
            "to logits first."
        )


def evidence_for(q: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``logit Q − logit ε`` of a map ``(W, H, D)``, from 0 to ``−2 logit ε``; at least float32."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    # In place, because a CT's map takes a quarter of a gigabyte.
    logit = q.to(dtype).logit(eps=epsilon)
    return logit.sub_(math.log(epsilon / (1 - epsilon))).clamp_(min=0)


def predicted_mean(q: torch.Tensor, *, minimum: float, epsilon: float) -> torch.Tensor | None:
    """Voxel index ``(3,)`` float64 of the centre of mass of what is predicted, if anything is."""
    predicted = (q >= minimum) & (q > epsilon)
    if not bool(predicted.any()):
        return None
    # Two passes over the volume: the second axis and the third are counted in one.
    plane = predicted.sum(0, dtype=torch.int32).double().cpu()
    counts = predicted.sum((1, 2), dtype=torch.int32).double().cpu(), plane.sum(1), plane.sum(0)
    return torch.stack([(n * torch.arange(len(n))).sum() / n.sum() for n in counts])


def around_center(
    reference: SpatialPrior, affine: torch.Tensor, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The reference on the axes of a grid, its centre on the middle voxel of odd lengths.

    Args:
        reference: the organ around its centre.
        affine: ``(4, 4)`` float64 on the CPU, of the grid.
        device: where it is sampled and lies.

    Returns:
        ``(w, h, d)`` float32.
    """
    half_box = torch.tensor(reference.size_mm, dtype=torch.float64) / 2
    to_voxel = torch.linalg.inv(affine[:3, :3])
    reach = (to_voxel.abs() @ half_box).ceil().long()
    centered = affine.clone()
    centered[:3, 3] = -affine[:3, :3] @ reach.double()
    # One number, expanded: a grid has no memory of its own.
    like = torch.empty(1, device=device).expand(1, *(2 * reach + 1).tolist())
    grid = MetaTensor(like, affine=centered)
    return reference.place((0.0, 0.0, 0.0), grid).as_tensor()[0]


def cells_of(affine: torch.Tensor, size_mm: float | None = None) -> tuple[int, int, int]:
    """Voxels along each axis of a cell of about this size, or of :data:`CELL_MM`."""
    size_mm = CELL_MM if size_mm is None else size_mm
    w, h, d = (max(1, round(size_mm / float(s))) for s in affine[:3, :3].norm(dim=0))
    return w, h, d


def to_world(affine: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """World points, RAS mm, of voxel indices ``(…, 3)``."""
    return index @ affine[:3, :3].T + affine[:3, 3]


def _promising_box(evidence: torch.Tensor, kernel: torch.Tensor, cells: Sequence[int]) -> Box:
    box = promising(evidence, kernel, cells)
    if math.prod(b - a for a, b in zip(*box, strict=True)) > _LARGE_BOX:
        halves = [max(1, f // 2) for f in cells]
        box = promising(evidence, kernel, halves, within=box)
    return box


def _box_around(
    mean: torch.Tensor, reach: torch.Tensor, nearest: torch.Tensor, first: torch.Tensor
) -> Box:
    """Voxels within reach of the mean, and the one nearest to it, counted from the first."""
    low = torch.minimum((mean - reach).ceil(), nearest).long() - first
    high = torch.maximum((mean + reach).floor(), nearest).long() - first + 1
    return Box(tuple(low.tolist()), tuple(high.tolist()))


def _nearest_voxel(affine: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The voxel whose centre lies nearest in mm, which in an oblique grid rounding may miss."""
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2, dtype=torch.float64)] * 3)
    near = index.round() + offsets
    return near[((near - index) @ affine[:3, :3].T).norm(dim=1).argmin()]


def _distance_mm(
    shape: Sequence[int], first: torch.Tensor, affine: torch.Tensor, point: torch.Tensor
) -> torch.Tensor:
    ranges = [torch.arange(n, dtype=torch.float64) + f for n, f in zip(shape, first, strict=True)]
    grid = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1)
    return (to_world(affine, grid) - point).norm(dim=-1)
