"""Whether a volume's axes are what its header says.

Mirrored labels and mislabelled axes leave no trace in the numbers, and a network trained on them
learns them. The organs' priors know which way is up: if the volume fits them better with other
axes than its header gives, the header is probably wrong.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import nibabel as nib
import torch
from monai.data import MetaTensor

from stipple_monai.errors import PositionError
from stipple_monai.label_values import whole_tensor
from stipple_monai.positioning.joint import (
    DEFAULT_SPREAD_MM,
    coarse_affine,
    coarse_evidence,
    positioned_together,
    supported_shares,
)
from stipple_monai.positioning.single import (
    DEFAULT_EPSILON,
    ROUNDING,
    cells_of,
    check_probability,
    open_without_background,
)
from stipple_monai.positioning.star import best_together
from stipple_monai.priors import SpatialPrior, Volume, open_volume

DEFAULT_MARGIN = 0.1


class Orientation(NamedTuple):
    """What :func:`check_orientation` found.

    Attributes:
        header: axis codes of the volume's first, second and third array axis, as its affine has
            them, such as ``"LAS"``.
        best: axis codes with which it fits the priors best; those of the header unless others
            are better by the margin.
        fit: for each set of axis codes that was tried, the mean share of an organ's prior that
            the volume supports at the best positions, in [0, 1].
    """

    header: str
    best: str
    fit: dict[str, float]

    @property
    def agrees(self) -> bool:
        """Whether no other axes are better than the header's by the margin."""
        return self.best == self.header


def check_orientation(
    volume: Volume,
    priors: Sequence[SpatialPrior],
    *,
    predict: Callable[[MetaTensor], MetaTensor] | None = None,
    permutations: bool = False,
    margin: float = DEFAULT_MARGIN,
) -> Orientation:
    """Tell whether a flipped or rotated volume would fit the priors better.

    Args:
        volume: a label map ``(1, W, H, D)`` of integers, a prediction ``(K, W, H, D)`` of
            probabilities in [0, 1], or with ``predict`` a scan ``(C, W, H, D)``; or a NIfTI file
            of such. Of a file with K + 1 channels, which are along the fourth axis, the first is
            the background.
        priors: one per organ, the more the surer: a single organ is nearly symmetric along some
            axes.
        predict: gives the prediction ``(K, W, H, D)`` for a scan; it is called with the scan's
            voxels under each set of axis codes, and has to bring them into the network's
            orientation itself (``Orientationd``).
        permutations: also try exchanged axes, 48 sets of axis codes instead of 8.
        margin: by how much more than the header's axes, relative to them, others have to fit.

    Returns:
        What was found. Where the header is not the best, a warning names the axes.

    Raises:
        PositionError: ``volume`` is not what it must be, none of the organs is in it or is
            predicted, or ``margin`` is negative.
        DatasetError: the file cannot be read, or a label map has other than whole numbers.

    Example:
        >>> organs = torch.zeros(1, 30, 20, 20)
        >>> organs[0, 4:9, 8:13, 8:13], organs[0, 20:25, 2:13, 8:13] = 1, 2
        >>> label = MetaTensor(organs, affine=torch.eye(4))
        >>> priors = SpatialPrior.estimate_several(label, organs=[1, 2])
        >>> check_orientation(label, priors).agrees
        True
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     check_orientation(MetaTensor(organs.flip(1), affine=torch.eye(4)), priors).best
        'LAS'
    """
    if not margin >= 0:
        raise PositionError(f"`margin` must be at least 0, got {margin}.")
    opened = open_volume if predict else partial(open_without_background, organs=len(priors))
    volume = opened(volume)
    if not isinstance(volume, MetaTensor) or volume.ndim != 4:
        raise PositionError(
            "`volume` must be a MetaTensor C W H D, whose affine says where it lies, got "
            f"{type(volume).__name__} {tuple(getattr(volume, 'shape', ()))}."
        )
    fit = _fits(volume, priors, predict, permutations=permutations)
    header = next(iter(fit))
    best = max(fit, key=lambda codes: fit[codes])
    if not fit[best] > 0:
        raise PositionError(_nothing(volume, priors, predicted=predict is not None))
    if fit[best] <= fit[header] * (1 + margin):
        return Orientation(header, header, fit)
    name = volume.meta.get("filename_or_obj", "The volume")
    warnings.warn(
        f"{name} fits the priors better with the axes {best} ({fit[best]:.2f}) than with its "
        f"header's {header} ({fit[header]:.2f}): {_difference(header, best)}. Look at it, and "
        "correct the header or flip the voxels.",
        stacklevel=2,
    )
    return Orientation(header, best, fit)


