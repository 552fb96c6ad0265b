"""Ignite handlers: the best model across a resumed training, and the table of positions."""

import csv
import errno
import math
import warnings
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor
from monai.transforms import RandGaussianNoised

from stipple_monai.errors import TrainingError
from stipple_monai.handlers import FiniteTraining
from stipple_monai.handlers.training import (
    EpochSeed,
    LearningCurve,
    PositionTable,
    WeightsLoader,
    WholeCheckpointSaver,
    _save_whole,
)
from stipple_monai.inferers.prior_driven import CONFIDENCE_META, POSITION_META
from stipple_monai.networks import Calibration, PriorDrivenNet


def run(handler, batches):
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine)
    engine.run(batches)


def saver(folder, model):
    options = {"save_key_metric": True, "key_metric_filename": "model.pt"}
    return WholeCheckpointSaver(str(folder), {"model": model}, **options)


def validate(handler, score):
    engine = Engine(lambda engine, batch: batch)
    engine.state.metrics = {"dice": score}
    engine.state.key_metric_name = "dice"
    handler.metrics_completed(engine)


@pytest.mark.parametrize(("score", "kept"), [(0.5, 1.0), (0.7, 2.0)])
def test_best_score_outlives_the_process(tmp_path, score, kept):
    model = torch.nn.Linear(1, 1)
    first = saver(tmp_path, model)
    assert first.state_dict() == {"_saved": []}
    torch.nn.init.constant_(model.weight, 1.0)
    validate(first, 0.6)
    torch.save(first.state_dict(), tmp_path / "state.pt")

    second = saver(tmp_path, model)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.nn.init.constant_(model.weight, 2.0)
    validate(second, score)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == kept


def test_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    model = torch.nn.Linear(1, 1)
    handler = saver(tmp_path, model)
    validate(handler, 0.5)
    before = (tmp_path / "model.pt").read_bytes()

    def torn(checkpoint, file, **kwargs):
        file.write(b"half a check")
        assert Path(file.name).name.startswith(".part-")  # as all that a kill leaves half done
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        validate(handler, 0.9)
    assert (tmp_path / "model.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_an_interval_checkpoint_is_always_there(tmp_path, monkeypatch):
    model = torch.nn.Linear(1, 1)
    handler = WholeCheckpointSaver(str(tmp_path), {"model": model}, save_interval=1, n_saved=2)
    trainer = Engine(lambda engine, batch: batch)
    handler.attach(trainer)
    seen = []
    save = torch.save

    def counted(checkpoint, file, **kwargs):
        seen.append(len(list(tmp_path.glob("model_epoch*.pt"))))
        save(checkpoint, file, **kwargs)

    monkeypatch.setattr(torch, "save", counted)
    trainer.run([0], max_epochs=4)
    assert seen == [0, 1, 1, 1]
    assert len(list(tmp_path.glob("model_epoch*.pt"))) == 2


def test_positions_are_written_with_their_units_and_confidences(tmp_path):
    pred = MetaTensor(torch.zeros(1, 2, 2, 2))
    pred.meta[POSITION_META] = torch.tensor([[1.234, -5.0, 6.0], [math.nan] * 3, [math.nan] * 3])
    pred.meta[CONFIDENCE_META] = torch.tensor([0.98765, 0.0, 0.4321])
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "/scans/a.nii.gz"})
    path = tmp_path / "new" / "positions.csv"
    table = PositionTable(path, [3, 4, 9])
    for _ in range(2):  # each run starts anew
        run(table, [[{"pred": pred, "image": image}]])
    assert path.read_text().splitlines() == [
        "scan,organ,r_mm,a_mm,s_mm,confidence",
        "/scans/a.nii.gz,3,1.23,-5.00,6.00,0.988",
        "/scans/a.nii.gz,4,,,,0.000",
        "/scans/a.nii.gz,9,,,,0.432",
    ]


def test_a_row_for_each_scan_of_a_batch_and_each_organ(tmp_path):
    items = []
    for i in range(3):
        pred, image = MetaTensor(torch.zeros(1, 2, 2, 2)), MetaTensor(torch.zeros(1, 2, 2, 2))
        pred.meta[POSITION_META] = torch.full((2, 3), float(i))
        pred.meta[CONFIDENCE_META] = torch.tensor([i / 4, 1.0])
        image.meta["filename_or_obj"] = f"{i}.nii"
        items.append({"out": pred, "scan": image})
    table = PositionTable(tmp_path / "t.csv", [1, 2], pred_key="out", image_key="scan")
    run(table, [items[:2], items[2:]])
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [(row["scan"], row["organ"], row["confidence"]) for row in rows] == [
        (f"{i}.nii", organ, f"{c:.3f}") for i in range(3) for organ, c in (("1", i / 4), ("2", 1))
    ]
    assert {row["r_mm"] for row in rows[4:]} == {"2.00"}


