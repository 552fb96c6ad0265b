"""Outputs: never over inputs, never over what is not ours, the old only when the new is whole."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.boxes import SHAPE, blob, body, save
from helpers.threshold_model import write_model

from stipple_monai import DatasetError
from stipple_monai.__main__ import main
from stipple_monai.files import remove_unfinished
from stipple_monai.ingest import ingest
from stipple_monai.report import report
from stipple_monai.report import run as report_module
from stipple_monai.segmentation import segment
from stipple_monai.simulation import write_phantom, write_simulated
from stipple_monai.study import run_study


@pytest.fixture
def data(tmp_path):
    """A datalist of four pairs."""
    for i in range(4):
        save(tmp_path / f"data/images/c{i}.nii.gz", body(i))
        save(tmp_path / f"data/labels/c{i}.nii.gz", blob())
    items = [{"image": f"images/c{i}.nii.gz", "label": f"labels/c{i}.nii.gz"} for i in range(4)]
    content = {"labels": {"0": "background", "1": "blob"}, "training": items}
    (tmp_path / "data/all.json").write_text(json.dumps(content))
    return tmp_path / "data"


def state(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".") and p.parent.name != "logs"
    }


@pytest.mark.parametrize(
    "command",
    [
        ["check", "all.json", "--csv", "all.json"],
        ["check", "all.json", "--csv", "images/c0.nii.gz"],
        ["check", "all.json", "--csv", "mine.csv"],
        ["split", "all.json", "all.json", "--folds", "2"],
        ["split", "all.json", "out.json", "--folds", "2", "--nnunet", "all.json"],
        ["split", "all.json", "out.json", "--folds", "2", "--nnunet", "out.json"],
        ["split", "all.json", "mine.csv", "--labelled", "1", "--test", "1"],
        ["split", "all.json", "out.json", "--folds", "2", "--nnunet", "mine.csv"],
        ["split", "all.json", "split.json", "--from-nnunet", "split.json"],
        ["report", "all.json", "--out", "mine.html"],
        ["report", "all.json", "--out", "mine.html", "--overwrite"],
    ],
)
def test_inputs_and_foreign_files_are_refused(data, monkeypatch, capsys, command):
    monkeypatch.chdir(data)
    for name in ("mine.csv", "mine.html"):
        Path(name).write_text("mine")
    Path("split.json").write_text(json.dumps([{"train": ["c0"], "val": ["c1"]}]))
    before = state(data)
    assert main(command) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "must" in line
    assert state(data) == before


def test_what_a_command_wrote_it_may_write_again(data, monkeypatch):
    monkeypatch.chdir(data)
    for _ in range(2):
        assert main(["check", "all.json", "--csv", "table.csv"]) == 0
        command = ["split", "all.json", "folds.json", "--folds", "2", "--nnunet", "splits.json"]
        assert main(command) == 0


def test_ingest_leaves_foreign_files(data, tmp_path):
    out = tmp_path / "out"
    ingest(data, out, layout="nifti", progress=False)
    for name in ("imagesTr/mine.nii.gz", "labelsTr/mine.nii.gz", "qa/mine.json", "notes.txt"):
        (out / name).write_text("mine")
    ingest(data, out, layout="nifti", overwrite=True, progress=False)
    for name in ("imagesTr/mine.nii.gz", "labelsTr/mine.nii.gz", "qa/mine.json", "notes.txt"):
        assert (out / name).read_text() == "mine"


@pytest.mark.slow
def test_an_ingest_that_fails_leaves_the_older_one(data, tmp_path):
    out = tmp_path / "out"
    ingest(data, out, layout="nifti", progress=False)
    before = state(out)
    save(data / "labels/c3.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(DatasetError, match="must have usable cases"):
        ingest(data, out, layout="nifti", overwrite=True, progress=False)
    assert state(out) == before
    save(data / "labels/c3.nii.gz", blob())
    shutil.rmtree(tmp_path / "out.part")
    ingest(data, out, layout="nifti", overwrite=True, progress=False)
    assert state(out).keys() == before.keys()
    assert not (tmp_path / "out.part").exists()


def test_ingest_does_not_write_over_what_it_reads(data, tmp_path):
    for i in range(4):
        shutil.copy(data / f"images/c{i}.nii.gz", data / f"labels/x{i}.nii.gz")
    out = data / "labels"
    with pytest.raises(DatasetError, match="must not lie in the source"):
        ingest(data, out, layout="nifti", overwrite=True, progress=False)


@pytest.mark.parametrize("name", ["imagesTr/simulated_000.nii.gz", "labelsTr/simulated_004.nii.gz"])
def test_simulate_does_not_remove_the_labels_it_was_given(tmp_path, name):
    label = np.zeros((24, 24, 8), np.uint8)
    label[6:15, 4:12, 2:6] = 11
    given = [save(tmp_path / f"l{i}.nii.gz", label) for i in range(5)]
    out = tmp_path / "out"
    options = {"size": (16, 16, None), "progress": False, "spacing_mm": (4.0, 4.0, 8.0)}
    write_simulated(given, out, **options)
    before = state(out)
    with pytest.raises(DatasetError, match="must not be an input"):
        write_simulated([out / name], out, overwrite=True, **options)
    assert state(out) == before


def test_a_changed_label_is_another_set(tmp_path):
    label = np.zeros((24, 24, 8), np.uint8)
    label[6:15, 4:12, 2:6] = 11
    given = save(tmp_path / "l.nii.gz", label)
    options = {"size": (16, 16, None), "progress": False, "spacing_mm": (4.0, 4.0, 8.0)}
    write_simulated([given], tmp_path / "out", **options)
    label[7, 5, 3] = 0
    save(given, label)
    with pytest.raises(DatasetError, match="must be empty or hold this same set of scans"):
        write_simulated([given], tmp_path / "out", **options)
    with pytest.raises(DatasetError, match="`labels` must be files that exist"):
        write_simulated([tmp_path / "none.nii.gz"], tmp_path / "out", **options)


@pytest.mark.slow
def test_a_phantom_replaces_only_its_own(tmp_path):
    options = {"cases": 1, "size": 16, "slices": (4, 4), "progress": False}
    write_phantom(tmp_path, **options)
    (tmp_path / "imagesTr/phantom_007.nii.gz").write_text("mine")
    write_phantom(tmp_path, seed=1, overwrite=True, **options)
    assert (tmp_path / "imagesTr/phantom_007.nii.gz").read_text() == "mine"
    with pytest.raises(DatasetError, match=r"not written by this package, got .*phantom_007"):
        write_phantom(tmp_path, seed=2, overwrite=True, **{**options, "cases": 8})


@pytest.mark.slow
def test_a_full_disk_leaves_the_older_page(data, tmp_path, monkeypatch):
    page = report(data / "all.json", tmp_path / "page.html", pictures=1)
    before = state(tmp_path)

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report_module.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        report(data / "all.json", page, pictures=1, overwrite=True)
    assert state(tmp_path) == before


@pytest.mark.slow
def test_a_page_s_older_pictures_go_and_foreign_ones_stay(data, tmp_path):
    page = report(data / "all.json", tmp_path / "page.html", pictures=2)
    (tmp_path / "page_files/mine.png").write_text("mine")
    report(data / "all.json", page, pictures=1, overwrite=True)
    names = {p.name for p in (tmp_path / "page_files").iterdir()}
    assert "mine.png" in names
    assert sum(name.startswith("case_") for name in names) == 1


def test_only_our_unfinished_files_are_removed(tmp_path):
    ours = tmp_path / "a" / f".part-{'0' * 32}-x.nii.gz"
    ours.parent.mkdir()
    mine = [tmp_path / ".part-notes.txt", tmp_path / "a" / ".part-1-x"]
    for path in (ours, *mine):
        path.touch()
    (tmp_path / ".part-folder").mkdir()
    (tmp_path / f".part-{'0' * 32}-folder").mkdir()
    remove_unfinished(tmp_path)
    assert not ours.exists()
    assert all(path.exists() for path in mine)


@pytest.mark.parametrize("name", ["results.csv", "report.html", "figures"])
def test_a_study_does_not_begin_over_somebody_s_results(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    study = {"title": "t", "methods": ["baseline"], "proportions": [1], "phantom": {"cases": 2}}
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    with pytest.raises(DatasetError, match=f"not written by this package, got .*{name}"):
        run_study(tmp_path / "study.yaml", tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_segmenting_does_not_write_over_somebody_s_table(data, tmp_path):
    model = write_model(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/volumes.csv").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DatasetError, match=r"got .*volumes\.csv"):
            segment([data / "images"], tmp_path / "out", overwrite=overwrite, **model)
    assert (tmp_path / "out/volumes.csv").read_text() == "mine"