def _fits(
    volume: MetaTensor,
    priors: Sequence[SpatialPrior],
    predict: Callable[[MetaTensor], MetaTensor] | None,
    *,
    permutations: bool,
) -> dict[str, float]:
    """How well the volume fits the priors with each set of axis codes, its header's first."""
    affine = volume.affine.to(dtype=torch.float64, device="cpu")
    fit_of = None if predict else _fit_of(_organs(volume, priors), priors)
    fit: dict[str, float] = {}
    for world in _relabelings(permutations=permutations):
        relabeled = world @ affine
        if predict is not None:
            prediction = predict(MetaTensor(volume.as_tensor(), affine=relabeled))
            fit_of = _fit_of(prediction, priors)
            fit[_codes(relabeled)] = fit_of(prediction.affine)
        elif fit_of is not None:
            fit[_codes(relabeled)] = fit_of(relabeled)
    return fit


def _organs(volume: MetaTensor, priors: Sequence[SpatialPrior]) -> MetaTensor:
    """A prediction as it is; of a label map the organs, one channel each."""
    values = volume.as_tensor().detach()
    several = len(priors) > 1 or bool(values.max() > 1 + ROUNDING)
    if len(values) == 1 and several:
        whole = whole_tensor(values, _name(volume))
        values = torch.cat([(whole == prior.organ).float() for prior in priors])
    return MetaTensor(values, affine=volume.affine)


def _name(volume: MetaTensor) -> str:
    return str(volume.meta.get("filename_or_obj", "the volume"))


def _nothing(volume: MetaTensor, priors: Sequence[SpatialPrior], *, predicted: bool) -> str:
    """What to say of a volume that has nothing to judge its axes by."""
    organs = f"one of the organs of the priors ({', '.join(str(p.organ) for p in priors)})"
    if predicted:
        return (
            f"`predict` must find {organs} in {_name(volume)}, got none under any axes: judge the "
            "axes of a scan that has them."
        )
    return (
        f"`volume` must have {organs}, got none in {_name(volume)}: label values of both must be "
        "the same."
    )


def _fit_of(organs: MetaTensor, priors: Sequence[SpatialPrior]) -> Callable[[torch.Tensor], float]:
    """How well a prediction fits the priors, as a function of its affine."""
    check_probability(organs, organs=len(priors))
    together = positioned_together(priors)
    cells = cells_of(organs.affine)
    evidence = coarse_evidence(organs.as_tensor().detach(), cells, epsilon=DEFAULT_EPSILON)

    def fit(affine: torch.Tensor) -> float:
        coarse = coarse_affine(affine.to(dtype=torch.float64, device="cpu"), cells)
        shares = supported_shares(evidence, priors, coarse)
        if together:
            return best_together(shares, priors, coarse, DEFAULT_SPREAD_MM).worth / len(priors)
        return sum(float(s.values.max()) for s in shares) / len(priors)

    return fit


def _relabelings(*, permutations: bool) -> list[torch.Tensor]:
    """World axes reversed, and exchanged if asked: the identity first."""
    orders = itertools.permutations(range(3)) if permutations else [(0, 1, 2)]
    matrices = []
    for order in orders:
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = torch.zeros(4, 4, dtype=torch.float64)
            matrix[3, 3] = 1
            for row, (axis, sign) in enumerate(zip(order, signs, strict=True)):
                matrix[row, axis] = sign
            matrices.append(matrix)
    return matrices


def _codes(affine: torch.Tensor) -> str:
    return "".join(nib.aff2axcodes(affine.numpy()))


def _difference(header: str, best: str) -> str:
    names = ("first", "second", "third")
    return ", ".join(
        f"its {name} axis looks like {b}, not {h}"
        for name, h, b in zip(names, header, best, strict=True)
        if h != b
    )