def test_a_table_for_other_organs_than_the_priors_is_none(tmp_path):
    pred, image = MetaTensor(torch.zeros(1, 2, 2, 2)), MetaTensor(torch.zeros(1, 2, 2, 2))
    pred.meta[POSITION_META], pred.meta[CONFIDENCE_META] = torch.zeros(2, 3), torch.zeros(2)
    image.meta["filename_or_obj"] = "a.nii"
    with pytest.raises(ValueError, match="zip"):
        run(PositionTable(tmp_path / "t.csv", [1]), [[{"pred": pred, "image": image}]])
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.slow
def test_every_epoch_draws_what_its_number_says():
    class Noise(torch.utils.data.Dataset):
        def __init__(self):
            self.transform = RandGaussianNoised("x", prob=1.0)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return self.transform({"x": torch.zeros(1) + 10 * index})["x"]

    def draws(first_epoch, seed=0, workers=0):
        loader = DataLoader(Noise(), batch_size=3, shuffle=True, num_workers=workers)
        seen = []
        engine = Engine(lambda engine, batch: seen.append((batch.flatten(), torch.rand(1))))
        EpochSeed(seed).attach(engine)
        engine.state.epoch = first_epoch
        engine.load_state_dict({"epoch": first_epoch, "max_epochs": 4, "epoch_length": 1})
        engine.run(loader, max_epochs=4)
        return [torch.cat(pair) for pair in seen]

    whole = draws(0)
    assert len(whole) == 4
    assert len({tuple(x.tolist()) for x in whole}) == 4
    for left, right in zip(whole[2:], draws(2), strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(whole[0], draws(0, seed=1)[0])
    for left, right in zip(draws(0, workers=1)[2:], draws(2, workers=1), strict=True):
        assert torch.equal(left, right)


def test_seeds_are_not_negative():
    with pytest.raises(ValueError, match="`seed` must be 0 or more, got -1"):
        EpochSeed(-1)


def test_the_curve_has_a_row_an_epoch_and_survives_a_resume(tmp_path):
    path = tmp_path / "curve.csv"

    def train(first, last, offset=0.0):
        """Validated in even epochs, with a score that is that of the epoch."""
        engine = Engine(lambda engine, loss: [{"loss": loss + engine.state.epoch + offset}])
        engine.add_event_handler(
            Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(train_mean_dice=0.25)
        )
        validator = Engine(lambda engine, batch: None)
        validator.add_event_handler(
            Events.STARTED,
            lambda v: v.state.metrics.update(val_mean_dice=engine.state.epoch / 10),
        )
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: validator.run([0]))
        LearningCurve(path, validator=validator).attach(engine)
        engine.load_state_dict({"epoch": first, "max_epochs": last, "epoch_length": 2})
        engine.run([1.0, 2.0])

    train(0, 3)
    header = "epoch,loss,train_dice,validation_dice"
    rows = [header, "1,2.50000,0.25000,", "2,3.50000,0.25000,0.20000", "3,4.50000,0.25000,"]
    assert path.read_text().split() == rows
    train(1, 3, offset=1.0)
    rows = [*rows[:2], "2,4.50000,0.25000,0.20000", "3,5.50000,0.25000,"]
    assert path.read_text().split() == rows
    # as an uninterrupted training, also from an epoch without validation
    train(2, 4)
    assert path.read_text().split()[-1] == "4,5.50000,0.25000,0.40000"


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_training_starts_from_weights_without_their_calibration(calibrated, tmp_path):
    source, net = (PriorDrivenNet(torch.nn.Conv2d(1, 2, 1), image_channels=1) for _ in range(2))
    source.calibrate(Calibration([0.1], [1], [2], [0.2], [0]))
    torch.save(source.state_dict(), tmp_path / "model.pt")
    WeightsLoader(str(tmp_path / "model.pt"), {"model": net}, calibrated=calibrated)(
        Engine(lambda *_: None)
    )
    assert torch.equal(net.network.weight, source.network.weight)
    numbers = source.calibration if calibrated else torch.tensor([[1.0, 1, 0, 1, 0]])
    assert torch.equal(net.calibration, numbers)


def test_an_undefined_score_keeps_the_last_weights_until_one_is_defined(tmp_path):
    model = torch.nn.Linear(1, 1)
    handler = saver(tmp_path, model)

    def after(weight, score):
        torch.nn.init.constant_(model.weight, weight)
        validate(handler, score)
        return torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item()

    with pytest.warns(UserWarning, match="dice is undefined: no validation scan has an organ"):
        assert after(1.0, math.nan) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert after(2.0, math.nan) == 2
        assert after(3.0, 0.5) == 3
        assert after(4.0, math.nan) == 3


def test_a_training_that_fails_leaves_no_final_model(tmp_path):
    def fails(engine, batch):
        raise KeyError("deep")

    handler = WholeCheckpointSaver(str(tmp_path), {"m": torch.nn.Linear(1, 1)}, save_final=True)
    trainer = Engine(fails)
    handler.attach(trainer)
    with pytest.raises(KeyError, match="deep"):
        trainer.run([0])
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_end_the_training_with_the_epoch():
    network = torch.nn.Linear(1, 1)
    trainer = Engine(lambda engine, batch: [{"loss": torch.tensor(1.0)}])
    FiniteTraining(network).attach(trainer)
    trainer.run([0, 0])
    torch.nn.init.constant_(network.bias, math.inf)
    with pytest.raises(TrainingError, match=r"must stay finite, got weights .* in bias"):
        trainer.run([0, 0])
    assert trainer.state.iteration == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_named_and_leaves_the_older_checkpoint(tmp_path):
    def save(checkpoint, file):
        with open("/dev/full", "wb", buffering=0) as full:
            torch.save(checkpoint, full)

    path = tmp_path / "model.pt"
    path.write_bytes(b"older")

    def save_in_parts(checkpoint, file):
        try:
            save(checkpoint, file)
        finally:
            broken(checkpoint, file)

    with pytest.raises(OSError, match=r"No space left on device: '.*model\.pt'$") as caught:
        _save_whole({"weight": torch.zeros(99)}, path, save)
    assert caught.value.errno == errno.ENOSPC
    # torch's own error may hide it
    with pytest.raises(OSError, match=r"model\.pt cannot be written: .*No space left on device"):
        _save_whole({"weight": torch.zeros(99)}, path, save_in_parts)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"older"]
    with pytest.raises(RuntimeError, match="something else"):
        _save_whole({}, path, broken)


def broken(checkpoint, file):
    raise RuntimeError("something else")
