"""Ingest: from folders of all kinds to a checked dataset; what is refused, repaired, resumed."""

import json
import multiprocessing
import random
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.real_data import DATA, real
from helpers.series import write_series
from monai.data import MetaTensor, load_decathlon_datalist

from stipple_monai import DatasetError
from stipple_monai.__main__ import main
from stipple_monai.data import read_sections
from stipple_monai.ingest.pairs import Options
from stipple_monai.ingest.run import ingest
from stipple_monai.results.dicom_seg import series_files, write_dicom_seg

SHAPE = (40, 36, 20)
NOISE = np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.int16)
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def organ(seed=0):
    """An image of noise with an organ in one corner, and its label."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    label[4:14, 5:15, 3:9] = 1
    return (rng.normal(40, 20, SHAPE) + 80 * label).round().astype(np.int16), label


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def pairs(tmp_path):
    """Two pairs of NIfTI files."""
    for number in range(2):
        image, label = organ(number)
        save(tmp_path / "src" / "images" / f"img{number}.nii.gz", image)
        save(tmp_path / "src" / "labels" / f"label{number}.nii.gz", label)
    return tmp_path / "src"


def quiet(source, out, **knobs):
    options = Options(**{k: knobs.pop(k) for k in list(knobs) if k in Options._fields})
    return ingest(source, out, options=options, progress=False, **knobs)


def report(out):
    return json.loads((out / "qa.json").read_text(encoding="utf-8"))


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_pairs_become_a_dataset(pairs, tmp_path):
    path = quiet(pairs, tmp_path / "out", names={1: "liver"})
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["labels"] == {"0": "background", "1": "liver"}
    assert (content["numTraining"], content["modality"]) == (2, {"0": "unknown"})
    items = load_decathlon_datalist(path, True, "training")
    image, label = organ(0)
    np.testing.assert_array_equal(voxels(items[0]["image"]), image)
    np.testing.assert_array_equal(voxels(items[0]["label"]), label)
    assert nib.load(items[0]["label"]).get_data_dtype() == np.uint8
    np.testing.assert_array_equal(nib.load(items[0]["image"]).affine, AFFINE)
    found = report(tmp_path / "out")
    assert found["summary"] == {
        **{"ingested": 2, "repaired": 0, "refused": 0, "skipped": 0},
        **{"undecided": 0, "without_label": 0},
    }
    (liver,) = found["cases"][0]["label"]["organs"]
    assert (liver["value"], liver["name"], liver["voxels"]) == (1, "liver", 600)
    assert liver["volume_ml"] == pytest.approx(600 * 12 / 1000)
    assert liver["mean_inside"] == pytest.approx(image[label == 1].mean(), abs=0.01)
    assert len(found["cases"][0]["alignment"]["scores"]) == 8
    text = (tmp_path / "out" / "qa.md").read_text(encoding="utf-8")
    assert "| img0 | 40 × 36 × 20 | 2 × 2 × 3 | LPS | liver | 7.2 | 1" in text


def test_a_reversed_label_is_refused_and_repaired_on_request(pairs, tmp_path):
    label = pairs / "labels" / "label0.nii.gz"
    save(label, organ(0)[1][:, ::-1])
    with pytest.raises(DatasetError, match=r"1 of 2 that are refused, img0: .* along H .*--repair"):
        quiet(pairs, tmp_path / "out")
    out = tmp_path / "out"
    assert not (out / "dataset.json").exists()
    assert not (out / "imagesTr" / "img0.nii.gz").exists()
    assert report(out)["summary"]["refused"] == 1
    assert "## Refused" in (out / "qa.md").read_text(encoding="utf-8")
    path = quiet(pairs, tmp_path / "repaired", repair=True)
    np.testing.assert_array_equal(voxels(path.parent / "labelsTr/img0.nii.gz"), organ(0)[1])
    case = report(tmp_path / "repaired")["cases"][0]
    assert (case["status"], case["alignment"]["reversed"]) == ("repaired", "H")
    assert case["label"]["notes"][0].startswith("Repaired: reversed along H, where it scores 0.")
    # the source is as it was
    np.testing.assert_array_equal(voxels(label), organ(0)[1][:, ::-1])


def test_what_is_refused_can_be_left_out(pairs, tmp_path):
    (pairs / "labels" / "label0.nii.gz").write_bytes(b"")
    path = quiet(pairs, tmp_path / "out", skip_refused=True)
    assert [Path(i["image"]).name for i in read_sections(path)["training"]] == ["img1.nii.gz"]
    (refused, _) = report(tmp_path / "out")["cases"]
    assert (refused["name"], refused["status"]) == ("img0", "refused")
    assert "must be a whole NIfTI file" in refused["reason"]
    (pairs / "labels" / "label1.nii.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match="usable cases, got 2 of 2 that are refused, img0: "):
        quiet(pairs, tmp_path / "none", skip_refused=True)
    assert not (tmp_path / "none" / "dataset.json").exists()


def test_weak_evidence_is_said_and_nothing_is_repaired(pairs, tmp_path):
    _, label = organ(0)
    save(pairs / "images" / "img0.nii.gz", NOISE)
    save(pairs / "labels" / "label0.nii.gz", label[::-1])
    quiet(pairs, tmp_path / "out", repair=True)
    case = report(tmp_path / "out")["cases"][0]
    assert (case["status"], case["alignment"]["verdict"]) == ("ingested", "undecided")
    assert "look at it" in case["label"]["notes"][0]
    np.testing.assert_array_equal(voxels(tmp_path / "out/labelsTr/img0.nii.gz"), label[::-1])


@pytest.mark.slow
def test_a_header_that_is_not_believed_needs_evidence(pairs, tmp_path):
    """Without header and without evidence, nobody knows how the label lies."""
    other = np.diag([2.0, 2, 3, 1])
    _, label = organ(0)
    save(pairs / "labels" / "label0.nii.gz", label[:, ::-1], other)
    with pytest.raises(
        DatasetError, match=r"img0: .* mm apart .* say so with `ingest --ignore-label-header"
    ):
        quiet(pairs, tmp_path / "a")
    with pytest.raises(DatasetError, match="reversed along H"):
        quiet(pairs, tmp_path / "b", ignore_header=True)
    quiet(pairs, tmp_path / "c", ignore_header=True, repair=True)
    np.testing.assert_array_equal(voxels(tmp_path / "c/labelsTr/img0.nii.gz"), label)
    notes = report(tmp_path / "c")["cases"][0]["label"]["notes"]
    assert "header puts it elsewhere" in notes[0]
    assert "Repaired" in notes[1]
    save(pairs / "images" / "img0.nii.gz", NOISE)
    with pytest.raises(DatasetError, match=r"whose header does not say where .* --flip"):
        quiet(pairs, tmp_path / "d", ignore_header=True, repair=True)


def test_a_label_that_fills_the_scan_is_undecided(pairs, tmp_path):
    save(pairs / "labels" / "label0.nii.gz", np.ones(SHAPE, np.uint8))
    quiet(pairs, tmp_path / "out")
    (organ_found,) = report(tmp_path / "out")["cases"][0]["label"]["organs"]
    assert organ_found["mean_around"] is None
    assert "NaN" not in (tmp_path / "out" / "qa.json").read_text(encoding="utf-8")


def test_all_labels_are_reversed_where_asked_for(pairs, tmp_path):
    for number in range(2):
        save(pairs / "labels" / f"label{number}.nii.gz", organ(number)[1][::-1, ::-1])
    quiet(pairs, tmp_path / "out", flip=(0, 1))
    np.testing.assert_array_equal(voxels(tmp_path / "out/labelsTr/img1.nii.gz"), organ(1)[1])
    case = report(tmp_path / "out")["cases"][0]
    assert case["label"]["notes"] == ["Reversed along W and H, as asked for."]
    assert case["alignment"]["verdict"] == "confirmed"


@pytest.fixture
def tcia(tmp_path):
    """Two patients of Pancreas-CT: nested UIDs, labels reversed along y under another header."""
    for number in (1, 2):
        image, label = organ(number)
        folder = (
            tmp_path / "tcia" / f"PANCREAS_{number:04d}" / f"1.2.3.4.5.6.{number}" / "1.2.3.4.5.7"
        )
        write_series(folder, image, spacing_mm=(2.0, 2.0, 3.0))
        save(
            tmp_path / "labels" / f"label{number:04d}.nii.gz",
            label[:, ::-1],
            np.diag([2.0, 2, 3, 1]),
        )
    (tmp_path / "tcia" / "PANCREAS_0025").mkdir()
    save(tmp_path / "labels" / "label0025.nii.gz", organ()[1])
    return tmp_path / "tcia"


@pytest.mark.slow
def test_pancreas_ct_as_downloaded(tcia, tmp_path, capsys):
    arguments = ["ingest", str(tcia), str(tmp_path / "out"), "--labels", str(tmp_path / "labels")]
    assert main([*arguments]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 2 that are refused, PANCREAS_0001: `label` must lie on the scan's grid" in said
    assert main([*arguments, "--ignore-label-header", "--repair", "--overwrite"]) == 0
    for number in (1, 2):
        image, label = organ(number)
        name = f"PANCREAS_{number:04d}.nii.gz"
        np.testing.assert_array_equal(voxels(tmp_path / "out/imagesTr" / name), image)
        np.testing.assert_array_equal(voxels(tmp_path / "out/labelsTr" / name), label)
    found = report(tmp_path / "out")
    assert found["summary"]["repaired"] == 2
    assert found["skipped"][0]["name"] == "PANCREAS_0025"
    assert "duplicates" in found["skipped"][0]["reason"]
    content = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert (content["modality"], content["labels"]["1"]) == ({"0": "CT"}, "pancreas")
    # the writer's patients are all called the same: nothing tells them apart
    assert "patient" not in content["training"][0]


@pytest.mark.slow
def test_scans_of_one_patient_are_kept_together(tmp_path):
    for number, patient in enumerate(["a", "a", "b"]):

        def call(image, k, patient=patient):
            image.PatientID = patient

        write_series(tmp_path / "src" / f"scan{number}", organ(number)[0], edit=call)

    def nameless(image, k):
        del image.PatientID, image.PatientName

    write_series(tmp_path / "src" / "scan3", organ(3)[0], edit=nameless)
    path = quiet(tmp_path / "src", tmp_path / "out")
    one, two, three, unknown = read_sections(path)["unlabelled"]
    assert "patient" not in unknown
    assert one["patient"] == two["patient"] != three["patient"]
    assert "a" not in (one["patient"], three["patient"])


@pytest.mark.slow
def test_a_damaged_series_is_refused_and_the_others_are_read(tmp_path):
    for name in ("torn", "two", "whole"):
        write_series(tmp_path / "src" / name, organ()[0])
    (tmp_path / "src" / "torn" / "003.dcm").write_bytes(b"")
    write_series(tmp_path / "second", organ()[0])
    for path in (tmp_path / "second").iterdir():
        path.rename(tmp_path / "src" / "two" / f"second_{path.name}")
    with pytest.raises(DatasetError, match=r"2 of 3 that are refused, torn: .*003\.dcm"):
        quiet(tmp_path / "src", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "imagesTs").iterdir()] == ["whole.nii.gz"]
    reasons = {c["name"]: c.get("reason", "") for c in report(tmp_path / "out")["cases"]}
    assert "must hold one DICOM series, got 2" in reasons["two"]


def test_nnunet_and_its_channels(tmp_path):
    image, label = organ()
    root = tmp_path / "Dataset001_Two"
    for name, part in (("p_1", "Tr"), ("p_2", "Ts")):
        save(root / f"images{part}" / f"{name}_0000.nii.gz", image)
        save(root / f"images{part}" / f"{name}_0001.nii.gz", -image)
    save(root / "labelsTr" / "p_1.nii.gz", 2 * label)
    content = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "a": 1, "b": 2},
    }
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    path = quiet(root, tmp_path / "out")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert (written["modality"], written["numTest"]) == ({"0": "CT", "1": "PET"}, 1)
    assert written["labels"] == {"0": "background", "1": "a", "2": "b"}
    (item,) = read_sections(path)["training"]
    np.testing.assert_array_equal(voxels(item["image"]), np.stack([image, -image], -1))
    assert Path(read_sections(path)["test"][0]["image"]).parent.name == "imagesTs"
    again = quiet(path.parent, tmp_path / "again")
    (item,) = read_sections(again)["training"]
    np.testing.assert_array_equal(voxels(item["image"]), np.stack([image, -image], -1))
    save(root / "imagesTr" / "p_1_0001.nii.gz", image, np.diag([2.0, 2, 5, 1]))
    with pytest.raises(DatasetError, match="Channels must lie on one grid"):
        quiet(root, tmp_path / "bad")


@pytest.mark.slow
def test_a_value_with_two_names_is_refused(tmp_path):
    pytest.importorskip("highdicom")
    for number, name in enumerate(["liver", "spleen"]):
        image, label = organ(number)
        folder = tmp_path / "src" / f"p{number}"
        affine = write_series(folder / "ct", image)
        write_dicom_seg(
            folder / "seg.dcm",
            MetaTensor(label[None].astype(np.float32), affine=affine),
            series_files(folder / "ct"),
            organs={1: name},
        )
    with pytest.raises(DatasetError, match=r"1 for 'liver' in p0 and for 'spleen' in p1: .*--map"):
        quiet(tmp_path / "src", tmp_path / "out")
    path = quiet(tmp_path / "src", tmp_path / "mapped", choose={"liver": 1, "spleen": 2})
    labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
    assert labels == {"0": "background", "1": "liver", "2": "spleen"}
    assert voxels(tmp_path / "mapped" / "labelsTr" / "p1.nii.gz").max() == 2


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros(SHAPE, np.uint8), "must hold an organ, got an empty one"),
        (organ()[1][:-1], r"grid of shape \(40, 36, 20\), got shape \(39, 36, 20\)"),
        (organ()[1] * 0.5, "whole numbers, got 0.5"),
    ],
)
def test_labels_that_cannot_be_used(pairs, tmp_path, array, match):
    save(pairs / "labels" / "label1.nii.gz", array)
    with pytest.raises(DatasetError, match=match):
        quiet(pairs, tmp_path / "out")


@pytest.mark.parametrize("sign", ["\n", "\t", "\x1b"])
def test_a_name_that_segment_refuses_is_refused(pairs, tmp_path, sign):
    image = pairs / "images" / "img1.nii.gz"
    image.rename(image.with_name(f"im{sign}g1.nii.gz"))
    with pytest.raises(DatasetError, match=r"(?s)1 of 2 that are refused.* control characters"):
        quiet(pairs, tmp_path / "out")


def test_a_scan_with_nan_is_refused(pairs, tmp_path):
    image = organ()[0].astype(np.float32)
    image[3] = np.nan
    save(pairs / "images" / "img1.nii.gz", image)
    with pytest.raises(
        DatasetError, match=r"`image` must be finite, got NaN or infinity in .*img1"
    ):
        quiet(pairs, tmp_path / "out")


@pytest.mark.parametrize(
    "affine",
    [
        np.array([[0, -1.8, 0.4, 9], [1.8, 0, 0, -70], [0, 0.5, 3, 1000], [0, 0, 0, 1.0]]),
        np.array([[2.0, 0, 0, 0], [0, 2, 1.1, 0], [0, 0, 3, 0], [0, 0, 0, 1]]),
        np.diag([2.0, -2, -3, 1]),
    ],
    ids=["oblique", "tilted gantry", "reversed"],
)
def test_any_grid_is_kept_as_it_is(tmp_path, affine):
    image, label = organ()
    save(tmp_path / "src" / "a_ct.nii.gz", image, affine)
    # the label is stored with its slices the other way round
    turn = np.diag([1.0, 1, -1, 1])
    turn[2, 3] = SHAPE[2] - 1
    save(tmp_path / "src" / "a_seg.nii.gz", label[..., ::-1], affine @ turn)
    (item,) = read_sections(quiet(tmp_path / "src", tmp_path / "out"))["training"]
    for key, expected in (("image", image), ("label", label)):
        file = nib.load(item[key])
        np.testing.assert_array_equal(np.asarray(file.dataobj), expected)
        np.testing.assert_allclose(file.affine, affine, atol=1e-5)
        assert file.header.get_xyzt_units()[0] == "mm"


def test_a_second_run_changes_nothing(pairs, tmp_path):
    quiet(pairs, tmp_path / "out")
    before = snapshot(tmp_path / "out" / "imagesTr") | snapshot(tmp_path / "out" / "qa")
    quiet(pairs, tmp_path / "out")
    assert snapshot(tmp_path / "out" / "imagesTr") | snapshot(tmp_path / "out" / "qa") == before


def test_refused_cases_are_tried_again(pairs, tmp_path):
    label = pairs / "labels" / "label0.nii.gz"
    whole = label.read_bytes()
    label.write_bytes(whole[:100])
    with pytest.raises(DatasetError, match="1 of 2 that are refused"):
        quiet(pairs, tmp_path / "out")
    done = (tmp_path / "out" / "imagesTr" / "img1.nii.gz").stat().st_mtime_ns
    label.write_bytes(whole)
    path = quiet(pairs, tmp_path / "out")
    assert len(read_sections(path)["training"]) == 2
    assert (tmp_path / "out" / "imagesTr" / "img1.nii.gz").stat().st_mtime_ns == done


def test_nothing_is_overwritten_unasked(pairs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"empty or hold this same ingest, got .*mine\.txt"):
        quiet(pairs, out)
    assert [p.name for p in out.iterdir() if p.name != "logs"] == ["mine.txt"]
    quiet(pairs, out, overwrite=True)
    assert (out / "mine.txt").read_text(encoding="utf-8") == "mine"
    with pytest.raises(DatasetError, match="hold this same ingest"):
        quiet(pairs, out, flip=(0,))
    image, _ = organ(5)
    save(pairs / "images" / "img0.nii.gz", image)
    with pytest.raises(DatasetError, match=r"has img0 as it was before .* changed: .*--overwrite"):
        quiet(pairs, out)
    (pairs / "images" / "img1.nii.gz").unlink()
    quiet(pairs, out, overwrite=True)
    np.testing.assert_array_equal(voxels(out / "imagesTr" / "img0.nii.gz"), image)
    # what an earlier ingest wrote and this one does not is gone
    assert not (out / "imagesTr" / "img1.nii.gz").exists()


def test_a_record_that_is_none_is_an_error(pairs, tmp_path):
    quiet(pairs, tmp_path / "out")
    for text, match in (("{", "must be JSON of an ingest"), ("[]", "an ingest, got list")):
        (tmp_path / "out" / "qa" / "img0.json").write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match=match):
            quiet(pairs, tmp_path / "out")


def test_output_must_not_lie_in_the_source(pairs):
    with pytest.raises(DatasetError, match="`out` must not lie in the source"):
        quiet(pairs, pairs / "out")


def test_an_output_that_cannot_be_written(pairs, tmp_path, capsys):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    assert main(["ingest", str(pairs), str(tmp_path / "out")]) == 1
    assert "`out` must be a folder, got the file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_a_full_disk_leaves_whole_files(pairs, tmp_path, monkeypatch, capsys):
    save_image, count = nib.save, iter(range(9))

    def full(image, path):
        if next(count) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        save_image(image, path)

    monkeypatch.setattr("nibabel.save", full)
    assert main(["ingest", str(pairs), str(tmp_path / "out")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    written = [p.name for p in (tmp_path / "out").rglob("*.nii.gz")]
    assert sorted(written) == ["img0.nii.gz", "img0.nii.gz"]
    assert len(read_sections(quiet(pairs, tmp_path / "out"))["training"]) == 2


def test_the_commands_options_arrive(pairs, tmp_path, capsys):
    save(pairs / "labels" / "label0.nii.gz", 4 * organ(0)[1][::-1])
    save(pairs / "labels" / "label1.nii.gz", 4 * organ(1)[1][::-1])
    arguments = ["ingest", str(pairs), str(tmp_path / "out"), "--layout", "nifti"]
    arguments += ["--map", "4=2", "--names", "2=liver", "--flip", "W"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "scans: 2, with label: 2 (2 liver in 2), without: 0",
        f"{tmp_path / 'out' / 'dataset.json'}",
    ]
    np.testing.assert_array_equal(voxels(tmp_path / "out/labelsTr/img0.nii.gz"), 2 * organ(0)[1])
    for wrong, match in (
        (["--map", "4"], "`--map` must be pairs such as 63=1, got 4"),
        (["--map", "4=x"], "labels from 0 to 255"),
    ):
        assert main([*arguments[:3], *wrong]) == 1
        assert match in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_random_it_goes_on_and_ends_the_same(tmp_path):
    for number in range(6):
        image, label = organ(number)
        save(tmp_path / "src" / "images" / f"img{number}.nii.gz", image)
        save(tmp_path / "src" / "labels" / f"label{number}.nii.gz", label)
    whole = quiet(tmp_path / "src", tmp_path / "whole").parent
    draw, fork = random.Random(0), multiprocessing.get_context("fork")
    for _ in range(8):
        process = fork.Process(target=quiet, args=(tmp_path / "src", tmp_path / "out"))
        process.start()
        time.sleep(draw.uniform(0.0, 0.3))
        process.kill()
        process.join()
        for path in (tmp_path / "out").rglob("*.nii.gz"):
            if not path.name.startswith(".part-"):
                assert nib.load(path).get_fdata().shape == SHAPE
    out = quiet(tmp_path / "src", tmp_path / "out").parent
    for path in whole.rglob("*.*"):
        if path.is_file():
            assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert not list(out.rglob(".part-*"))


@real("dicom/chaos_ct")
def test_chaos_as_it_is_kept(tmp_path, capsys):
    """Pictures in the order of the files' names, which is the reverse of that of positions."""
    for kind in ("DICOM_anon", "Ground"):
        (tmp_path / "CT" / "3" / kind).mkdir(parents=True)
        for path in sorted((DATA / "dicom" / "chaos_ct" / kind).iterdir())[20:44]:
            shutil.copy(path, tmp_path / "CT" / "3" / kind)
    assert main(["ingest", str(tmp_path / "CT"), str(tmp_path / "out"), "--names", "1=liver"]) == 0
    (case,) = report(tmp_path / "out")["cases"]
    (liver,) = case["label"]["organs"]
    assert 130 < liver["mean_inside"] < 150
    assert liver["sd_inside"] < 40
    assert case["alignment"]["best"] == "as it is"
    assert case["image"]["spacing_mm"][2] == 2.0
    assert "SliceThickness is 3.2 mm, slices are 2 mm apart." in case["image"]["notes"]
    label = next((tmp_path / "out" / "labelsTr").iterdir())
    turned = save(tmp_path / "turned.nii.gz", voxels(label)[:, ::-1], nib.load(label).affine)
    arguments = [str(tmp_path / "CT/3/DICOM_anon"), str(tmp_path / "bad"), "--labels", str(turned)]
    assert main(["ingest", *arguments]) == 1
    assert "when reversed along H" in capsys.readouterr().err
