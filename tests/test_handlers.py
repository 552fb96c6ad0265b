"""Ignite handlers: the best model across a resumed training, and the table of positions."""

import csv
import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from stipple_monai.handlers import PositionTable, WholeCheckpointSaver
from stipple_monai.inferer import CONFIDENCE_META, POSITION_META


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
