"""Array transforms: the functions of the lower floors as MONAI transforms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import RandomizableTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, ensure_tuple, ensure_tuple_rep

from stipple_monai.errors import PositionError, PriorError
from stipple_monai.label_values import IGNORED
from stipple_monai.positioning import measure_position
from stipple_monai.priors import Mode, SpatialPrior, known_mode, own_cases
from stipple_monai.pseudo_labels import select_certain, select_top_k

_TORCH = [TransformBackends.TORCH]
_NUMPY = [TransformBackends.NUMPY]


class OrganPosition(Transform):
    """Positions of the organs in a whole label map.

    Args:
        priors: one per organ; their ``organ`` and ``center`` say what is looked for.
        leave_one_out: measure group-wise centres with the priors of the *other* labels where
            the map is one of those that a prior was made of. An organ for which no label is left
            has no position.
    """

    backend = _NUMPY

    def __init__(self, priors: Sequence[SpatialPrior], *, leave_one_out: bool = False) -> None:
        self.priors = _with_cases(priors) if leave_one_out else _several(priors)
        self.leave_one_out = leave_one_out

    def __call__(self, label: MetaTensor, left_out: NdarrayOrTensor | None = None) -> torch.Tensor:
        """Measure ``label`` ``(1, W, H, D)``.

        Args:
            label: the whole map.
            left_out: what :class:`OwnCases` finds in it; found here where ``None``, if asked for.

        Returns:
            ``(K, 3)`` float64, RAS mm; NaN for an organ that is not there, with a warning, or
            for which no other label is left.
        """
        if left_out is None and self.leave_one_out:
            left_out = OwnCases(self.priors)(label)
        positions = []
        for k, prior in enumerate(self.priors):
            without = _numbers(left_out, k)
            point = torch.full((3,), torch.nan, dtype=torch.float64)
            if len(without) < prior.case_count:
                try:
                    others = prior.leave_out(without) if without else prior
                    point = measure_position(label, others)
                except PositionError as error:
                    warnings.warn(f"{error} Its prior stays neutral.", stacklevel=2)
            positions.append(point)
        return torch.stack(positions)


class OwnCases(Transform):
    """Of the cases that priors were made of, those that are this label map.

    Args:
        priors: one per organ, with their cases (see :meth:`SpatialPrior.load`).
    """

    backend = _NUMPY

    def __init__(self, priors: Sequence[SpatialPrior]) -> None:
        self.priors = _with_cases(priors)

    def __call__(self, label: MetaTensor) -> torch.Tensor:
        """Look for ``label`` ``(1, W, H, D)``, see :func:`~stipple_monai.priors.own_cases`.

        Returns:
            ``(K, N)`` bool, ``N`` the greatest number of cases of a prior.
        """
        own = torch.zeros(len(self.priors), max(p.case_count for p in self.priors)).bool()
        for k, prior in enumerate(self.priors):
            own[k, own_cases(label, prior)] = True
        return own


class PriorAlign(Transform):
    """Place the priors of K organs on the grid of an image.

    Args:
        priors: one per organ, in the order of the network's channels.
        mode: along z, see :meth:`SpatialPrior.place`.
        activation: where a position is unknown, a prior that goes into a softmax takes an equal
            share with the background of what the other organs leave (1 / (K + 1) if none is
            known), and one that goes into a sigmoid is 0.5.

    Example:
        >>> prior = SpatialPrior(torch.ones(2, 2, 2), spacing_mm=(1, 1, 1))
        >>> image = MetaTensor(torch.zeros(1, 4, 4, 1), affine=torch.eye(4))
        >>> PriorAlign([prior])(image, [[1.5, 1.5, 0]])[0, :, :, 0].as_tensor()
        tensor([[0., 0., 0., 0.],
                [0., 1., 1., 0.],
                [0., 1., 1., 0.],
                [0., 0., 0., 0.]])
    """

    backend = _TORCH

    def __init__(
        self,
        priors: Sequence[SpatialPrior],
        *,
        mode: Mode = "auto",
        activation: Literal["softmax", "sigmoid"] = "softmax",
    ) -> None:
        self.priors = _several(priors)
        if activation not in ("softmax", "sigmoid"):
            raise PriorError(f"`activation` must be 'softmax' or 'sigmoid', got {activation!r}.")
        self.mode: Mode = known_mode(mode)
        self.activation = activation

    def __call__(
        self,
        image: MetaTensor,
        positions_mm: NdarrayOrTensor,
        left_out: NdarrayOrTensor | None = None,
    ) -> torch.Tensor:
        """Place the priors.

        Args:
            image: ``(C, W, H, D)`` with an affine; a slice keeps its third axis.
            positions_mm: ``(K, 3)``, RAS mm; NaN where unknown.
            left_out: ``(K, N)`` bool, cases that are left out of the priors, see
                :class:`OwnCases`. With all of an organ's left out, nothing is known of it.

        Returns:
            ``(K, W, H, D)`` float32, a MetaTensor with the affine of ``image`` (a plain tensor
            where MONAI does not track metadata).

        Raises:
            PositionError: ``positions_mm`` has another shape.
            PriorError: ``image`` has no usable grid, or one that lazy operations will change.
        """
        if not isinstance(image, MetaTensor) or image.ndim != 4:
            raise PriorError(
                "`image` must be a MetaTensor C W H D, whose affine says where it lies, got "
                f"{type(image).__name__} {tuple(image.shape)}: keep MONAI's metadata, and a slice "
                "as W × H × 1."
            )
        if image.has_pending_operations:
            raise PriorError(
                "`image` must have the grid that the network will see, got one with lazy "
                f"operations pending ({len(image.pending_operations)}): put them and this "
                "transform into one Compose, which applies them first."
            )
        positions = as_positions(positions_mm)
        if len(positions) != len(self.priors):
            raise PositionError(
                f"`positions_mm` must be ({len(self.priors)}, 3), a point for each prior, got "
                f"the shape {tuple(positions.shape)}."
            )
        without = [_numbers(left_out, k) for k in range(len(self.priors))]
        some = [len(w) < p.case_count for w, p in zip(without, self.priors, strict=True)]
        known = torch.isfinite(positions).all(dim=1) & torch.tensor(some)
        placed = torch.zeros((len(self.priors), *image.shape[1:]), device=image.device)
        for k in torch.nonzero(known).flatten().tolist():
            options: dict[str, Any] = {"mode": self.mode, "without": without[k]}
            placed[k] = self.priors[k].place(positions[k], image, **options).as_tensor()[0]
        if not bool(known.all()):
            if self.activation == "sigmoid":
                placed[~known] = 0.5
            else:
                rest = (1 - placed.sum(0)).clamp(min=0)
                placed[~known] = rest / (1 + int((~known).sum()))
        return MetaTensor(placed, affine=image.affine) if get_track_meta() else placed


class PriorAugment(RandomizableTransform):
    """Shake positions as imperfect positioning does, and sometimes forget them.

    Works on positions, so that no prior is copied or resampled for it.

    Args:
        translation_mm: greatest shift along R, A and S (or one number for all); each organ is
            shifted by itself, uniformly.
        dropout: probability of forgetting all positions of a sample, which makes its prior
            neutral. A network that has seen this still works where no position is found. It cost
            Dice with 2D networks, see docs/decisions.md.
        prob: probability of the shift.
    """

    backend = _NUMPY

    def __init__(
        self,
        translation_mm: float | Sequence[float],
        *,
        dropout: float = 0.0,
        prob: float = 1.0,
    ) -> None:
        if not 0 <= prob <= 1:
            raise PositionError(f"`prob` must be a probability in [0, 1], got {prob}.")
        RandomizableTransform.__init__(self, prob)
        self.translation_mm = ensure_tuple_rep(translation_mm, 3)
        if not all(0 <= t < float("inf") for t in self.translation_mm):
            raise PositionError(
                "`translation_mm` must be finite and at least 0 along each axis, got "
                f"{translation_mm}."
            )
        if not 0 <= dropout <= 1:
            raise PositionError(f"`dropout` must be a probability in [0, 1], got {dropout}.")
        self.dropout = dropout
        self._shift_mm = np.zeros((0, 3))
        self._forget = False

    def randomize(self, data: int) -> None:
        """Draw for ``data`` organs."""
        super().randomize(None)
        limits = np.array(self.translation_mm)
        self._shift_mm = self.R.uniform(-limits, limits, size=(data, 3))
        self._forget = bool(self.R.rand() < self.dropout)

    def __call__(self, positions_mm: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Give ``(K, 3)`` new positions; the old ones stay as they are.

        Returns:
            float64, NumPy for NumPy, else a tensor.

        Raises:
            PositionError: ``positions_mm`` has another shape.
        """
        positions = as_positions(positions_mm)
        if randomize:
            self.randomize(len(positions))
        if self._do_transform:
            positions += torch.from_numpy(self._shift_mm)
        if self._forget:
            positions[:] = torch.nan
        if not isinstance(positions_mm, np.ndarray | torch.Tensor):
            return positions
        return convert_to_dst_type(positions, positions_mm, dtype=torch.float64)[0]


