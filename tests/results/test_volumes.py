"""Volumes, names and records of segmentations."""

import csv
import json
import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from stipple_monai import DatasetError
from stipple_monai.data import write_datalist
from stipple_monai.data.datalist import label_names
from stipple_monai.data.naming import unique_names
from stipple_monai.inferers.prior_driven import CONFIDENCE_META, POSITION_META
from stipple_monai.results.volumes import (
    ScanNames,
    VolumeTable,
    read_records,
    write_tables,
)


@pytest.mark.parametrize(
    ("scans", "names"),
    [
        ([], []),
        (["/a/x.nii", "/a/y.nii.gz"], ["x", "y"]),
        (["/a/pat.1.nii.gz", "/a/1.2.840.7"], ["pat.1", "1.2.840.7"]),
        (["/p/1/ct/a.nii", "/p/2/ct/a.nii", "/p/b.nii"], ["1_ct_a", "2_ct_a", "b"]),
        (["/p/1/CT.nii", "/p/2/ct.nii"], ["1_CT", "2_ct"]),
        (["/a_b/c.nii", "/a/b_c.nii", "/z/c.nii"], ["a_b_c", "b_c", "z_c"]),
        (["/a/x.nii", "/a/b/x.nii"], ["a_x", "b_x"]),
        (["/x.nii", "/b/x.nii"], ["x", "b_x"]),
    ],
)
def test_scans_have_names_of_their_own(scans, names):
    assert unique_names(scans) == names


@pytest.mark.parametrize(
    ("scans", "told"),
    [
        (["/a/x.nii", "/a/x.nii.gz"], "/a/x.nii and /a/x.nii.gz"),
        (["/b/y.nii", "/a_b/x.nii", "/a_b_x.nii", "/c/x.nii"], "/a_b/x.nii and /a_b_x.nii"),
    ],
)
def test_scans_that_nothing_tells_apart_are_refused(scans, told):
    with pytest.raises(DatasetError, match=f"names of their own, got {told}"):
        unique_names(scans)


def test_names_come_from_the_items_or_the_files():
    items = [{"image": "/a/1.2.3"}, {"image": ["/b/t1.nii", "/b/t2.nii"], "name": "seven"}]
    names = ScanNames(items)
    assert names["/b/../b/t1.nii"] == "seven"
    assert names({"filename_or_obj": "/a/1.2.3"}, None) == {"subject": "1.2.3.nii.gz", "idx": None}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "background", "2": "left kidney"}, {0: "background", 2: "left kidney"}),
        ({"background": 0, "left kidney": 2}, {0: "background", 2: "left kidney"}),
        (None, {}),
        (["liver"], {}),
    ],
)
def test_labels_of_both_styles(tmp_path, labels, expected):
    metadata = {} if labels is None else {"labels": labels}
    write_datalist(tmp_path / "d.json", {"test": []}, metadata=metadata)
    assert label_names(tmp_path / "d.json") == expected


def run(folder, items, batches, organs=(1, 2)):
    write_datalist(folder / "d.json", {"test": []}, metadata={"labels": {"1": "liver"}})
    engine = Engine(lambda engine, batch: batch)
    names = ScanNames(items)
    table = VolumeTable(folder, organs, names=names, datalist=folder / "d.json")
    table.attach(engine)
    engine.run(batches)


def result(scan, *, located=True):
    values = torch.zeros(1, 4, 5, 6)
    values[0, :2] = 1
    pred = MetaTensor(values, affine=torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0])))
    if located:
        pred.meta[POSITION_META] = torch.tensor([[1.234, -5.0, 6.0], [math.nan] * 3])
        pred.meta[CONFIDENCE_META] = torch.tensor([0.98765, 0.25])
    image = MetaTensor(torch.zeros(1, 4, 5, 6), meta={"filename_or_obj": scan})
    return {"pred": pred, "image": image}


def test_rows_of_all_scans_with_their_units(tmp_path):
    scans = ["/s/b.nii.gz", "/s/a.nii.gz"]
    batches = [[result(scans[0])], [result(scans[1], located=False)]]
    run(tmp_path, [{"image": scan} for scan in scans], batches)
    assert (tmp_path / "volumes.csv").read_text().splitlines() == [
        "scan,organ,name,volume_ml,r_mm,a_mm,s_mm,confidence,remarks",
        "/s/a.nii.gz,1,liver,1.200,,,,,",
        "/s/a.nii.gz,2,organ 2,0.000,,,,,",
        "/s/b.nii.gz,1,liver,1.200,1.23,-5.00,6.00,0.988,",
        "/s/b.nii.gz,2,organ 2,0.000,,,,0.250,",
    ]
    both = json.loads((tmp_path / "volumes.json").read_text())
    assert list(both) == ["a", "b"]
    first = both["b"]["organs"][0]
    assert first["volume_ml"] == pytest.approx(1.2)
    assert first["position_mm"] == pytest.approx([1.234, -5, 6])
    assert both["b"]["organs"][1]["position_mm"] is None
    assert both["a"]["organs"][0]["confidence"] is None
    assert both == read_records(tmp_path)


def test_the_tables_keep_the_scans_of_earlier_runs(tmp_path):
    for scan in ("/s/a.nii", "/s/b.nii"):
        run(tmp_path, [{"image": scan}], [[result(scan)]])
    with (tmp_path / "volumes.csv").open(encoding="utf-8") as file:
        assert [row["scan"] for row in csv.DictReader(file)] == ["/s/a.nii"] * 2 + ["/s/b.nii"] * 2


def test_a_killed_run_leaves_the_records_of_what_was_done(tmp_path):
    items = [{"image": "/s/a.nii"}, {"image": "/s/b.nii"}]
    torn = result("/s/b.nii")
    torn["pred"].meta[POSITION_META] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="zip"):
        run(tmp_path, items, [[result("/s/a.nii")], [torn]])
    assert set(read_records(tmp_path)) == {"a"}
    assert not (tmp_path / "volumes.csv").exists()
    assert write_tables(tmp_path) == tmp_path / "volumes.csv"
    assert (tmp_path / "volumes.csv").read_text().count("a.nii") == 2


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"scan": "x"}'])
def test_what_is_no_record_is_not_taken_for_one(tmp_path, text):
    (tmp_path / "x_volumes.json").write_text(text)
    with pytest.raises(DatasetError, match=r"x_volumes.json` must be a record of a segmentation"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    "name", ["../../escaped", "/abs", "a/b", "a\\b", "", ".hidden", 7, "x" * 201, "a\0b", "a\nb"]
)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(DatasetError, match="`name` must be a name of 1 to 200 bytes without /"):
        ScanNames([{"image": "/a/ct.nii.gz", "name": name}])


def test_two_scans_of_one_name_are_refused():
    items = [{"image": f"/{n}/ct.nii.gz", "name": name} for n, name in (("x", "A"), ("y", "a"))]
    with pytest.raises(DatasetError, match="names of their own, got 'a' twice"):
        ScanNames(items)
