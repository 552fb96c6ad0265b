"""A small study that really runs: what it leaves, what a rerun does, and who may see what."""

import contextlib
import json
import os
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from helpers.bright_scans import KNOBS, bright_scan
from helpers.forks import exit_status, fork, needs_fork

from stipple_monai import DatasetError
from stipple_monai.__main__ import main
from stipple_monai.bundle import BUNDLE, read_model, weights_folder
from stipple_monai.data import read_datalist, write_datalist
from stipple_monai.errors import StudyError
from stipple_monai.files import read_csv, sha256, write_csv, write_json
from stipple_monai.results import SCORE_COLUMNS
from stipple_monai.study import run as study
from stipple_monai.study.plan import Method, Study
from stipple_monai.study.report import rewrite_report
from stipple_monai.study.rows import write_rows
from stipple_monai.study.run import run_study

METHODS = ["baseline", "stipple_single", "stipple", "relabelling", "stipple_true_position"]
# networks of their own, where the methods of the bundle share one
DEFINITIONS = {
    "baseline": {"overlays": ["baseline"]},
    "stipple_single": {"evaluate_options": {"probabilities": True}},
}
ENTRIES = {
    "definitions": DEFINITIONS,
    "title": "A small study",
    "dataset": "bright organs",
    "datalist": "data/dataset.json",
    "options": KNOBS,
    "folds": 3,
    "run_folds": [0, 1],
    "proportions": [0.5, 1.0],
    "methods": METHODS,
}

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere"),
]


def written(folder, **entries):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**ENTRIES, **entries}), encoding="utf-8")
    return path