class SelectPseudoLabels(Transform):
    """Make a partly labelled map of a prediction.

    Args:
        rule: ``"top_k"``, see :func:`select_top_k`, or ``"certain"``, see :func:`select_certain`.
        share, count: as in :func:`select_top_k`; the other rule has none.
        minimum, background_minimum, components, ignore: as in both; None: the rule's own.

    Raises:
        ValueError: ``rule`` is unknown, or has no such option.
    """

    backend = _TORCH

    def __init__(
        self,
        rule: Literal["top_k", "certain"] = "top_k",
        *,
        share: float | Sequence[float] | None = None,
        count: int | Sequence[int] | None = None,
        minimum: float = 0.0,
        background_minimum: float | None = None,
        components: int | None = None,
        ignore: int = IGNORED,
    ) -> None:
        if rule not in ("top_k", "certain"):
            raise ValueError(f"`rule` must be 'top_k' or 'certain', got {rule!r}.")
        amounts = {"share": share, "count": count}
        if rule == "certain" and amounts != {"share": None, "count": None}:
            raise ValueError(
                f"`share` and `count` must be None with the rule 'certain', got {share} and "
                f"{count}: they belong to 'top_k'."
            )
        self.select = select_certain if rule == "certain" else select_top_k
        least = {} if background_minimum is None else {"background_minimum": background_minimum}
        self.options: dict[str, Any] = {
            **({} if rule == "certain" else amounts),
            **least,
            "minimum": minimum,
            "components": components,
            "ignore": ignore,
        }

    def __call__(self, probability: NdarrayOrTensor) -> NdarrayOrTensor:
        """Select from ``(C, *spatial)``; returns uint8 ``(1, *spatial)`` of the same type."""
        label = self.select(torch.as_tensor(probability), **self.options)
        return convert_to_dst_type(label, probability, dtype=torch.uint8)[0]


