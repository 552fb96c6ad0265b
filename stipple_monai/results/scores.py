"""How good each segmentation is, and what it cost: one row a scan and organ.

Measures are MONAI's. An organ that is not predicted has Dice and Jaccard 0, but no surface, and
so no distance: the field stays empty, and ``predicted_voxels`` tells. An organ that the truth has
not, has none of the four. Voxels that the truth says to ignore count nowhere, neither as right nor
as wrong.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.engines.utils import IterationEvents
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
)
from monai.transforms import MapTransform

from stipple_monai.calibration import reliability
from stipple_monai.files import write_csv
from stipple_monai.inferers import CONFIDENCE_META, POSITION_META
from stipple_monai.label_values import IGNORED
from stipple_monai.memory import process_peak_mib
from stipple_monai.positioning import measure_position
from stipple_monai.priors import SpatialPrior

SCORE_COLUMNS = (
    "scan",
    "organ",
    "dice",
    "jaccard",
    "hd95_mm",
    "asd_mm",
    "predicted_voxels",
    "true_voxels",
    "position_error_mm",
    "confidence",
    "calibration_error",
    "seconds",
    "peak_memory_mib",
)


CALIBRATION_META = "calibration_error"


def score(predicted: torch.Tensor, truth: torch.Tensor, spacing_mm: Sequence[float]) -> list[float]:
    """Compare two masks of one organ.

    Args:
        predicted: ``(W, H, D)``, true or 1 where the organ is.
        truth: likewise.
        spacing_mm: of their grid.

    Returns:
        Dice and Jaccard in [0, 1], the 95th percentile of the Hausdorff distance (the larger of
        both directions) and the average symmetric surface distance, mm. NaN where undefined.

    Example:
        >>> truth = torch.zeros(4, 4, 4)
        >>> truth[1:3] = 1
        >>> score(truth.roll(1, 0), truth, [2.0, 1.0, 1.0])
        [0.5, 0.333..., 2.0, 1.0]
    """
    if not truth.any():
        return [math.nan] * 4
    y_pred, y = predicted[None, None].float(), truth[None, None].float()
    overlaps = [float(f(y_pred, y)) for f in (compute_dice, compute_iou)]
    if not predicted.any():
        return [*overlaps, math.nan, math.nan]
    options: dict[str, Any] = {"include_background": True, "spacing": list(spacing_mm)}
    return [
        *overlaps,
        float(compute_hausdorff_distance(y_pred, y, percentile=95, **options)),
        float(compute_average_surface_distance(y_pred, y, symmetric=True, **options)),
    ]


def where_known(
    predicted: torch.Tensor, truth: torch.Tensor, organ: int, *, ignore: int = IGNORED
) -> tuple[torch.Tensor, torch.Tensor]:
    """The masks of an organ in two label maps, both without what the truth says to ignore.

    Args:
        predicted: label map of any shape.
        truth: on the same grid.
        organ: label value.
        ignore: value in ``truth`` of voxels of which nothing is known.

    Returns:
        Of the prediction and of the truth, true where the organ is.

    Example:
        >>> where_known(torch.tensor([1, 1, 0]), torch.tensor([1, 255, 1]), 1)
        (tensor([ True, False, False]), tensor([ True, False,  True]))
    """
    return (predicted == organ) & (truth != ignore), truth == organ


class CalibrationErrord(MapTransform):
    """Leave the expected calibration error of each organ in the meta of its probabilities.

    To be put in front of what decides, since :class:`ScoreTable` sees label maps alone. The error
    is that of :func:`stipple_monai.calibration.reliability`, with its 10 bins and over voxels of
    at least 0.01.

    Args:
        keys: probabilities, ``(K + 1, W, H, D)``, background first, on the grid of the label.
        label_key: the truth ``(1, W, H, D)``, 0 to K and 255 (not counted).
        allow_missing_keys: do nothing for a missing prediction.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        label_key: str = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Measure; the probabilities are the same, a `MetaTensor`."""
        d = dict(data)
        for key in self.key_iterator(d):
            measured = MetaTensor(d[key].as_tensor()).copy_meta_from(d[key])
            measured.meta[CALIBRATION_META] = reliability(d[key], d[self.label_key]).error
            d[key] = measured
        return d


class ScoreTable:
    """Write the measures of every scan and organ as CSV, whole or not at all.

    The columns are ``SCORE_COLUMNS``. The position error is the distance between where the prior
    was put and where the true label has it, empty for a neutral prior. The calibration error is
    there where :class:`CalibrationErrord` measured it. ``seconds`` is the network, positioning and
    fusion, without loading and saving. ``peak_memory_mib`` is what the GPU held at most for this
    scan; on the CPU, what the process has held at most so far.

    Args:
        path: the file to write when the engine completes.
        organs: label values in the order of the network's channels behind the background.
        priors: in the same order; none for a network without.
        pred_key: the prediction in the engine's output, one-hot ``(K + 1, W, H, D)``, without
            organs where the truth is to be ignored.
        label_key: the truth, likewise, on the scan's own grid.
        image_key: the scan.
    """

    def __init__(
        self,
        path: str | Path,
        organs: Sequence[int],
        *,
        priors: Sequence[SpatialPrior] = (),
        pred_key: str = "pred",
        label_key: str = "label",
        image_key: str = "image",
    ) -> None:
        self.path, self.organs, self.priors = path, list(organs), list(priors)
        self.pred_key, self.label_key, self.image_key = pred_key, label_key, image_key
        self._rows: list[list[Any]] = []
        self._started = self._seconds = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda: self._rows.clear())
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._stop)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(
            Events.COMPLETED, lambda: write_csv(self.path, SCORE_COLUMNS, self._rows)
        )

    def _start(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._started = time.perf_counter()

    def _stop(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds = time.perf_counter() - self._started

    def _collect(self, engine: Engine) -> None:
        costs = [f"{self._seconds / len(engine.state.output):.3f}", f"{_peak_memory_mib():.0f}"]
        for item in engine.state.output:
            pred, label = item[self.pred_key], item[self.label_key]
            spacing_mm = affine_to_spacing(label.affine).tolist()
            for k, organ in enumerate(self.organs):
                predicted, truth = pred[k + 1].bool().cpu(), label[k + 1].bool().cpu()
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "the ground truth|the prediction")
                    numbers = score(predicted.as_tensor(), truth.as_tensor(), spacing_mm)
                error, confidence = self._position(pred, label, k)
                calibration_error = pred.meta.get(CALIBRATION_META, {k: math.nan})[k]
                self._rows.append(
                    [
                        item[self.image_key].meta["filename_or_obj"],
                        organ,
                        *(_text(x) for x in numbers),
                        int(predicted.sum()),
                        int(truth.sum()),
                        _text(error),
                        _text(confidence),
                        _text(float(calibration_error)),
                        *costs,
                    ]
                )

    def _position(self, pred: MetaTensor, label: MetaTensor, k: int) -> tuple[float, float]:
        if not self.priors or POSITION_META not in pred.meta or not label[k + 1].any():
            return math.nan, math.nan
        prior = self.priors[k]
        alone = MetaTensor(label[k + 1 : k + 2].cpu() * prior.organ, affine=label.affine)
        true = measure_position(alone, prior)
        found = torch.as_tensor(pred.meta[POSITION_META][k]).cpu().double()
        return float((found - true).norm()), float(pred.meta[CONFIDENCE_META][k])


def _peak_memory_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return process_peak_mib()


def _text(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.4f}"
