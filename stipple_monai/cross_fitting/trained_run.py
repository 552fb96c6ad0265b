"""A calibration for a run that is trained: folds with its settings, numbers in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stipple_monai.bundle import BUNDLE, read_model
from stipple_monai.cross_fitting.stage import calibrate
from stipple_monai.errors import DatasetError


def calibrate_run(
    models: str | Path,
    datalist: str | Path,
    *,
    bundle: str | Path = BUNDLE,
    train_overlays: Sequence[str | Path] = (),
    folds: int | None = None,
    seed: int = 0,
) -> Path:
    """Calibrate a network that is trained already, with the settings that its folder knows.

    Args:
        models: folder of the run; the networks of the folds are trained in ``calibration`` there.
        datalist: of the training.
        bundle: folder of the bundle.
        train_overlays: those of the training.
        folds: see :func:`calibrate`.
        seed: of the training.

    Returns:
        The file of the calibration, which is in the weights, too.

    Raises:
        DatasetError: the folder does not know its settings, its network has no prior or counts by
            another calibration, or see :func:`calibrate`.
    """
    model = read_model(models)
    known = model.values()
    if known.get("priors") == [] or known.get("calibration"):
        has = "no prior" if known.get("priors") == [] else f"calibration {known['calibration']!r}"
        raise DatasetError(
            f"`models` must have a prior whose share is to be fitted, got {models}, which was "
            f"trained with {has}: train without that."
        )
    return calibrate(
        datalist,
        model.folder / "calibration",
        model.folder,
        bundle=bundle,
        overlays=model.overlays,
        train_overlays=train_overlays,
        folds=folds,
        seed=seed,
        options=model.knobs,
    )
