"""Datalists: splitting by patient, reading and writing, and checks of image and label."""

import gzip
import json
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.real_data import DATA, real
from monai.data import MetaTensor, load_decathlon_datalist
from monai.transforms import LoadImage

from stipple_monai.data import (
    ignored_value,
    patient_of,
    read_datalist,
    split_datalist,
    write_datalist,
)
from stipple_monai.data.checks import check_pair, read_volume
from stipple_monai.errors import DatasetError

CHAOS = DATA / "chaos_mr_t2" / "dataset.json"
ITEMS = [{"image": f"{i:02d}.nii.gz", "label": f"{i:02d}_seg.nii.gz", "age": i} for i in range(14)]


def images(section):
    return [item["image"] for item in section]


# split


@pytest.mark.parametrize("labelled", [1, 2, 4, 8])
def test_sections_divide_the_items(labelled):
    sections = split_datalist(ITEMS, labelled=labelled, validation=2, test=4, seed=0)
    counts = {"training": labelled, "unlabelled": 8 - labelled, "validation": 2, "test": 4}
    assert {name: len(items) for name, items in sections.items()} == counts
    together = sorted(image for items in sections.values() for image in images(items))
    assert together == images(ITEMS)
    for name, items in sections.items():
        for item in items:
            moved = name == "unlabelled"
            assert ("label" in item, "truth" in item) == (not moved, moved)
            original = ITEMS[item["age"]]
            assert item["truth" if moved else "label"] == original["label"]


def test_held_out_sets_do_not_depend_on_labelled_and_training_is_nested():
    by_count = [split_datalist(ITEMS, labelled=k, validation=2, test=4, seed=3) for k in (2, 4, 8)]
    for fewer, more in pairwise(by_count):
        assert fewer["test"] == more["test"]
        assert fewer["validation"] == more["validation"]
        assert set(images(fewer["training"])) < set(images(more["training"]))


def test_seed_decides_and_order_does_not():
    def split(items, seed):
        return split_datalist(items, labelled=3, validation=2, test=4, seed=seed)

    assert split(ITEMS, 0) == split(ITEMS[::-1], 0)
    assert split(ITEMS, 0)["test"] != split(ITEMS, 1)["test"]


@pytest.mark.slow
def test_draw_is_uniform():
    counts = dict.fromkeys(images(ITEMS), 0)
    for seed in range(700):
        for image in images(
            split_datalist(ITEMS, labelled=2, validation=2, test=4, seed=seed)["test"]
        ):
            counts[image] += 1
    # binomial, 700 draws of 4 in 14: 200 with standard deviation 12
    assert all(abs(count - 200) < 50 for count in counts.values())


