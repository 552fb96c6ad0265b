"""The spatial prior of one organ, after algorithm 1 and equation 1 of Petit et al. 2022.

Space
    World coordinates in mm, RAS+ (see `stipple_monai.priors.organ`). A prior's axes ``W_p H_p B``
    lie along R, A and S.
Position
    The world point of an organ's centre in one scan. A prior has no position of its own: its
    centre is the origin, and :meth:`SpatialPrior.place` moves it to a position.
Bin
    One of the ``B`` equal parts of the organ's greatest depth ``Δz``. Bins *are* the voxels of
    the prior along z, ``Δz / B`` mm tall.
Density
    A prior without bins, whose labels were blurred by a Gaussian: continuous in all directions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from stipple_monai.errors import PriorError
from stipple_monai.priors.cases import Cases, Volumes
from stipple_monai.priors.estimation import Smoothing, estimate_organs
from stipple_monai.priors.organ import Center, Label, known_center, three_lengths, world_point
from stipple_monai.priors.prior_file import read_prior, write_prior
from stipple_monai.priors.values import (
    Mode,
    check_left_out,
    frequencies,
    known_case_count,
    known_mode,
    known_offset,
    known_organ,
    known_smoothing,
    matching_cases,
)
from stipple_monai.priors.volume import Volume, open_volume
from stipple_monai.spatial import grid_affine, sample_on_grid, touched


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
        offsets_id: which offsets belong together; ``None`` if not known, as in old files.
        from_top_mm: from the middle of the scan's top to the organ's centre, RAS mm, on average,
            see `stipple_monai.spatial.top_middle`; ``None`` where that is not known.
        smoothing_mm: width of a density's Gaussian; 0 for a histogram.
        volumes_ml: of the organ in the label maps, where known.
        log_likelihood: mean over the label maps of the organ's log-likelihood under the prior of
            the others, see `stipple_monai.priors.likelihood`: nats a case at one observation a
            millilitre, above a prior that expects the organ nowhere; ``None`` for one map.
        cases: what each map contributed, with which it can be left out; ``None`` if not kept.

    Raises:
        PriorError: ``probability`` is not a finite 3D array in [0, 1], ``organ`` is not from 1 to
            254, ``spacing_mm`` is not three positive lengths, ``offset_mm`` is not three finite
            numbers, or ``cases`` are not those of the prior.

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
        offsets_id: str | None = None,
        from_top_mm: Sequence[float] | None = None,
        smoothing_mm: float = 0.0,
        volumes_ml: Volumes | None = None,
        log_likelihood: float | None = None,
        cases: Cases | None = None,
    ) -> None:
        self.probability = frequencies(probability)
        self.spacing_mm = three_lengths(spacing_mm)
        self.organ, self.case_count = known_organ(organ), known_case_count(case_count)
        self.center = known_center(center)
        self.offset_mm = known_offset("offset_mm", offset_mm)
        self.offsets_id = None if offsets_id is None else str(offsets_id)
        self.from_top_mm = known_offset("from_top_mm", from_top_mm)
        self.smoothing_mm = known_smoothing(smoothing_mm)
        self.volumes_ml = volumes_ml
        self.log_likelihood = None if log_likelihood is None else float(log_likelihood)
        self.cases = matching_cases(cases, tuple(self.probability.shape))

    def __getstate__(self) -> dict[str, Any]:
        """The map as an array: a tensor's pickle, and so a hash, is another in each process."""
        return vars(self) | {"probability": self.probability.numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As it was."""
        vars(self).update(state, probability=torch.from_numpy(state["probability"].copy()))

    @property
    def bins(self) -> int:
        """Number of voxels along z, ``B``: of a histogram the bins."""
        return self.probability.shape[2]

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Lengths of the box along R, A and S, with the room of a density around the organ."""
        w, h, b = (n * s for n, s in zip(self.probability.shape, self.spacing_mm, strict=True))
        return w, h, b

    def __repr__(self) -> str:
        """What it is of, its grid and of how many cases, in a line."""
        w, h, b = self.probability.shape
        sizes = " × ".join(f"{s:.4g}" for s in self.spacing_mm)
        return (
            f"SpatialPrior(organ {self.organ}: {w} × {h} × {b} voxels of {sizes} mm, "
            f"{self.case_count} case{'s' * (self.case_count != 1)}, center {self.center!r}"
            + (f", Gaussian of {self.smoothing_mm:g} mm)" if self.smoothing_mm else ")")
        )

    @classmethod
    def estimate(
        cls,
        labels: Iterable[Label] | Label,
        *,
        organ: int = 1,
        bins: int | None = None,
        smoothing_mm: Smoothing = "auto",
        spacing_mm: Sequence[float] | None = None,
        center: Center = "bbox",
        num_workers: int = 1,
    ) -> SpatialPrior:
        """Estimate the prior of an organ from label maps.

        A density by default: every label under a Gaussian, its width by how well the others
        foretell each label. With ``bins``, the histogram of the paper (algorithm 1, equation 1).

        Every map is read once, piece by piece, and forgotten, except for some tens of kilobytes:
        the organ's voxels, compressed. Memory is that of the organ's box. Maps of any orientation
        or obliquity are sampled on RAS axes around the organ's centre. In a histogram an organ
        whose extent is of the same parity (in voxels) as the largest is counted voxel by voxel; the
        centre of any other lies half a voxel off, and linear interpolation puts it right. What lies
        outside a map's field of view counts as background.

        Args:
            labels: label maps, ``(1, W, H, D)`` or ``(W, H, D)``, or NIfTI files of such; or one.
            organ: label value of the organ.
            bins: ``B`` of the histogram; ``None`` has none. A slice belongs to the bin that its
                centre falls in, so that bins may hold different numbers of slices; a bin too thin
                to hold any takes the slice that contains its centre.
            smoothing_mm: standard deviation of the Gaussian, the same in all directions; the box
                grows by three of them. ``"auto"`` takes the one of `likelihood.WIDTHS_MM` with the
                highest leave-one-out likelihood, 10 mm for a single label. ``None`` or 0, without
                bins: a histogram with a bin for every slice.
            spacing_mm: grid of the prior along R, A and S, before binning. Where ``None``, cubes
                of 2.5 mm for a density, and the first map's own for a histogram.
            center: ``"bbox"``, the middle of the organ's bounding box (algorithm 1); ``"mass"``,
                the mean of its voxels; or ``"groupwise"``, where all the maps' organs overlap
                most (`stipple_monai.priors.alignment`), which gives a sharper prior and a centre
                that is found again in a prediction.
            num_workers: number of maps that are read at once, each on a thread of its own; the
                result does not depend on it. 0 and 1 work in the calling thread.

        Raises:
            PriorError: no map contains the organ, or an argument is out of range.
            DatasetError: a map cannot be read or is not 3D.
        """
        (prior,) = cls.estimate_several(
            labels,
            organs=[organ],
            bins=bins,
            smoothing_mm=smoothing_mm,
            spacing_mm=spacing_mm,
            center=center,
            num_workers=num_workers,
        )
        return prior

    @classmethod
    def estimate_several(
        cls,
        labels: Iterable[Label] | Label,
        *,
        organs: Sequence[int],
        bins: int | None = None,
        smoothing_mm: Smoothing = "auto",
        spacing_mm: Sequence[float] | None = None,
        center: Center = "bbox",
        num_workers: int = 1,
    ) -> list[SpatialPrior]:
        """Estimate the priors of several organs, reading every map once, see :meth:`estimate`.

        ``organs`` are whole numbers of any kind, each once. Those that maps have in common also get
        their offsets, with which they can be positioned together.

        Returns:
            The priors in the order of ``organs``; with ``smoothing_mm="auto"`` each of its own
            width.
        """
        estimates = estimate_organs(
            labels,
            organs=organs,
            bins=bins,
            smoothing_mm=smoothing_mm,
            spacing_mm=None if spacing_mm is None else np.array(three_lengths(spacing_mm)),
            center=center,
            num_workers=num_workers,
        )
        return [
            cls(
                each.probability,
                spacing_mm=each.cases.spacing_mm,
                organ=each.organ,
                case_count=len(each.cases),
                center=center,
                offset_mm=each.offset_mm,
                offsets_id=each.offsets_id,
                from_top_mm=each.from_top_mm,
                smoothing_mm=each.cases.smoothing_mm,
                volumes_ml=each.cases.volumes_ml,
                log_likelihood=each.log_likelihood,
                cases=each.cases,
            )
            for each in estimates
        ]

    def place(
        self,
        position_mm: Sequence[float] | torch.Tensor,
        like: Volume,
        *,
        mode: Mode = "auto",
        without: Sequence[int] = (),
    ) -> MetaTensor:
        """Sample the prior, its centre moved to ``position_mm``, on another image's grid.

        Args:
            position_mm: world point of the organ's centre, RAS mm.
            like: the image that gives the grid, ``(C, W, H, D)`` with any invertible affine; a
                slice keeps its third axis (``D`` = 1). Or a NIfTI file.
            mode: along z, ``"nearest"`` is the histogram of the paper, ``"linear"`` interpolates
                between the centres of voxels, ``"auto"`` does so for a density. In the plane it is
                always linear.
            without: numbers of the label maps that are left out, as in `cases`.

        Returns:
            ``(1, W, H, D)`` float32 on the device of ``like``; zero outside the prior's box.

        Raises:
            PositionError: ``position_mm`` is not three finite numbers.
            PriorError: ``like`` has no usable grid, ``mode`` is unknown, or the prior of the other
                maps is not known.
        """
        mode, like = known_mode(mode), open_volume(like)
        affine = grid_affine(like)
        center, values = world_point(position_mm), self.probability
        if len(without):
            # Of a slice's grid only some of the prior's slices are needed.
            grid = {"affine": affine, "shape": like.shape[1:]}
            box = touched(values.shape, spacing_mm=self.spacing_mm, center_mm=center, **grid)
            values = self._leave_out(without, box)
            shift = [b.start + b.stop - n for b, n in zip(box, self.probability.shape, strict=True)]
            center = center + torch.tensor(shift) / 2 * torch.tensor(self.spacing_mm)
        placed = sample_on_grid(
            values.to(like.device),
            spacing_mm=self.spacing_mm,
            center_mm=center,
            affine=affine,
            shape=like.shape[1:],
            nearest_along_z=mode == "nearest" or (mode == "auto" and self.smoothing_mm == 0),
        )
        return MetaTensor(placed.clamp_(max=1)[None], affine=affine)

    def leave_out(self, without: Sequence[int]) -> SpatialPrior:
        """The prior of the other label maps, about the same centres and of the same width.

        Args:
            without: numbers of the maps, in the order of those that had the organ.

        Raises:
            PriorError: no map would be left, there is none of a number, or what each contributed
                was not kept.
        """
        without, box = sorted({*without}), tuple(slice(0, n) for n in self.probability.shape)
        return SpatialPrior(
            self._leave_out(without, box),
            spacing_mm=self.spacing_mm,
            organ=self.organ,
            case_count=self.case_count - len(without),
            center=self.center,
            offset_mm=self.offset_mm,
            offsets_id=self.offsets_id,
            from_top_mm=self.from_top_mm,
            smoothing_mm=self.smoothing_mm,
        )

    def known_cases(self) -> Cases:
        """What each label map contributed, or :class:`PriorError` where it was not kept."""
        if self.cases is None:
            raise PriorError(
                f"The prior of organ {self.organ} must know its cases, of which a label is to be "
                "left out, got one without: estimate it again, keep the file …_cases.npz beside "
                "it, or leave no label out."
            )
        return self.cases

    def _leave_out(self, without: Sequence[int], box: tuple[slice, ...]) -> torch.Tensor:
        cases = self.known_cases()
        check_left_out(without, len(cases))
        return torch.from_numpy(cases.leave_out(self.probability[box].numpy(), [*{*without}], box))

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
            PriorError: it is missing, truncated, no NIfTI, no prior, or of a newer version.
        """
        return read_prior(path, cls)
