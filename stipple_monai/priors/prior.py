"""The spatial prior of one organ (algorithm 1 and equation 1 of Petit et al. 2022).

Space
    World coordinates in mm, RAS+ (see `stipple_monai.priors.organ`). A prior's axes ``W_p H_p B``
    lie along R, A and S.
Position
    The world point of an organ's centre in one scan. A prior has no position of its own: its
    centre is the origin, and :meth:`SpatialPrior.place` moves it to a position.
Bin
    One of the ``B`` equal parts of the organ's greatest depth ``Δz``. Bins *are* the voxels of
    the prior along z, ``Δz / B`` mm tall.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from stipple_monai.errors import PositionError, PriorError
from stipple_monai.priors.alignment import mean_offsets
from stipple_monai.priors.histogram import OrganHistogram, count_labels
from stipple_monai.priors.organ import Center, Label, is_invertible, known_center, world_point
from stipple_monai.priors.prior_file import read_prior, write_prior
from stipple_monai.spatial import sample_on_grid

# wider than any organ: a blur of a metre would take minutes and say nothing
_MOST_SMOOTHING_MM = 100.0


class SpatialPrior:
    """How often an organ was found at each place around its centre.

    Args:
        probability: ``(W_p, H_p, B)``, frequencies in [0, 1].
        spacing_mm: size of a voxel of ``probability`` along R, A and S; the last is the height
            of a bin.
        organ: label value of the organ.
        case_count: number of label maps that the prior was estimated from.
        center: what the organ's centre is, see :meth:`estimate`.
        offset_mm: the mean position of this organ relative to the mean of all organs that were
            estimated with it, RAS mm; ``None`` if there were no others.

    Raises:
        PriorError: ``probability`` is not a finite 3D array in [0, 1], ``spacing_mm`` is not
            three positive lengths, or ``offset_mm`` is not three finite numbers.

    Example:
        >>> prior = SpatialPrior(torch.ones(4, 4, 2), spacing_mm=(1, 1, 10), organ=1)
        >>> scan = MetaTensor(torch.zeros(1, 8, 8, 30), affine=torch.eye(4))
        >>> placed = prior.place((3.5, 3.5, 9.5), scan)
        >>> placed.shape, int(placed.sum())
        (torch.Size([1, 8, 8, 30]), 320)
    """

    def __init__(
        self,
        probability: torch.Tensor | NDArray[Any],
        *,
        spacing_mm: Sequence[float],
        organ: int = 1,
        case_count: int = 1,
        center: Center = "bbox",
        offset_mm: Sequence[float] | None = None,
    ) -> None:
        if torch.as_tensor(probability).is_complex():
            raise PriorError("`probability` must be of real numbers, got complex ones.")
        probability = torch.as_tensor(probability, dtype=torch.float32, device="cpu").detach()
        probability = probability.as_subclass(torch.Tensor)
        if probability.ndim != 3 or probability.numel() == 0:
            raise PriorError(
                f"`probability` must have three axes (W_p, H_p, B), got {tuple(probability.shape)}."
            )
        if not bool(torch.isfinite(probability).all()):
            raise PriorError("`probability` must be finite, got NaN or infinity.")
        low, high = (float(v) for v in probability.aminmax())
        if low < 0 or high > 1:
            raise PriorError(f"`probability` must lie in [0, 1], got [{low:g}, {high:g}].")
        self.probability = probability
        self.spacing_mm = _lengths(spacing_mm)
        self.organ = int(organ)
        if not _is_count(case_count) or case_count < 0:
            raise PriorError(f"`case_count` must be a number of maps, got {case_count}.")
        self.case_count = int(case_count)
        self.center = known_center(center)
        self.offset_mm = None if offset_mm is None else _point(offset_mm)

    @property
    def bins(self) -> int:
        """Number of bins along z, ``B``."""
        return self.probability.shape[2]

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Size of the box along R, A and S, the largest extent of the organ that was seen."""
        w, h, b = (n * s for n, s in zip(self.probability.shape, self.spacing_mm, strict=True))
        return w, h, b

    def __repr__(self) -> str:
        """What it is of, its grid and of how many cases, in a line."""
        w, h, b = self.probability.shape
        sizes = " × ".join(f"{s:.4g}" for s in self.spacing_mm)
        return (
            f"SpatialPrior(organ {self.organ}: {w} × {h} × {b} voxels of {sizes} mm, "
            f"{self.case_count} case{'s' * (self.case_count != 1)}, center {self.center!r})"
        )

    @classmethod
    def estimate(
        cls,
        labels: Iterable[Label] | Label,
        *,
        organ: int = 1,
        bins: int | None = 5,
        spacing_mm: Sequence[float] | None = None,
        center: Center = "bbox",
        smoothing: float = 0.0,
        num_workers: int = 1,
    ) -> SpatialPrior:
        """Estimate the prior of an organ from label maps (algorithm 1, equation 1).

        Every map is read once, piece by piece, and forgotten, except for some tens of kilobytes:
        the organ's voxels, compressed. Memory is that of the organ's box. Maps of any orientation
        or obliquity are sampled on RAS axes around the organ's centre. An organ whose extent is of
        the same parity (in voxels) as the largest is counted voxel by voxel; the centre of any
        other lies half a voxel off, and linear interpolation puts it right. What lies outside a
        map's field of view counts as background.

        Args:
            labels: label maps, ``(1, W, H, D)`` or ``(W, H, D)``, or NIfTI files of such; or one.
            organ: label value of the organ.
            bins: ``B``; ``None`` keeps every slice (``B = Δz``, no discretisation).
            spacing_mm: grid of the prior along R, A and S before binning; the first map's own
                where ``None``.
            center: ``"bbox"``, the middle of the organ's bounding box (algorithm 1); ``"mass"``,
                the mean of its voxels; or ``"groupwise"``, where all the maps' organs overlap
                most (`stipple_monai.priors.alignment`), which gives a sharper prior and a centre
                that is found again in a prediction.
            smoothing: standard deviation in mm of a Gaussian blur in the axial plane; the box
                grows by three of them. 0 is the paper's plain histogram.
            num_workers: number of maps that are read at once, each on a thread of its own; the
                result does not depend on it. 0 and 1 work in the calling thread.

        Returns:
            The prior. A slice belongs to the bin that its centre falls in, so that bins may hold
            different numbers of slices; a bin too thin to hold any takes the slice that contains
            its centre.

        Raises:
            PriorError: no map contains the organ, or an argument is out of range.
            DatasetError: a map cannot be read or is not 3D.
        """
        (prior,) = cls.estimate_several(
            labels,
            organs=[organ],
            bins=bins,
            spacing_mm=spacing_mm,
            center=center,
            smoothing=smoothing,
            num_workers=num_workers,
        )
        return prior

    @classmethod
    def estimate_several(
        cls,
        labels: Iterable[Label] | Label,
        *,
        organs: Sequence[int],
        bins: int | None = 5,
        spacing_mm: Sequence[float] | None = None,
        center: Center = "bbox",
        smoothing: float = 0.0,
        num_workers: int = 1,
    ) -> list[SpatialPrior]:
        """Estimate the priors of several organs, reading every map once, see :meth:`estimate`.

        Organs that maps have in common also get their offsets, with which they can be positioned
        together.

        Returns:
            The priors in the order of ``organs``.
        """
        if bins is not None and (not _is_count(bins) or bins < 1):
            raise PriorError(f"`bins` must be a whole number of at least 1, got {bins}.")
        if not 0 <= smoothing <= _MOST_SMOOTHING_MM:
            raise PriorError(
                f"`smoothing` must be a length from 0 to {_MOST_SMOOTHING_MM:g} mm, got "
                f"{smoothing}."
            )
        if num_workers < 0:
            raise PriorError(f"`num_workers` must be at least 0, got {num_workers}.")
        spacing = None if spacing_mm is None else np.array(_lengths(spacing_mm))
        histograms = [OrganHistogram(k, known_center(center), spacing) for k in organs]
        if isinstance(labels, MetaTensor | str | os.PathLike):
            labels = [labels]
        count_labels(labels, histograms, num_workers=num_workers)
        offsets = mean_offsets([histogram.centers_mm for histogram in histograms])
        priors = []
        for histogram, offset in zip(histograms, offsets, strict=True):
            probability, voxel_mm = histogram.in_bins(bins, smoothing, num_workers=num_workers)
            priors.append(
                cls(
                    probability,
                    spacing_mm=voxel_mm.tolist(),
                    organ=histogram.organ,
                    case_count=len(histogram.centers_mm),
                    center=center,
                    offset_mm=offset,
                )
            )
        return priors

    def place(
        self,
        position_mm: Sequence[float] | torch.Tensor,
        like: MetaTensor,
        *,
        mode: Literal["nearest", "linear"] = "nearest",
    ) -> MetaTensor:
        """Sample the prior, its centre moved to ``position_mm``, on another image's grid.

        Args:
            position_mm: world point of the organ's centre, RAS mm.
            like: the image that gives the grid, ``(C, W, H, D)`` with any invertible affine; a
                slice keeps its third axis (``D`` = 1).
            mode: along z, ``"nearest"`` is the histogram of the paper, ``"linear"`` interpolates
                between the centres of bins. In the plane it is always linear.

        Returns:
            ``(1, W, H, D)`` float32 on the device of ``like``; zero outside the prior's box.

        Raises:
            PositionError: ``position_mm`` is not three finite numbers.
            PriorError: ``like`` has no usable grid, or ``mode`` is unknown.
        """
        if mode not in ("nearest", "linear"):
            raise PriorError(f"`mode` must be 'nearest' or 'linear', got {mode!r}.")
        affine = _grid_affine(like)
        placed = sample_on_grid(
            self.probability.to(like.device),
            spacing_mm=self.spacing_mm,
            center_mm=world_point(position_mm),
            affine=affine,
            shape=like.shape[1:],
            nearest_along_z=mode == "nearest",
        )
        return MetaTensor(placed.clamp(max=1)[None], affine=affine)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prior as NIfTI (float32, RAS mm, the organ's centre at the origin).

        What :meth:`load` needs besides the image stands as JSON in a header extension.

        Args:
            path: ``….nii`` or ``….nii.gz``; replaced in one step, never half-written.

        Raises:
            PriorError: ``path`` has another ending.
        """
        write_prior(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SpatialPrior:
        """Read a prior that :meth:`save` wrote.

        Raises:
            PriorError: the file is missing, truncated, not NIfTI or not a prior, or was written
                by a newer version.
        """
        return read_prior(path, cls)


def _grid_affine(like: MetaTensor) -> torch.Tensor:
    if not isinstance(like, MetaTensor):
        raise PriorError(
            f"`like` must be a MetaTensor, whose affine says where it lies, got {type(like)}."
        )
    if like.ndim != 4:
        raise PriorError(
            f"`like` must have the axes C W H D, got the shape {tuple(like.shape)}; keep a slice "
            "as W × H × 1 and squeeze it after the prior is placed."
        )
    affine = like.affine.to(dtype=torch.float64, device="cpu")
    if not is_invertible(affine):
        raise PriorError(f"`like` must have an invertible 4 × 4 affine, got {affine.tolist()}.")
    return affine


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _lengths(spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    values = [float(s) for s in spacing_mm]
    if len(values) != 3 or not all(0 < v < float("inf") for v in values):
        raise PriorError(f"`spacing_mm` must be three positive lengths, got {values}.")
    return values[0], values[1], values[2]


def _point(offset_mm: Sequence[float]) -> tuple[float, float, float]:
    try:
        r, a, s = world_point(offset_mm).tolist()
    except PositionError:
        raise PriorError(
            f"`offset_mm` must be three finite numbers (RAS mm) or None, got {offset_mm}."
        ) from None
    return r, a, s
