"""The run on a GPU, tried on the CPU with tiny networks; its figures mean nothing."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import packed_scans  # noqa: E402

from stipple_monai.data import label_names, read_datalist  # noqa: E402
from stipple_monai.files import write_json  # noqa: E402

TABLES = {
    "environment": "Environment",
    "benchmarks, fusion.py": "Forward and backward, 1 × 32 × 32, cpu, float32",
    "benchmarks, inference.py": "Volume of 32 × 32 × 8, measured whole, cpu",
    "benchmarks, positioning_speed.py": "unsure, 128 × 128 × 72, cpu",
    "benchmarks, placing.py": "Placing a prior on 64 × 64 × 1, cpu",
    "benchmarks, loading.py": "Loading slices of 128 × 128",
    "paper": "Training at the paper's settings, batch of 2 × 128 × 128",
    "cells": "Dice by cell",
}


@pytest.mark.slow
def test_every_part_writes_its_tables_on_the_cpu(tmp_path):
    words = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(
        words,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert "Failed" not in done.stdout
    with (tmp_path / "tables.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {(row["section"], row["table"]) for row in rows}
    assert set(TABLES.items()) <= found
    assert any(section == "benchmarks, throughput.py" for section, _ in found)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "deselected" in report
    assert "failed" not in report.split("pytest -m cuda")[1]
    with (tmp_path / "cells.csv").open(encoding="utf-8") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"baseline", "stipple_single"}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.md", "tables.csv", "cells.csv", "cells.json", "log.txt"}


def report(folder):
    return gpu.Report(folder, "cpu")


def test_what_exceeds_its_limit_is_ended_with_what_it_started(tmp_path):
    text = "import subprocess, time; "
    text += "print('### T\\n| a | b |\\n|---|---|\\n| r | 1 |', flush=True); "
    text += "child = subprocess.Popen(['sleep', '60']); "
    text += f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    running = gpu.Running("endless", gpu.command([sys.executable, "-c", text]), 2.0)
    written = report(tmp_path)
    started = time.monotonic()
    gpu.wait(running, written, lambda r: written.put("part", gpu.only_tables(r.text())))
    assert time.monotonic() - started < 20
    assert running.outcome().startswith("endless: ended at its limit")
    child = Path("/proc") / (tmp_path / "child").read_text(encoding="ascii") / "stat"
    # a zombie has ended, too
    assert not child.exists() or child.read_text(encoding="utf-8").split()[2] == "Z"
    assert "part,T,r,b,1" in (tmp_path / "tables.csv").read_text(encoding="utf-8")


def test_a_part_that_fails_does_not_stop_the_rest(tmp_path, monkeypatch):
    run = gpu.Run(report(tmp_path), time.monotonic() + 60, True, tmp_path / "scratch", None, 1)
    monkeypatch.setattr(gpu.Run, "environment", lambda self: 1 / 0)
    monkeypatch.setattr(gpu.Run, "cells", lambda self: self.report.put("cells", "done"))
    run.go(["environment", "cells"])
    assert "division by zero" in run.report.texts["environment"]
    assert run.report.texts["cells"] == "done"


def test_a_script_that_fails_is_reported_with_its_last_lines(tmp_path):
    run = gpu.Run(report(tmp_path), time.monotonic() + 60, True, tmp_path, None, 1)
    words = ["unpack", "--data", str(tmp_path / "none.zip"), "--out", str(tmp_path / "scans")]
    run.one_script("part", "packed_scans.py", words, 30)
    assert "failed (1)" in run.report.texts["part"]
    assert "none.zip" in run.report.texts["part"]


def test_cells_without_scans_say_what_is_missing(tmp_path):
    run = gpu.Run(report(tmp_path), time.monotonic() + 60, False, tmp_path, None, 1)
    run.go(["cells"])
    assert "give --data" in run.report.texts["cells"]


def test_values_of_markdown_tables():
    first = "### One\n\n| | x | y |\n|---|---:|---:|\n| a | 1 | 2 |\n"
    text = f"{first}\nNote.\n\n| | z |\n|---|---|\n| b | 3 |"
    assert gpu.table_values(text) == [
        ["One", "a", "x", "1"],
        ["One", "a", "y", "2"],
        ["One", "b", "z", "3"],
    ]


def test_packed_scans_are_the_same(tmp_path):
    rng = np.random.default_rng(0)
    affine = np.diag([-1.5, 1.5, 3.0, 1.0])
    items = []
    for name in ("a", "b"):
        image = nib.Nifti1Image(rng.integers(0, 256, (6, 5, 4), dtype=np.uint8), affine)
        image.header.set_slope_inter(1.5, -125)
        label = nib.Nifti1Image(rng.integers(0, 12, (6, 5, 4), dtype=np.uint8), affine)
        paths = {"image": tmp_path / f"{name}.nii.gz", "label": tmp_path / f"{name}_label.nii.gz"}
        nib.save(image, paths["image"])
        nib.save(label, paths["label"])
        items.append({key: path.name for key, path in paths.items()})
    write_json(tmp_path / "dataset.json", {"labels": {"1": "liver"}, "training": items})
    packed_scans.pack(tmp_path, tmp_path / "packed", parts=2)
    for part in (1, 2):
        packed_scans.unpack(tmp_path / "packed" / f"scans_{part}.zip", tmp_path / "out")
        assert len(read_datalist(tmp_path / "out" / "dataset.json", "training")) == part
    assert label_names(tmp_path / "out" / "dataset.json") == {1: "liver"}
    found = read_datalist(tmp_path / "out" / "dataset.json", "training")
    for expected, item in zip(items, found, strict=True):
        for kind in ("image", "label"):
            one, other = nib.load(tmp_path / expected[kind]), nib.load(item[kind])
            np.testing.assert_array_equal(other.get_fdata(), one.get_fdata())
            np.testing.assert_array_equal(other.affine, one.affine)
            assert other.get_data_dtype() == one.get_data_dtype()
