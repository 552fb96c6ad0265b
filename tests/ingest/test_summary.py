"""What `ingest` says at its end: how many labels there are, and what they do not go with."""

import nibabel as nib
import numpy as np
import pytest

from stipple_monai.__main__ import main
from stipple_monai.ingest import Options, ingest, summary_lines

SHAPE = (24, 20, 12)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([-2.0, -2.0, 3.0, 1.0])), path)


@pytest.fixture
def source(tmp_path):
    """Two scans with a label, one of which has a further value, and one without."""
    for number in range(3):
        label = np.zeros(SHAPE, np.uint8)
        label[3:10, 4:12, 2:6] = 1
        image = np.random.default_rng(number).normal(40, 20, SHAPE) + 90 * label
        if number == 1:
            label[15:18, 14:17, 8:10] = 7
        write(tmp_path / "src" / "images" / f"s{number}.nii.gz", image.astype(np.int16))
        if number < 2:
            write(tmp_path / "src" / "labels" / f"s{number}.nii.gz", label)
    return tmp_path / "src"


@pytest.mark.slow
def test_scans_labels_and_values_are_counted(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["ingest", str(source), str(out), "--names", "1=pancreas", "6=liver"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "scans: 3, with label: 2 (1 pancreas in 2, 7 in 1), without: 1 (s2)",
        "warning: no label has 6 (liver), which was named; labels have 1, 7.",
        "warning: the value 7 of s1 has no name and becomes 'organ 7': give one by --names 7=NAME, "
        "or choose values by --map.",
        str(out / "dataset.json"),
    ]


@pytest.mark.slow
def test_values_of_one_name_are_told_of(source, tmp_path):
    named = Options(names={1: "kidney", 7: "Kidney"})
    path = ingest(source, tmp_path / "out", options=named, progress=False)
    assert summary_lines(path.parent)[1:] == [
        "warning: the values 1, 7 have one name, kidney: give each its own by --names."
    ]


@pytest.mark.slow
def test_without_names_no_value_is_missed(source, tmp_path):
    path = ingest(source, tmp_path / "out", progress=False)
    line, note = summary_lines(path.parent)
    assert note.startswith("note: organs have no names, and are called 'organ ")
    assert line == "scans: 3, with label: 2 (1 in 2, 7 in 1), without: 1 (s2)"


@pytest.mark.slow
def test_where_labels_were_looked_for(source, tmp_path):
    (source / "images").rename(source / "img")
    (source / "labels").rename(source / "lab")
    path = ingest(source, tmp_path / "out", progress=False)
    count, warning = summary_lines(path.parent)
    assert count == "scans: 3, with label: 0, without: 3"
    assert warning == (
        f"warning: no scan has a label; looked for in {source}: its folders labels, label, "
        "labelsTr, masks, segmentations and beside the scans. Give their folder by --labels."
    )
    path = ingest(source, tmp_path / "other", labels=source / "lab", progress=False)
    assert summary_lines(path.parent)[0].startswith("scans: 3, with label: 2")


@pytest.mark.slow
def test_an_organ_that_does_not_stand_out_is_not_confirmed(source, tmp_path):
    """The other organ of its label is."""
    path = ingest(source, tmp_path / "out", progress=False)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in path.with_name("qa.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| s1 ")
    ]
    assert [(row[4], row[9]) for row in rows] == [("1", "confirmed"), ("7", "undecided")]
    assert float(rows[1][8]) < 0.1