def test_items_of_one_patient_stay_together():
    items = [{**item, "patient": item["age"] // 2} for item in ITEMS]
    sections = split_datalist(items, labelled=2, validation=1, test=2, seed=0)
    patients = {name: {i["patient"] for i in section} for name, section in sections.items()}
    assert [len(patients[name]) for name in patients] == [2, 2, 1, 2]
    assert len(sections["test"]) == 4
    assert len(set().union(*patients.values())) == 7


def test_items_without_label_train_without():
    bare = [{"image": "bare.nii.gz"}]
    sections = split_datalist(ITEMS + bare, labelled=8, validation=2, test=4, seed=0)
    assert sections["unlabelled"] == bare
    with pytest.raises(DatasetError, match=r"at least 9 \+ 2 \+ 4 patients with labels, got 14"):
        split_datalist(ITEMS + bare, labelled=9, validation=2, test=4, seed=0)


@pytest.mark.parametrize("nobody", [None, "", "  "])
def test_no_patient_is_a_patient_for_each_scan(nobody):
    items = [{**item, "patient": nobody} for item in ITEMS[:6]]
    sections = split_datalist(items, labelled=3, validation=1, test=2, seed=0)
    assert {name: len(found) for name, found in sections.items() if found} == {
        "training": 3,
        "validation": 1,
        "test": 2,
    }


def test_a_patient_is_one_however_it_is_written():
    written = [{**item, "patient": p} for item, p in zip(ITEMS, [7, 7.0, "7", " 7 "], strict=False)]
    assert {patient_of(item) for item in written} == {"7"}
    assert patient_of({"image": "a", "patient": 7.5}) == "7.5"


def test_a_patient_with_a_scan_without_label_trains_without():
    both = [{**ITEMS[0], "patient": 0}, {"image": "bare.nii.gz", "patient": 0}]
    sections = split_datalist(both + ITEMS[1:], labelled=7, validation=2, test=4, seed=0)
    assert images(sections["unlabelled"]) == images(both)
    assert all("label" not in item for item in sections["unlabelled"])


def test_split_leaves_its_input_alone():
    items = [dict(item) for item in ITEMS]
    split_datalist(items, labelled=2, validation=2, test=2, seed=0)
    assert items == ITEMS


@pytest.mark.parametrize("counts", [(0, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_split_refuses_counts(counts):
    labelled, validation, test = counts
    with pytest.raises(ValueError, match=r"`labelled` must be at least 1, .* got"):
        split_datalist(ITEMS, labelled=labelled, validation=validation, test=test, seed=0)


def test_split_refuses_items():
    with pytest.raises(DatasetError, match='must all have an "image"'):
        split_datalist([{"label": "a"}], labelled=1, validation=0, test=0, seed=0)
    with pytest.raises(DatasetError, match=r"image twice, got 00\.nii\.gz"):
        split_datalist(ITEMS + ITEMS[:1], labelled=1, validation=0, test=0, seed=0)


# read and write


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.nii.gz").touch()
        (tmp_path / f"{name}_seg.nii.gz").touch()
    return tmp_path


def put(folder, content):
    path = folder / "datalist.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_agrees_with_monai_on_image_and_label(folder):
    training = [
        {"image": "./a.nii.gz", "label": "a_seg.nii.gz"},
        {"image": ["b.nii.gz", "c.nii.gz"], "label": str(folder / "b_seg.nii.gz"), "fold": 1},
    ]
    path = put(folder, {"name": "x", "training": training, "test": ["d.nii.gz"]})
    for section in ("training", "test"):
        expected = load_decathlon_datalist(path, True, section)
        assert read_datalist(path, section) == expected


def test_other_keys_stay_as_they_are(folder):
    """MONAI would make a path of each of these strings: the folder's files have their names."""
    item = {
        "image": "a.nii.gz",
        "truth": "a_seg.nii.gz",
        "organ_position": [[1.5, -2.0, 3.0], [4, 5, 6]],
        "patient": "b.nii.gz",
        "comment": "",
        "tags": ["c.nii.gz"],
        "empty": [],
    }
    path = put(folder, {"unlabelled": [item]})
    assert load_decathlon_datalist(path, True, "unlabelled")[0]["patient"] != "b.nii.gz"
    (read,) = read_datalist(path, "unlabelled")
    assert read.pop("image") == str(folder / "a.nii.gz")
    assert read.pop("truth") == str(folder / "a_seg.nii.gz")
    assert read == {key: value for key, value in item.items() if key not in ("image", "truth")}


def test_base_dir_and_path_keys(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    path = put(elsewhere, {"extra": [{"image": "a.nii.gz", "probability": "b.nii.gz"}]})
    (item,) = read_datalist(
        path, "extra", base_dir=folder, path_keys=("image", "probability", "label")
    )
    assert item["probability"] == str(folder / "b.nii.gz")


def test_relative_datalist_gives_absolute_paths(folder, monkeypatch):
    put(folder, {"training": [{"image": "a.nii.gz"}]})
    monkeypatch.chdir(folder)
    assert read_datalist("datalist.json", "training") == [{"image": str(folder / "a.nii.gz")}]


def test_round_trip(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "far.nii.gz"
    outside.touch()
    sections = {
        "training": [
            {
                "image": [str(folder / "a.nii.gz"), str(folder / "b.nii.gz")],
                "label": folder / "a_seg.nii.gz",
                "organ_position": [np.array([1.0, 2.5, -3.0]), torch.tensor([0.5, 0.0, 1.0])],
            }
        ],
        "unlabelled": [{"image": str(outside), "truth": str(folder / "c_seg.nii.gz")}],
        "test": [],
    }
    path = folder / "datalist.json"
    write_datalist(path, sections, metadata={"labels": {"0": "background"}, "where": folder})
    content = json.loads(path.read_text())
    assert content["labels"] == {"0": "background"}
    assert content["where"] == str(folder)
    assert content["training"][0]["image"] == ["a.nii.gz", "b.nii.gz"]
    assert content["training"][0]["label"] == "a_seg.nii.gz"
    assert content["unlabelled"][0] == {"image": str(outside), "truth": "c_seg.nii.gz"}
    assert content["test"] == []
    (item,) = read_datalist(path, "training")
    assert item["organ_position"] == [[1.0, 2.5, -3.0], [0.5, 0.0, 1.0]]
    assert item["label"] == str(folder / "a_seg.nii.gz")


def test_write_makes_folders_and_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "new" / "list.json"
    write_datalist(path, {"training": [{"image": tmp_path / "new" / "a.nii.gz"}]})
    before = path.read_text()
    with pytest.raises(TypeError, match="must hold JSON, arrays, tensors and paths, got"):
        write_datalist(path, {"training": [{"image": "a.nii.gz", "thing": object()}]})
    with pytest.raises(ValueError, match=r"name of a section, got \['test'\]"):
        write_datalist(path, {"test": []}, metadata={"test": 1})
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


GOOD = {"image": "a.nii.gz"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"must be JSON, got .*datalist\.json"),
        ("[]", "must hold a JSON object"),
        (
            {"name": "x", "training": [GOOD], "test": []},
            "got 'validation'. There: training, test",
        ),
        ({"validation": "x"}, "got 'validation'. There: none"),
        ({"validation": []}, "must have items, got 'validation'"),
        ({"validation": [{"label": "a.nii.gz"}]}, 'must have an "image", got .* item 0'),
        ({"validation": [GOOD, 5]}, 'must have an "image", got 5 as item 1'),
        ({"validation": [{"image": "none.nii.gz"}]}, r"`image` must be a file .*none\.nii\.gz"),
        (
            {"validation": [{"image": ["a.nii.gz", "none.nii.gz"]}]},
            r"`image` must be a file .*none\.nii\.gz",
        ),
        ({"validation": [{**GOOD, "label": "no.nii.gz"}]}, r"`label` must be a file .*no\.nii\.gz"),
        ({"validation": [{**GOOD, "truth": "no.nii.gz"}]}, "`truth` must be a file"),
        (
            {"validation": [GOOD], "training": [{"image": "./a.nii.gz"}]},
            r"must not share images, got \./a\.nii\.gz in 'validation' and in 'training'",
        ),
        ({"test": ["./a.nii.gz"], "validation": [{"image": ["a.nii.gz"]}]}, "not share images"),
        (
            {"validation": [GOOD, {"image": "./a.nii.gz"}]},
            r"an image once, got \./a\.nii\.gz twice in 'validation'",
        ),
        ({"validation": [{**GOOD, "label": ""}]}, r"`label` .* an empty one in item 0 of .*leave"),
    ],
)
def test_read_refuses(folder, content, message):
    with pytest.raises(DatasetError, match=message):
        read_datalist(put(folder, content), "validation")


def test_read_refuses_a_missing_datalist(tmp_path):
    with pytest.raises(DatasetError, match=r"must be a datalist, got .* which is a folder"):
        read_datalist(tmp_path, "training")


def test_lists_of_numbers_and_words_in_the_metadata_are_no_sections_to_compare(folder):
    path = put(folder, {"spacing": [1, 2, 3], "training": [GOOD]})
    assert len(read_datalist(path, "training")) == 1


# real data


@real("chaos_mr_t2/dataset.json")
def test_real_datalist(tmp_path):
    items = read_datalist(CHAOS, "training")
    assert len(items) == 14
    with pytest.raises(DatasetError, match="must have items, got 'test'"):
        read_datalist(CHAOS, "test")
    sections = split_datalist(items, labelled=2, validation=2, test=4, seed=0)
    write_datalist(tmp_path / "split.json", sections)
    assert read_datalist(tmp_path / "split.json", "unlabelled") == sections["unlabelled"]
    image, label = (read_volume(sections["test"][0][key]) for key in ("image", "label"))
    assert image.shape[0] == 1
    assert image.ndim == 4
    check_pair(image, label, classes=5)
    with pytest.raises(DatasetError, match=r"values 0 to 3 or 255, got 4 in .*chaos_\d\d\.nii\.gz"):
        check_pair(image, label, classes=4)


# pairs


def volume(array, affine=None, name="scan.nii.gz"):
    affine = torch.diag(torch.tensor([2.0, 2, 5, 1])) if affine is None else affine
    return MetaTensor(torch.as_tensor(array), affine=affine, meta={"filename_or_obj": name})


@pytest.fixture
def image():
    return volume(torch.rand(1, 6, 5, 4))


@pytest.fixture
def label():
    values = torch.zeros(1, 6, 5, 4)
    values[0, 2:4, 2:4] = 1
    values[0, 0, 0, 0] = 255
    return volume(values, name="seg.nii.gz")


def test_good_pairs_pass(image, label):
    check_pair(image, label, classes=2)
    check_pair(volume(torch.rand(3, 6, 5, 4)), label, classes=2, channels=3)
    check_pair(image, volume(label.as_tensor().to(torch.uint8)), classes=2)
    off = image.affine.clone()
    off[0, 3] += 0.05
    check_pair(image, volume(label.as_tensor(), off), classes=2)


def test_refuses_other_shapes(image, label):
    with pytest.raises(
        DatasetError, match=r"shape \(6, 5, 4\), got \(6, 5, 3\) in seg.* for scan\.nii\.gz"
    ):
        check_pair(image, label[..., :3], classes=2)
    with pytest.raises(DatasetError, match=r"`image` must be a 3D .* \(1, 6, 5, 4, 2\) in scan"):
        check_pair(volume(torch.zeros(1, 6, 5, 4, 2)), label, classes=2)
    with pytest.raises(DatasetError, match=r"`label` must be a 3D .* \(6, 5, 4\) in seg"):
        check_pair(image, label[0], classes=2)
    with pytest.raises(
        DatasetError, match=r"`label` must be .* \(1, W, H, D\), got shape \(2, 6, 5, 4\) in seg"
    ):
        check_pair(image, volume(torch.zeros(2, 6, 5, 4), name="seg.nii.gz"), classes=2)


@pytest.mark.parametrize("change", ["shift", "flip", "spacing", "nan"])
def test_refuses_other_affines(image, label, change):
    affine = image.affine.clone()
    if change == "shift":
        affine[1, 3] += 0.2
    elif change == "flip":
        affine[0] *= -1
    elif change == "spacing":
        # 0.04 mm a slice add up to 0.12 mm over the volume
        affine[2, 2] += 0.04
    else:
        affine[0, 0] = float("nan")
    with pytest.raises(DatasetError, match=r"affine to 0\.1 mm, got .* mm apart in seg\.nii\.gz"):
        check_pair(image, volume(label.as_tensor(), affine, "seg.nii.gz"), classes=2)


def test_corner_distance_is_the_greatest_over_all_voxels(image, label):
    angle = torch.tensor(0.01)
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    turned = volume(label.as_tensor(), turn.double() @ image.affine, "seg.nii.gz")
    voxels = torch.cartesian_prod(*(torch.arange(n) for n in (6, 5, 4))).double()
    voxels = torch.cat([voxels, torch.ones(len(voxels), 1).double()], 1)
    worst = ((voxels @ (turned.affine - image.affine).T).norm(dim=1)).max().item()
    check_pair(image, turned, classes=2, tolerance_mm=worst * 1.001)
    with pytest.raises(DatasetError, match="mm apart"):
        check_pair(image, turned, classes=2, tolerance_mm=worst * 0.999)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_intensities_that_are_not_finite(image, label, value):
    image[0, 1, 1, 1] = value
    with pytest.raises(DatasetError, match=r"must be finite, got 1 voxels .* scan\.nii\.gz"):
        check_pair(image, label, classes=2)


@pytest.mark.parametrize("value", [-1, 2, 254])
def test_refuses_values_that_are_no_class(image, label, value):
    label[0, 1, 1, 1] = value
    with pytest.raises(DatasetError, match=f"0 to 1 or 255, got {value:g} in seg.nii.gz"):
        check_pair(image, label, classes=2)


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_refuses_values_that_are_not_whole(image, label, value):
    label[0, 1, 1, 1] = value
    with pytest.raises(DatasetError, match=f"whole numbers, got {value} .* in seg.nii.gz"):
        check_pair(image, label, classes=2)


def test_takes_values_that_are_whole_but_for_rounding(image, label):
    label[0, 1, 1, 1] = 0.9999999
    check_pair(image, label, classes=2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.uint16])
def test_labels_may_be_of_types_that_hold_no_255_or_that_torch_hardly_knows(image, label, dtype):
    held = volume((label.as_tensor() == 1).to(dtype), name="seg.nii.gz")
    check_pair(image, held, classes=2)
    with pytest.raises(DatasetError, match=r"values 0, 300 or 255, got 1 in seg\.nii\.gz"):
        check_pair(image, held, classes=2, values=[300])


def test_a_label_of_ignored_voxels_alone_is_refused(image, label):
    label[:] = 255
    with pytest.raises(DatasetError, match=r"not to be ignored, got 255 in all .* unlabelled"):
        check_pair(image, label, classes=2)


def test_the_ignored_value_is_no_organ(image, label):
    with pytest.raises(ValueError, match=r"`values` must not have 255, .*\[1, 255\].*--map 255=1"):
        check_pair(image, label, classes=3, values=[1, 255])


def test_ignore_value_can_be_refused(image, label):
    with pytest.raises(DatasetError, match="values 0 to 1, got 255"):
        check_pair(image, label, classes=2, ignore=None)
    with pytest.raises(ValueError, match="`classes` must be at least 2"):
        check_pair(image, label, classes=1)


# files


AFFINE = nib.affines.from_matvec(np.diag([-1.5, 2, 5]), [10, -20, 30.5])


def saved(path, shape=(4, 5, 6)):
    nib.save(
        nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), AFFINE), path
    )
    return path


def test_reads_channel_first(tmp_path):
    read = read_volume(saved(tmp_path / "a.nii.gz"))
    expected = LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "a.nii.gz")
    assert torch.equal(read.as_tensor(), expected.as_tensor())
    assert read.dtype == expected.dtype
    assert torch.equal(read.affine, expected.affine)
    assert read.meta["space"] == expected.meta["space"]
    assert read.meta["filename_or_obj"] == expected.meta["filename_or_obj"]
    assert read_volume(saved(tmp_path / "b.nii.gz", (4, 5, 1))).shape == (1, 4, 5, 1)


@pytest.mark.parametrize("shape", [(4, 5, 6, 1), (4, 5, 6, 1, 1)])
def test_reads_a_series_of_one_volume(tmp_path, shape):
    read, expected = (read_volume(saved(tmp_path / "a.nii.gz", s)) for s in (shape, shape[:3]))
    assert torch.equal(read.as_tensor(), expected.as_tensor())
    assert torch.equal(read.affine, expected.affine)


def test_refuses_a_series_as_monai_reads_it(tmp_path, label):
    path = saved(tmp_path / "a.nii.gz", (6, 5, 4, 3))
    series = LoadImage(image_only=True, ensure_channel_first=True)(path)
    with pytest.raises(DatasetError, match=r"\(1, W, H, D\), got shape \(3, 6, 5, 4\) in .*a\.nii"):
        check_pair(series, label, classes=2)


def test_refuses_series_and_slices(tmp_path):
    with pytest.raises(DatasetError, match=r"must be a 3D .* in .*a\.nii\.gz.* give one volume"):
        read_volume(saved(tmp_path / "a.nii.gz", (4, 5, 6, 3)))
    with pytest.raises(DatasetError, match=r"must be a 3D volume, got shape \(4, 5, 6, 1, 2\)"):
        read_volume(saved(tmp_path / "a.nii.gz", (4, 5, 6, 1, 2)))
    with pytest.raises(DatasetError, match="must be a 3D"):
        read_volume(saved(tmp_path / "b.nii.gz", (4, 5)))


def test_refuses_unreadable_files(tmp_path):
    whole = saved(tmp_path / "whole.nii.gz", (20, 20, 20)).read_bytes()
    plain = saved(tmp_path / "plain.nii", (20, 20, 20)).read_bytes()
    contents = {
        "cut.nii.gz": whole[: len(whole) // 2],
        "header.nii.gz": gzip.compress(plain[:200]),
        "cut.nii": plain[:4000],
        "empty.nii.gz": b"",
        "empty.nii": b"",
        "text.nii.gz": b"this is not an image" * 50,
        "text.nii": b"this is not an image" * 50,
        "scan.png": b"\x89PNG",
    }
    nib.save(nib.MGHImage(np.zeros((2, 2, 2), np.float32), np.eye(4)), tmp_path / "other.mgz")
    contents["other.mgz"] = (tmp_path / "other.mgz").read_bytes()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=f"must be a whole NIfTI file, got .*{name}"):
            read_volume(tmp_path / name)
    with pytest.raises(DatasetError, match=r"no\.nii\.gz, which does not exist"):
        read_volume(tmp_path / "no.nii.gz")


def test_scans_themselves_are_a_datalist(tmp_path, monkeypatch):
    scans = [str(saved(tmp_path / f"{name}.nii.gz", (4, 5, 6))) for name in "ab"]
    expected = [{"image": scan} for scan in scans]
    assert read_datalist(scans, "test") == expected
    assert read_datalist([{"image": scans[0], "note": 1}], "any") == [{**expected[0], "note": 1}]
    monkeypatch.chdir(tmp_path)
    assert read_datalist(["a.nii.gz", "b.nii.gz"], "test") == expected
    assert read_datalist(["a.nii.gz"], "test", base_dir=tmp_path) == expected[:1]
    assert read_datalist([], "test", optional=True) == []
    with pytest.raises(DatasetError, match=r"must have items, got 'test' of the list of scans"):
        read_datalist([], "test")
    with pytest.raises(DatasetError, match=r"must be a file that exists, got .*c\.nii\.gz in item"):
        read_datalist(["a.nii.gz", "c.nii.gz"], "test")


def test_the_ignored_value_of_both_styles():
    assert ignored_value({"labels": {"background": 0, "ignore": 9}}) == 9
    assert ignored_value({"labels": {"0": "background", "9": "Ignore"}}) == 9
    assert ignored_value({"labels": {"0": "background", "1": "liver"}}) is None