def as_positions(positions_mm: Any) -> torch.Tensor:
    """Give positions as a new ``(K, 3)`` float64 tensor on the CPU; a datalist's null becomes NaN.

    Raises:
        PositionError: they are not K points.
    """
    try:
        if isinstance(positions_mm, torch.Tensor):
            positions_mm = positions_mm.detach().cpu().numpy()
        points = np.array(positions_mm, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 3:
        raise PositionError(
            "`positions_mm` must be (K, 3), a point in RAS mm for each organ (a single one too), "
            f"got {positions_mm}."
        )
    return torch.from_numpy(points)


def _several(priors: Sequence[SpatialPrior]) -> tuple[SpatialPrior, ...]:
    several: tuple[SpatialPrior, ...] = ensure_tuple(priors)
    if not several or not all(isinstance(p, SpatialPrior) for p in several):
        raise PriorError(
            f"`priors` must be one SpatialPrior or more, got {priors}: load each with "
            "`SpatialPrior.load(path)`."
        )
    return several


def _with_cases(priors: Sequence[SpatialPrior]) -> tuple[SpatialPrior, ...]:
    several = _several(priors)
    for prior in several:
        prior.known_cases()
    return several


def _numbers(left_out: NdarrayOrTensor | None, k: int) -> list[int]:
    """Numbers of the cases that are left out of prior ``k``."""
    if left_out is None:
        return []
    numbers: list[int] = torch.nonzero(torch.as_tensor(left_out)[k]).flatten().tolist()
    return numbers
