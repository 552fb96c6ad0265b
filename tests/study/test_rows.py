"""What is published of a study's folder, of folders that were made up."""

import json
import shutil
from pathlib import Path

import pytest

from stipple_monai.errors import StudyError
from stipple_monai.files import read_csv, write_csv
from stipple_monai.results import SCORE_COLUMNS
from stipple_monai.study.rows import ROW_COLUMNS, this_machine, write_rows

TRAINED = {"max_epochs": 3, "batch_size": 4, "slices_per_scan": 5, "slices_per_epoch": None}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def put_network(place, name, rounds, **settings):
    for number in range(rounds):
        record = {"data": {"training": {"scans": 2 + number}}, "config": {**TRAINED, **settings}}
        put(place / "networks" / name / f"round_{number}" / "models" / "provenance.json", record)


def put_cell(place, method, network="n1", last=0, revision="a" * 40):
    cell = place / "methods" / method
    checkpoint = f"/elsewhere/{place.name}/networks/{network}/round_{last}/models/model.pt"
    record = {
        "git": {"package": {"revision": revision, "changed": False}, "working_directory": None},
        "versions": {"python": "3.11"},
        "config": {"checkpoint": checkpoint, "device": "cpu"},
    }
    put(cell / "provenance.json", record)
    put(cell / "network.json", {"round": f"round_{last}"})
    rows = [
        [f"/data/{scan}.nii.gz", organ, 0.5 + organ / 10, *"abcdefghij"]
        for scan in ("x", "y")
        for organ in (1, 3)
    ]
    write_csv(cell / "scores.csv", SCORE_COLUMNS, rows)


@pytest.fixture
def folder(tmp_path):
    """A study of one fold, whose data are still there; a cell is in work."""
    put(tmp_path / "data" / "dataset.json", {"labels": {"1": "liver", "3": "spleen"}})
    study = {"datalist": str(tmp_path / "data" / "dataset.json"), "folds": 4, "options": {"a": 1}}
    put(tmp_path / "out" / "study.json", {"study": study, "methods": {}})
    place = tmp_path / "out" / "cells" / "p019_fold2_seed1"
    items = [{"image": f"{n}.nii.gz", "label": f"{n}.nii.gz"} for n in range(3)]
    put(place / "training.json", {"training": items})
    put_network(place, "n1", rounds=2)
    put_cell(place, "baseline")
    put_cell(place, "stipple.part", last=1)
    return tmp_path / "out"


def test_rows_of_the_cells_that_are_done(folder, tmp_path):
    path = tmp_path / "rows.csv"
    assert write_rows(folder, path, machine="a computer") == 4
    rows = read_csv(path)
    assert tuple(rows[0]) == ROW_COLUMNS
    known = {"method": "baseline", "labelled": "3", "proportion": "0.19", "fold": "2", "seed": "1"}
    known |= {"scan": "x", "organ": "3", "name": "spleen", "dice": "0.8", "peak_memory_mib": "j"}
    # 2 scans x 5 slices in batches of 4: 2 whole ones, in each of 3 epochs
    known |= {"steps": "6", "commit": "a" * 12}
    assert known.items() <= rows[1].items()
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["study"] == {"folds": 4, "options": {"a": 1}}
    (run,) = record["runs"]
    assert (run["machine"], run["cells"]) == ("a computer", ["p019_fold2_seed1/baseline"])
    assert str(tmp_path) not in path.read_text() + path.with_suffix(".json").read_text()


def test_steps_of_all_rounds_and_runs_of_several_versions(folder, tmp_path):
    place = folder / "cells" / "p019_fold2_seed1"
    (place / "methods" / "stipple.part").rename(place / "methods" / "stipple")
    put_network(place, "n2", rounds=1, slices_per_epoch=8)
    put_cell(place, "rival", network="n2", revision="b" * 40)
    assert write_rows(folder, tmp_path / "rows.csv") == 12
    steps = {row["method"]: row["steps"] for row in read_csv(tmp_path / "rows.csv")}
    # the second round draws from 3 scans: 3 whole batches
    assert steps == {"baseline": "6", "stipple": "15", "rival": "6"}
    runs = json.loads((tmp_path / "rows.json").read_text())["runs"]
    assert [(run["commit"][0], len(run["cells"])) for run in runs] == [("a", 2), ("b", 1)]
    assert runs[0]["machine"] == this_machine()


def test_without_a_finished_cell_nothing_is_written(folder, tmp_path):
    cell = folder / "cells" / "p019_fold2_seed1" / "methods" / "baseline"
    cell.rename(cell.with_name("baseline.part"))
    with pytest.raises(StudyError, match=r"No cell is finished in .*: wait, or run the study"):
        write_rows(folder, tmp_path / "rows.csv")
    assert not Path(tmp_path / "rows.csv").exists()


def test_a_machine_that_does_not_tell_its_processor(monkeypatch):
    said = this_machine()

    def unreadable(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", unreadable)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert this_machine() == f"riscv64, {said.rpartition(', ')[2]}"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "Features: none")
    assert this_machine().startswith("riscv64, ")


def test_other_folders_beside_the_cells_are_left_out(folder, tmp_path):
    before = write_rows(folder, tmp_path / "a.csv")
    shutil.copytree(folder / "cells" / "p019_fold2_seed1", folder / "cells" / "old")
    assert write_rows(folder, tmp_path / "b.csv") == before
