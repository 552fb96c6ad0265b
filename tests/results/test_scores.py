"""Scores of a scan: against distances computed voxel by voxel, and the table they go to."""

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from scipy.spatial.distance import cdist

from stipple_monai import SpatialPrior
from stipple_monai.files import read_csv
from stipple_monai.inferers.prior_driven import CONFIDENCE_META, POSITION_META
from stipple_monai.results.scores import (
    CALIBRATION_META,
    SCORE_COLUMNS,
    CalibrationErrord,
    ScoreTable,
    score,
)


def surface(mask):
    """Voxels of a mask that have a neighbour (of six) outside it, one by one."""
    found = []
    for point in np.argwhere(mask):
        for axis, step in [(a, s) for a in range(3) for s in (-1, 1)]:
            other = point.copy()
            other[axis] += step
            outside = (other < 0).any() or (other >= mask.shape).any()
            if outside or not mask[tuple(other)]:
                found.append(point)
                break
    return np.array(found)


def blob(centre, radii, shape=(14, 13, 9)):
    grid = np.indices(shape).reshape(3, -1).T
    inside = (((grid - centre) / radii) ** 2).sum(1) <= 1
    return inside.reshape(shape)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.5, 4.0)])
@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 1, 0), (1, 3, 2)])
def test_scores_are_those_of_the_definition(spacing, shift):
    truth = blob((6, 6, 4), (4, 3, 2.5))
    predicted = blob(np.add((6, 6, 4), shift), (3.5, 3, 2))
    dice, jaccard, hd95, asd = score(torch.from_numpy(predicted), torch.from_numpy(truth), spacing)
    both = (predicted & truth).sum()
    assert dice == pytest.approx(2 * both / (predicted.sum() + truth.sum()), abs=1e-6)
    assert jaccard == pytest.approx(both / (predicted | truth).sum(), abs=1e-6)
    apart = cdist(surface(predicted) * spacing, surface(truth) * spacing)
    there, back = apart.min(1), apart.min(0)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hd95 == pytest.approx(expected, abs=1e-4)
    assert asd == pytest.approx(np.concatenate([there, back]).mean(), abs=1e-4)


def test_what_is_empty_has_no_distance():
    truth = torch.from_numpy(blob((6, 6, 4), (3, 3, 2)))
    nothing = torch.zeros_like(truth)
    dice, jaccard, hd95, asd = score(nothing, truth, [1, 1, 1])
    assert (dice, jaccard) == (0, 0)
    assert math.isnan(hd95)
    assert math.isnan(asd)
    assert all(math.isnan(x) for x in score(truth, nothing, [1, 1, 1]))


def one_hot(*organs):
    background = ~np.any(organs, axis=0)
    return torch.from_numpy(np.stack([background, *organs]))


def run(handler, items):
    def step(engine, batch):
        engine.state.output = [batch]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        return [batch]

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    handler.attach(engine)
    engine.run(items)


def test_table_has_a_row_a_scan_and_organ(tmp_path):
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    near, far = blob((4, 6, 4), (2, 2, 2)), blob((10, 6, 4), (2, 2, 2))
    nothing = np.zeros_like(near)
    priors = [
        SpatialPrior.estimate([MetaTensor(torch.from_numpy(m)[None].byte(), affine=affine)], bins=1)
        for m in (near, far)
    ]
    priors[1].organ = 2
    meta = {
        POSITION_META: torch.tensor([[8.0, 6.0, 12.0 + 5], [math.nan] * 3]),
        CONFIDENCE_META: torch.tensor([0.75, 0.1]),
    }
    item = {
        "image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": "a.nii.gz"}),
        "label": MetaTensor(one_hot(near, far).byte(), affine=affine),
        "pred": MetaTensor(one_hot(near, nothing).byte(), affine=affine, meta=meta),
    }
    absent = {**item, "label": MetaTensor(one_hot(nothing, far).byte(), affine=affine)}
    path = tmp_path / "scores.csv"
    run(ScoreTable(path, [1, 2], priors=priors), [item, absent])
    rows = read_csv(path)
    assert tuple(rows[0]) == SCORE_COLUMNS
    assert [(row["scan"], row["organ"]) for row in rows] == [
        ("a.nii.gz", str(k)) for k in (1, 2)
    ] * 2
    first, second, third, _ = rows
    assert float(first["dice"]) == float(first["jaccard"]) == 1
    assert float(first["hd95_mm"]) == float(first["asd_mm"]) == 0
    assert float(first["position_error_mm"]) == pytest.approx(5, abs=1e-3)
    assert float(first["confidence"]) == 0.75
    assert int(first["predicted_voxels"]) == int(first["true_voxels"]) == near.sum()
    assert float(first["seconds"]) >= 0
    assert float(first["peak_memory_mib"]) > 10
    assert float(second["dice"]) == 0
    assert second["hd95_mm"] == second["asd_mm"] == second["position_error_mm"] == ""
    assert second["predicted_voxels"] == "0"
    assert third["dice"] == third["position_error_mm"] == ""