def dataset(folder):
    (folder / "data").mkdir()
    items = [bright_scan(folder / "data", number) for number in range(6)]
    labels = {"0": "background", "1": "cube"}
    write_datalist(
        folder / "data" / "dataset.json", {"training": items}, metadata={"labels": labels}
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a finished study, and its rows."""
    root = tmp_path_factory.mktemp("study")
    dataset(root)
    run_study(written(root), root / "out")
    return root


def stamps(out):
    return {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and "cells" in p.parts}


def test_every_cell_and_scan_has_its_row(done):
    rows = read_csv(done / "out" / "results.csv")
    found = {tuple(row[k] for k in ("method", "proportion", "fold", "scan")) for row in rows}
    assert len(found) == len(rows)
    for method in METHODS:
        for proportion in ("0.5", "1.0"):
            mine = [r for r in rows if (r["method"], r["proportion"]) == (method, proportion)]
            # two folds of two scans; nothing is left to label at 100 %
            missing = method == "relabelling" and proportion == "1.0"
            assert len({r["scan"] for r in mine}) == len(mine) == (0 if missing else 4)
    bins = {row["method"]: row["bins"] for row in rows}
    assert bins == dict.fromkeys(METHODS, "")
    assert all(0 <= float(row["dice"]) <= 1 for row in rows)
    assert max(float(row["dice"]) for row in rows) > 0.5
    located = [row for row in rows if row["method"] == "stipple_single"]
    assert all(float(row["position_error_mm"]) >= 0 for row in located)


def test_further_knobs_of_an_evaluation_make_no_other_network(done):
    for cell in (done / "out" / "cells").iterdir():
        maps = {path.parent.name for path in cell.glob("methods/*/*_prob.nii.gz")}
        assert maps == {"stipple_single"}
    assert Method("one", evaluate_options={"probabilities": True}).network == Method("two").network


def test_all_labels_are_the_same_with_and_without_rounds(done):
    rows = read_csv(done / "out" / "results.csv")

    def dice(method):
        return [r["dice"] for r in rows if (r["method"], r["proportion"]) == (method, "1.0")]

    assert dice("stipple") == dice("stipple_single")
    rounds = read_csv(done / "out" / "rounds.csv")
    assert {(row["method"], row["proportion"]) for row in rounds} == {
        ("stipple", "0.5"),
        ("relabelling", "0.5"),
    }
    curves = read_csv(done / "out" / "curves.csv")
    kinds = {(row["method"], row["round"]) for row in curves if row["proportion"] == "0.5"}
    assert kinds == {(m, "0") for m in METHODS} | {("stipple", "1"), ("relabelling", "1")}
    assert {row["epoch"] for row in curves} == {"1", "2"}


def test_its_networks_segment_as_they_did_in_the_study(done, tmp_path, capsys):
    cell = done / "out" / "cells" / "p050_fold0_seed0"
    networks = [path for path in (cell / "networks").iterdir() if path.is_dir()]
    # what `segment` takes of a network's rounds
    weights = {sha256(weights_folder(path) / "model.pt"): path for path in networks}
    for method in ("baseline", "stipple"):
        record = json.loads((cell / "methods" / method / "provenance.json").read_text("utf-8"))
        network, results = weights[record["weights"]["model"]], tmp_path / method
        arguments = ["segment", cell / "test.json", "--models", network, "--out", results]
        assert main(list(map(str, arguments))) == 0
        for path in (cell / "methods" / method).glob("*_seg.nii.gz"):
            same = np.asarray(nib.load(path).dataobj)
            assert np.array_equal(np.asarray(nib.load(results / path.name).dataobj), same)
        assert len(list(results.glob("*_seg.nii.gz"))) == 2
    told = capsys.readouterr().err
    assert "scan 2/2: " in told
    assert "it/s" not in told


def test_published_rows_are_those_of_the_results(done, tmp_path):
    count = write_rows(done / "out", tmp_path / "rows.csv")
    published, own = read_csv(tmp_path / "rows.csv"), read_csv(done / "out" / "results.csv")
    assert count == len(published) == len(own)
    columns = ("method", "proportion", "fold", "dice", "asd_mm", "seconds")

    def sorted_rows(rows):
        return sorted((*map(row.get, columns), Path(row["scan"]).name[:4]) for row in rows)

    assert sorted_rows(published) == sorted_rows(own)
    steps = {(row["method"], row["proportion"]): int(row["steps"]) for row in published}
    assert steps["stipple", "0.5"] > steps["stipple_single", "0.5"] > 0
    assert steps["stipple", "1.0"] == steps["stipple_single", "1.0"]


def test_networks_know_what_their_organs_are_called(done):
    models = list((done / "out" / "cells").glob("*/networks/*/*/models"))
    assert models
    assert {name for folder in models for name in read_model(folder).organs.values()} == {"cube"}


def test_the_report_is_there_with_pictures(done):
    text = (done / "out" / "report.html").read_text(encoding="utf-8")
    assert "A small study" in text
    assert "Recovered miss" in text or "Removed false positive" in text
    assert (done / "out" / "report.md").is_file()


def test_a_rerun_does_nothing_and_more_cells_only_what_is_missing(done, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done / "out", out)
    path = written(tmp_path, datalist=str(done / "data" / "dataset.json"))
    before = stamps(out)
    run_study(path, out)
    assert {p: t for p, t in stamps(out).items() if p.parent.name != "p050"} == before
    lost = out / "cells" / "p050_fold0_seed0" / "methods" / "stipple"
    shutil.rmtree(lost)
    run_study(path, out)
    after = stamps(out)
    redone = {p for p in before if after[p] != before[p]}
    assert lost / "scores.csv" in redone
    assert not [p for p in redone if p.name in {"model.pt", "quality.csv"}]
    assert not [p for p in redone if "fold1" in str(p) or "p100" in str(p)]


def test_no_test_scan_or_withheld_label_reaches_the_training(done, tmp_path, monkeypatch):
    """A job whose test scans and withheld labels are garbage ends with the same networks."""
    job_folder = done / "out" / "cells" / "p050_fold0_seed0"
    shutil.copytree(done / "data", tmp_path / "data")
    sections = json.loads((job_folder / "training.json").read_text())
    test = json.loads((job_folder / "test.json").read_text())["test"]
    names = [Path(item["truth"]).name for item in sections["unlabelled"]]
    names += [Path(item[key]).name for item in test for key in ("image", "label")]
    assert len(names) == 2 + 4
    for name in names:
        (tmp_path / "data" / name).write_bytes(b"garbage")

    # what may read them: the check that they can be scored, and after training the scoring of
    # pseudo-labels and the test itself
    monkeypatch.setattr("stipple_monai.self_training.checks.known_truth", lambda *_: None)
    monkeypatch.setattr(
        "stipple_monai.self_training.rounds.write_quality",
        lambda path, items, organs, background: [["", 1, 0, "", "", ""]],
    )
    monkeypatch.setattr(
        "stipple_monai.self_training.rounds.gather_quality", lambda path, tables: None
    )
    monkeypatch.setattr(
        study, "run_bundle", lambda *a, **k: (Path(k["output_dir"]) / "scores.csv").touch()
    )
    it = study.read_study(written(tmp_path))
    methods = study.read_methods(BUNDLE / "studies" / "methods.yaml", it)
    jobs = [j for j in study.plan_jobs(it, methods) if j.place == job_folder.name]
    for job in jobs:
        study.run_job(it, job, Path(it.datalist), tmp_path / "out", BUNDLE / "configs")
    again = tmp_path / "out" / "cells" / job_folder.name / "networks"
    files = [p for p in again.rglob("*") if p.parent.name == "models" and p.is_file()]
    models = sorted(p.relative_to(again) for p in files)
    assert len([p for p in models if p.name == "model.pt"]) == 5
    for name in models:
        # a record has the paths of its settings
        here = (again / name).read_bytes().replace(str(tmp_path).encode(), str(done).encode())
        assert here == (job_folder / "networks" / name).read_bytes(), name
    for name in again.rglob("*_pseudo.nii.gz"):
        other = job_folder / "networks" / name.relative_to(again)
        assert name.read_bytes() == other.read_bytes()


def test_a_failed_job_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    dataset(tmp_path)
    real = study.self_train

    def fails_with_prior(datalist, out, **options):
        if "baseline" not in options["overlays"]:
            raise RuntimeError("out of memory")
        return real(datalist, out, **options)

    monkeypatch.setattr(study, "self_train", fails_with_prior)
    few = {"methods": ["stipple_single", "baseline"], "proportions": [1.0], "run_folds": [0]}
    path = written(tmp_path, **few)
    with pytest.raises(StudyError, match=r"1 of 2 jobs failed, see .*error.txt. The report has"):
        run_study(path, tmp_path / "out")
    (error,) = (tmp_path / "out").rglob("*.error.txt")
    assert "out of memory" in error.read_text()
    assert {r["method"] for r in read_csv(tmp_path / "out" / "results.csv")} == {"baseline"}
    assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "1 of 1 jobs failed" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 0
    assert not list((tmp_path / "out").rglob("*.error.txt"))


def test_studies_that_contradict_what_is_there(done, tmp_path):
    shutil.copytree(done / "out", tmp_path / "out")
    (tmp_path / "data").symlink_to(done / "data")
    same = {"datalist": str(done / "data" / "dataset.json")}
    with pytest.raises(
        DatasetError, match=r"begun with other options: .*, folds \(\d, now 2\), see"
    ):
        run_study(written(tmp_path, options={}, folds=2, run_folds=[0], **same), tmp_path / "out")
    other = {"definitions": {**DEFINITIONS, "stipple": {"shares": [0.1]}}}
    with pytest.raises(
        DatasetError, match=r"was begun with other stipple: shares \(.*, now \[0\.1\]\), see"
    ):
        run_study(written(tmp_path, **other, **same), tmp_path / "out")


def test_a_study_of_before_methods_had_an_entry_goes_on(tmp_path):
    def remember(**entries):
        config = written(tmp_path, datalist=None, phantom={"cases": 2}, **entries)
        asked = study.read_study(config)
        methods = study.read_methods(BUNDLE / "studies" / "methods.yaml", asked)
        study._remember(tmp_path, asked, methods, BUNDLE / "configs")

    remember()
    record = tmp_path / "study.json"
    content = json.loads(record.read_text())
    for method in content["methods"].values():
        del method["evaluate_options"]
    del content["methods"]["stipple_single"]
    record.write_text(json.dumps(content), encoding="utf-8")
    remember()
    assert json.loads(record.read_text())["methods"]["baseline"]["evaluate_options"] == {}
    other = {
        **DEFINITIONS,
        "baseline": {"overlays": ["baseline"], "evaluate_options": {"floor": 1}},
    }
    with pytest.raises(DatasetError, match="was begun with other baseline: evaluate_options"):
        remember(definitions=other)


@pytest.mark.parametrize(
    "entries",
    [
        {"options": {"max_epoch": 1}},
        {"definitions": {"baseline": {"options": {"max_epoch": 1}}}},
        # of training, which an evaluation would take no notice of
        {"definitions": {"baseline": {"evaluate_options": {"max_epochs": 1}}}},
        {"definitions": {"baseline": {"evaluate_options": {"atlas_names": ["liver"]}}}},
    ],
)
def test_options_that_no_config_has_stop_a_study_before_it_begins(entries, tmp_path):
    dataset(tmp_path)
    with pytest.raises(ValueError, match=r"Knobs must be in the configs, got (max_epoch|atlas)"):
        run_study(written(tmp_path, methods=["baseline"], **entries), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overlays_and_configs_that_changed_their_content(done, tmp_path):
    """An overlay counts by what it holds; a study of before that counted is taken up."""
    shutil.copytree(done / "out", tmp_path / "out")
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    record = tmp_path / "out" / "study.json"
    overlay = tmp_path / "more.yaml"
    overlay.write_text("strength: 0.5\n", encoding="utf-8")
    same = {"datalist": str(done / "data" / "dataset.json"), "methods": METHODS[:1]}
    more = {"half": {"overlays": ["baseline"], "evaluate": [str(overlay)]}}
    also = {**same, "methods": [METHODS[0], "half"], "definitions": {**DEFINITIONS, **more}}

    def rerun(**entries):
        return run_study(written(tmp_path, **entries), tmp_path / "out", bundle=tmp_path / "bundle")

    rerun(**also)
    assert json.loads(record.read_text())["configs"].keys() >= {"train", "baseline", str(overlay)}
    overlay.write_text("strength: 0.5  # as before\n", encoding="utf-8")
    rerun(**also)
    overlay.write_text("strength: 0.25\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=f"begun with other configs: {overlay}, see study.json"):
        rerun(**also)
    rerun(**same)
    train = tmp_path / "bundle" / "configs" / "train.yaml"
    train.write_text(train.read_text(encoding="utf-8") + "new: 1\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"begun with other configs: train, see study\.json"):
        rerun(**same)
    content = json.loads(record.read_text())
    del content["configs"]
    record.write_text(json.dumps(content), encoding="utf-8")
    rerun(**same)
    assert "train" in json.loads(record.read_text())["configs"]


@pytest.mark.slow
def test_jobs_in_processes_of_their_own(done, tmp_path):
    pytest.importorskip("submitit")
    shutil.copytree(done / "data", tmp_path / "data")
    # one, whose imports take longer than its work; an interrupt is tried on two
    few = {"methods": ["stipple_single"], "proportions": [1.0], "run_folds": [0]}
    path = written(tmp_path, datalist="nowhere.json", **few)
    arguments = [str(path), "--datalist", str(tmp_path / "data" / "dataset.json")]
    arguments += ["--out", str(tmp_path / "out"), "--workers", "2"]
    assert main(["study", *arguments]) == 0
    rows = read_csv(tmp_path / "out" / "results.csv")
    whole = read_csv(done / "out" / "results.csv")
    for row in rows:
        (other,) = [
            r
            for r in whole
            if all(r[k] == row[k] for k in ("method", "proportion", "fold"))
            and Path(r["scan"]).name == Path(row["scan"]).name
        ]
        assert row["dice"] == other["dice"]
    assert len(rows) == 2


def processes(word):
    """Numbers of running processes whose command lines contain a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        found += [int(path.parent.name)] if word in line else []
    return found


@pytest.mark.slow
@needs_fork
@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="looks for processes in /proc")
def test_an_interrupt_ends_the_jobs_as_well(tmp_path):
    pytest.importorskip("submitit")
    dataset(tmp_path)
    path = written(
        tmp_path,
        methods=["baseline", "stipple_single"],
        options={**KNOBS, "max_epochs": 1000},
    )
    out = tmp_path / "out"
    command = ["stipple_monai", "study", str(path), "--out", str(out), "--workers", "2"]

    def run():
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        sys.argv = command
        runpy.run_module("stipple_monai", run_name="__main__")

    child = fork(run)
    jobs = str(out / "jobs")
    try:
        begun = "cells/*/networks/*/round_0/models.part/curve.csv"
        until(lambda: len(list(out.glob(begun))) >= 2, child)
        assert len(processes(jobs)) >= 2
        os.kill(child, signal.SIGTERM)
        assert exit_status(child) == 130
        until(lambda: not processes(jobs))
    except BaseException:
        for number in (child, *processes(jobs)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        raise
    assert not list(out.glob("cells/*/methods/*"))


def until(condition, child=None, limit_s=300):
    """Wait for a condition, as long as a fork lives."""
    limit = time.monotonic() + limit_s
    while not condition():
        assert child is None or os.waitpid(child, os.WNOHANG) == (0, 0)
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_without_submitit_workers_say_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("stipple_monai.study.workers.has_submitit", False)
    dataset(tmp_path)
    arguments = [str(written(tmp_path)), "--out", str(tmp_path / "out"), "--workers", "2"]
    assert main(["study", *arguments]) == 1
    assert "pip install 'stipple-monai[study]'" in capsys.readouterr().err


def test_slurm_gets_its_parameters(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    seen = {}

    class Finished:
        job_id = "1"

        def done(self):
            return True

        def exception(self):
            return None

        def result(self):
            return None

    class Queue:
        def __init__(self, folder, cluster):
            seen["cluster"] = cluster

        def update_parameters(self, **parameters):
            seen.update(parameters)

        def submit(self, *arguments):
            seen["job"] = arguments
            return Finished()

    monkeypatch.setattr(submitit, "AutoExecutor", Queue)
    dataset(tmp_path)
    few = {"methods": ["baseline"], "proportions": [1.0], "run_folds": [0]}
    slurm = {"slurm_partition": "gpu", "timeout_min": 60}
    with pytest.raises(StudyError, match="No cell is finished in"):
        run_study(written(tmp_path, **few), tmp_path / "out", workers=4, slurm=slurm)
    assert seen["cluster"] == "slurm"
    assert (seen["slurm_partition"], seen["timeout_min"]) == ("gpu", 60)
    assert any(isinstance(given, Study) for given in seen["job"])


def test_a_generated_phantom(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(study, "_one_by_one", lambda jobs: seen.extend(jobs) or [])
    entries = {"datalist": None, "phantom": {"cases": 3, "size": 16, "progress": False}}
    with pytest.raises(StudyError, match="No cell is finished"):
        run_study(written(tmp_path, **entries), tmp_path / "out")
    assert len(read_datalist(seen[0][2], "training")) == 3


def test_a_phantoms_organs_have_names_in_the_report(tmp_path, monkeypatch):
    """Of cells that were made up, when the study ends and when its report is written anew."""

    def finish(arguments):
        for _, job, _, out, _ in arguments:
            place = out / "cells" / job.place
            models = place / "networks" / job.network / "round_0" / "models"
            models.mkdir(parents=True)
            curve = ["epoch", "loss", "train_dice", "validation_dice"]
            write_csv(models / "curve.csv", curve, [[1, 0.5, 0.5, ""]])
            cell = place / "methods" / "baseline"
            cell.mkdir(parents=True)
            write_json(cell / "network.json", {"round": "round_0"})
            rows = [["a", k, 0.5, *[1] * (len(SCORE_COLUMNS) - 3)] for k in (1, 2)]
            write_csv(cell / "scores.csv", SCORE_COLUMNS, rows)
        return []

    monkeypatch.setattr(study, "_one_by_one", finish)
    phantom = {"cases": 3, "size": 16, "organs": "all", "progress": False}
    entries = {"datalist": None, "phantom": phantom, "methods": ["baseline"], "run_folds": [0]}
    page = run_study(written(tmp_path, **entries), tmp_path / "out")
    told = "| Method | labels | n | pancreas | liver | mean |"
    assert told in page.with_suffix(".md").read_text("utf-8")
    page.with_suffix(".md").unlink()
    assert rewrite_report(tmp_path / "out") == page
    assert told in page.with_suffix(".md").read_text("utf-8")
