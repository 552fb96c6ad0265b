"""Ignite handlers: the best model across a resumed training, and the datalist of the next round."""

import json
import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from stipple_monai.data import read_sections
from stipple_monai.handlers import PositionTable, PseudoLabelDatalist, WholeCheckpointSaver
from stipple_monai.inferer import POSITION_META

ORIGIN = {"model": "/m/model.pt", "share": 0.5, "round": 2}


def output(folder, name, position=None):
    """What an evaluator has of one scan after its pseudo-label is saved."""
    pred = MetaTensor(torch.zeros(1, 2, 2, 2))
    pred.meta["saved_to"] = str(folder / f"{name}_pseudo.nii.gz")
    (folder / f"{name}_pseudo.nii.gz").touch()
    if position is not None:
        pred.meta[POSITION_META] = torch.tensor(position, dtype=torch.float64)
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": str(folder / name)})
    return {"image": image, "pred": pred}


@pytest.fixture
def scans(tmp_path):
    for name in "abc":
        (tmp_path / name).touch()
    return {
        "training": [{"image": str(tmp_path / "a"), "label": str(tmp_path / "a"), "age": 50}],
        "unlabelled": [
            {"image": str(tmp_path / "b"), "truth": str(tmp_path / "b")},
            {"image": str(tmp_path / "c")},
        ],
        "test": [],
    }


def run(handler, batches):
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine)
    engine.run(batches)


def test_labelled_scans_move_to_training_and_others_stay(tmp_path, scans):
    path = tmp_path / "next" / "datalist.json"
    run(PseudoLabelDatalist(path, scans, ORIGIN), [[output(tmp_path, "b", [[1.5, 2.0, -3.0]])]])
    found = read_sections(path)
    assert found["training"] == [
        scans["training"][0],
        {
            **scans["unlabelled"][0],
            "label": str(tmp_path / "b_pseudo.nii.gz"),
            "pseudo_label": ORIGIN,
            "organ_position": [[1.5, 2.0, -3.0]],
        },
    ]
    assert found["unlabelled"] == [scans["unlabelled"][1]]
    assert found["test"] == []
    assert scans["unlabelled"][0].keys() == {"image", "truth"}


def test_unknown_position_is_null_and_none_is_left_out(tmp_path, scans):
    path = tmp_path / "datalist.json"
    position = [[math.nan] * 3, [1.0, 2.0, 3.0]]
    batches = [[output(tmp_path, "b", position), output(tmp_path, "c")]]
    run(PseudoLabelDatalist(path, scans, ORIGIN), batches)
    # strict JSON has no NaN
    text = path.read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    _, first, second = content["training"]
    assert first["organ_position"] == [[None] * 3, [1.0, 2.0, 3.0]]
    assert "organ_position" not in second
    assert content["unlabelled"] == []


def test_each_run_starts_anew(tmp_path, scans):
    path = tmp_path / "datalist.json"
    handler = PseudoLabelDatalist(path, scans, ORIGIN)
    run(handler, [[output(tmp_path, "b")]])
    run(handler, [[output(tmp_path, "c")]])
    found = read_sections(path)
    assert [item["image"] for item in found["training"][1:]] == [str(tmp_path / "c")]
    assert [item["image"] for item in found["unlabelled"]] == [str(tmp_path / "b")]


def test_interrupted_run_writes_nothing(tmp_path, scans):
    path = tmp_path / "datalist.json"

    def batches():
        yield [output(tmp_path, "b")]
        raise RuntimeError("unplugged")

    with pytest.raises(RuntimeError, match="unplugged"):
        run(PseudoLabelDatalist(path, scans, ORIGIN), batches())
    assert not path.exists()


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


def test_positions_are_written_with_their_units(tmp_path):
    pred = MetaTensor(torch.zeros(1, 2, 2, 2))
    pred.meta[POSITION_META] = torch.tensor([[1.234, -5.0, 6.0], [math.nan] * 3])
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "/scans/a.nii.gz"})
    path = tmp_path / "new" / "positions.csv"
    run(PositionTable(path, [3, 4]), [[{"pred": pred, "image": image}]])
    assert path.read_text().splitlines() == [
        "scan,organ,r_mm,a_mm,s_mm",
        "/scans/a.nii.gz,3,1.23,-5.00,6.00",
        "/scans/a.nii.gz,4,,,",
    ]