def test_distances_are_in_mm_and_each_organ_has_its_own(tmp_path):
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    near, far = np.zeros((2, 14, 13, 9), bool)
    near[3:6, 5:8, 3:6] = far[9:12, 5:8, 3:6] = True
    priors = SpatialPrior.estimate_several(
        [MetaTensor(torch.from_numpy(near + 2 * far)[None].byte(), affine=affine)], organs=[1, 2]
    )
    found = {
        POSITION_META: torch.tensor([[8.0, 6.0, 12.0], [20.0, 6.0 + 4, 12.0]]),
        CONFIDENCE_META: torch.tensor([0.75, 0.6]),
    }
    item = {
        "image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": "a.nii.gz"}),
        "label": MetaTensor(one_hot(near, far).byte(), affine=affine),
        "pred": MetaTensor(one_hot(near, np.roll(far, 1, axis=2)).byte(), meta=found),
    }
    run(ScoreTable(tmp_path / "scores.csv", [1, 2], priors=priors), [item])
    first, second = read_csv(tmp_path / "scores.csv")
    assert float(first["hd95_mm"]) == 0
    assert float(second["hd95_mm"]) == 3  # a slice
    assert float(first["position_error_mm"]) == pytest.approx(0, abs=0.2)
    assert float(second["position_error_mm"]) == pytest.approx(4, abs=0.2)
    assert (first["confidence"], second["confidence"]) == ("0.7500", "0.6000")


def test_the_calibration_error_is_that_of_the_probabilities(tmp_path):
    truth = np.zeros((4, 4, 1), bool)
    truth[:2, :2] = True
    organ = torch.full((4, 4, 1), 0.001)  # below 0.01: does not count
    organ[:2, :3] = 0.9  # six voxels, of them four that are the organ
    organ[3] = 0.7  # of which nothing is known
    probability = MetaTensor(torch.stack([1 - organ, organ]))
    label = MetaTensor(torch.from_numpy(truth)[None].byte())
    label[0, 3] = 255
    item = CalibrationErrord("pred")({"pred": probability, "label": label})
    assert CALIBRATION_META in item["pred"].meta
    assert CALIBRATION_META not in probability.meta  # a transform leaves its input as it is
    assert item["pred"].shape == (2, 4, 4, 1)
    label, pred = (MetaTensor(one_hot(mask).byte()) for mask in (truth, organ.numpy() > 0.5))
    pred.meta.update(item["pred"].meta)
    image = MetaTensor(torch.zeros(1), meta={"filename_or_obj": "a.nii.gz"})
    run(ScoreTable(tmp_path / "scores.csv", [1]), [{"image": image, "label": label, "pred": pred}])
    (row,) = read_csv(tmp_path / "scores.csv")
    assert float(row["calibration_error"]) == pytest.approx(0.9 - 4 / 6, abs=1e-4)


def test_without_prior_there_is_no_position(tmp_path):
    mask = one_hot(blob((6, 6, 4), (2, 2, 2))).byte()
    item = {
        "image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": "a.nii.gz"}),
        "label": MetaTensor(mask),
        "pred": MetaTensor(mask),
    }
    run(ScoreTable(tmp_path / "scores.csv", [1]), [item])
    (row,) = read_csv(tmp_path / "scores.csv")
    assert row["position_error_mm"] == row["confidence"] == ""
