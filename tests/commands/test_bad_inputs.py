"""Bad inputs: each ends with one clear error and exit status 1, and leaves nothing half-written."""

import gzip
import json
import os
import pickle
import re
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bright_scans import KNOBS, bright_scan

from stipple_monai.__main__ import main
from stipple_monai.data import write_datalist

CORPUS = {}
# what an error must name, by the first word of the way to spoil
NAMED = dict.fromkeys(("image", "label", "scan"), r"scan_0_(image|label)\.nii\.gz|list\.json")
NAMED |= {"datalist": r"list\.json", "weights": r"weights\.pt"}
IMAGE, LABEL = "scan_0_image.nii.gz", "scan_0_label.nii.gz"


def bad(match, *arguments):
    """Register a way to spoil a good folder; `match` is what the error must say."""

    def register(function):
        CORPUS[function.__name__] = (function, match, arguments)
        return function

    return register


def rewrite(path, change=lambda array: array, *, affine=None, dtype=None):
    image = nib.load(path)
    array = change(np.asarray(image.dataobj))
    affine = image.affine if affine is None else affine
    nib.save(nib.Nifti1Image(array.astype(dtype or array.dtype), affine), path)


def relist(root, change):
    path = root / "list.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed), encoding="utf-8")


# files


@bad(IMAGE)
def image_cut_short(root):
    path = root / IMAGE
    path.write_bytes(path.read_bytes()[:2000])


@bad(LABEL)
def label_cut_short(root):
    path = root / LABEL
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@bad(IMAGE)
def image_of_no_bytes(root):
    (root / IMAGE).write_bytes(b"")


@bad(LABEL)
def label_of_no_bytes(root):
    (root / LABEL).write_bytes(b"")


@bad(IMAGE)
def image_that_is_text(root):
    (root / IMAGE).write_text("not a scan", encoding="utf-8")


@bad(LABEL)
def label_that_is_a_pickle(root):
    (root / LABEL).write_bytes(pickle.dumps({"label": 1}))


@bad(LABEL)
def label_with_a_huge_header_and_few_bytes(root):
    header = nib.Nifti1Header()
    header.set_data_shape((32000, 32000, 30000))
    header.set_data_dtype(np.uint8)
    (root / LABEL).write_bytes(gzip.compress(header.binaryblock + b"\0" * 100))


@bad(IMAGE)
def image_with_a_huge_header_and_few_bytes(root):
    header = nib.Nifti1Header()
    header.set_data_shape((32000, 32000, 30000))
    header.set_data_dtype(np.float32)
    (root / IMAGE).write_bytes(gzip.compress(header.binaryblock + b"\0" * 100))


@bad(IMAGE)
def image_with_a_damaged_middle(root):
    data = bytearray((root / IMAGE).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = b"\xff" * 64
    (root / IMAGE).write_bytes(bytes(data))


@bad(IMAGE)
def image_is_missing(root):
    (root / IMAGE).unlink()


@bad(LABEL)
def label_is_missing(root):
    (root / LABEL).unlink()


@bad(IMAGE)
def image_is_a_folder(root):
    (root / IMAGE).unlink()
    (root / IMAGE).mkdir()


@bad(IMAGE)
def image_links_to_itself(root):
    (root / IMAGE).unlink()
    (root / IMAGE).symlink_to(root / IMAGE)


@bad(LABEL)
def label_may_not_be_read(root):
    (root / LABEL).chmod(0)
    if os.access(root / LABEL, os.R_OK):
        pytest.skip("this user may read everything")


# volumes


@bad("finite")
def image_with_nan(root):
    rewrite(root / IMAGE, lambda a: np.where(np.arange(a.shape[2]) == 3, np.nan, a))


@bad("finite")
def image_with_infinity(root):
    rewrite(root / IMAGE, lambda a: np.where(np.arange(a.shape[2]) == 3, np.inf, a))


@bad("3D")
def image_of_4_dimensions(root):
    rewrite(root / IMAGE, lambda a: np.stack([a, a], -1))


@bad("3D")
def label_of_4_dimensions(root):
    rewrite(root / LABEL, lambda a: np.stack([a, a], -1))


@bad("3D|shape")
def image_of_2_dimensions(root):
    rewrite(root / IMAGE, lambda a: a[..., 0])


@bad("3D")
def label_of_2_dimensions(root):
    rewrite(root / LABEL, lambda a: a[..., 0])


@bad("shape")
def label_of_another_shape(root):
    rewrite(root / LABEL, lambda a: a[:-2])


@bad("affine")
def label_flipped_in_its_header(root):
    affine = nib.load(root / LABEL).affine @ np.diag([-1, 1, 1, 1])
    rewrite(root / LABEL, affine=affine)


@bad("affine")
def label_a_slice_off(root):
    affine = nib.load(root / LABEL).affine.copy()
    affine[2, 3] += 6
    rewrite(root / LABEL, affine=affine)


@bad("affine")
def scan_without_extent_along_z(root):
    for name in (IMAGE, LABEL):
        data = bytearray(gzip.decompress((root / name).read_bytes()))
        struct.pack_into("<4f", data, 312, 0, 0, 0, 0)  # srow_z
        (root / name).write_bytes(gzip.compress(bytes(data)))


@bad(r"values 0 to 1")
def label_value_out_of_range(root):
    rewrite(root / LABEL, lambda a: a + 6 * (np.arange(a.shape[2]) == 4), dtype=np.uint8)


@bad(r"values 0 to 1|whole numbers|label map")
def label_between_two_values(root):
    rewrite(root / LABEL, lambda a: a * 0.5, dtype=np.float32)


@bad(r"values 0 to 1|whole numbers|label map")
def label_of_negative_values(root):
    rewrite(root / LABEL, lambda a: -a.astype(np.int16), dtype=np.int16)


@bad("one real number a voxel")
def label_of_complex_numbers(root):
    rewrite(root / LABEL, lambda a: a * (1 + 1j), dtype=np.complex64)


def in_colours(path):
    image = nib.load(path)
    colours = np.zeros(image.shape, [(name, "u1") for name in "RGB"])
    nib.save(nib.Nifti1Image(colours, image.affine), path)


@bad(r"one real number a voxel, got colours \(RGB\)")
def image_in_colours(root):
    in_colours(root / IMAGE)


@bad(r"one real number a voxel, got colours \(RGB\)")
def label_in_colours(root):
    in_colours(root / LABEL)


@bad(r"whole numbers|label map|NaN|finite")
def label_with_nan(root):
    rewrite(root / LABEL, lambda a: np.where(np.arange(a.shape[2]) == 3, np.nan, a), dtype="f4")


@bad("organ 1")
def no_organ_in_any_label(root):
    for index in range(2):
        rewrite(root / f"scan_{index}_label.nii.gz", np.zeros_like)


@bad("organ 7", "--set", "organs=[1,7]")
def an_organ_that_no_label_has(root):
    pass


# datalists


@bad("list.json")
def datalist_is_missing(root):
    (root / "list.json").unlink()


@bad("list.json")
def datalist_is_a_folder(root):
    (root / "list.json").unlink()
    (root / "list.json").mkdir()


@bad("list.json")
def datalist_is_empty(root):
    (root / "list.json").write_text("", encoding="utf-8")


@bad("list.json")
def datalist_is_cut_short(root):
    text = (root / "list.json").read_text(encoding="utf-8")
    (root / "list.json").write_text(text[: len(text) // 2], encoding="utf-8")


@bad("list.json")
def datalist_is_not_utf_8(root):
    text = (root / "list.json").read_text(encoding="utf-8")
    (root / "list.json").write_bytes(text.replace("scan_0", "scän_0").encode("latin-1"))


@bad("list.json")
def datalist_is_a_list(root):
    relist(root, lambda content: content["training"])


@bad("training")
def datalist_without_training(root):
    relist(root, lambda content: content.pop("training") and None)


@bad("training")
def datalist_with_nothing_in_training(root):
    relist(root, lambda content: content.update(training=[]))


@bad("image")
def item_without_image(root):
    relist(root, lambda content: content["training"][0].pop("image") and None)


@bad("training|label")
def items_without_labels(root):
    relist(root, lambda content: [item.pop("label") for item in content["training"]] and None)


@bad(IMAGE)
def scan_in_two_sections(root):
    relist(root, lambda content: content["test"].append(dict(content["training"][0])))


@bad("image|path")
def image_that_is_a_number(root):
    relist(root, lambda content: content["training"][0].update(image=5))


# knobs, configs and folders


@bad("share", "--shares", "1.5")
def share_above_one(root):
    pass


@bad("nonsense", "--set", "nonsense=1")
def knob_that_is_none(root):
    pass


@bad("KNOB=VALUE", "--set", "max_epochs")
def knob_without_value(root):
    pass


@bad("absent.yaml", "--overlays", "absent.yaml")
def overlay_that_is_missing(root):
    pass


@bad("torn", "--overlays", "ROOT/torn.yaml")
def overlay_that_is_no_yaml(root):
    (root / "torn.yaml").write_text("a: [1, 2", encoding="utf-8")


@bad("bundle", "--bundle", "ROOT")
def folder_that_is_no_bundle(root):
    pass


@bad("out")
def output_is_a_file(root):
    (root / "out").write_text("mine", encoding="utf-8")


# weights


@bad("weights.pt", "--set", "initial_weights=ROOT/weights.pt")
def weights_are_missing(root):
    pass


@bad("weights.pt", "--set", "initial_weights=ROOT/weights.pt")
def weights_are_cut_short(root):
    torch.save({"model": {"a": torch.zeros(1000)}}, root / "weights.pt")
    (root / "weights.pt").write_bytes((root / "weights.pt").read_bytes()[:800])


@bad("weights.pt", "--set", "initial_weights=ROOT/weights.pt")
def weights_of_another_network(root):
    torch.save({"model": torch.nn.Conv2d(1, 2, 3).state_dict()}, root / "weights.pt")


class Opened:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@bad("weights.pt", "--set", "initial_weights=ROOT/weights.pt")
def weights_with_code_in_them(root):
    torch.save({"model": Opened(root / "opened")}, root / "weights.pt")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    return [bright_scan(root, number) for number in range(4)]


@pytest.fixture
def root(scans, tmp_path):
    """A good folder: two labelled scans, one without label, one to test."""
    folder = tmp_path / "data"
    folder.mkdir()
    items = []
    for paths in scans:
        items.append({key: str(folder / Path(path).name) for key, path in paths.items()})
        for path in paths.values():
            (folder / Path(path).name).write_bytes(Path(path).read_bytes())
    free = {"image": items[2]["image"], "truth": items[2]["label"]}
    write_datalist(
        folder / "list.json",
        {"training": items[:2], "unlabelled": [free], "test": items[3:]},
    )
    return folder


def contents(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.training
@pytest.mark.parametrize("name", CORPUS)
def test_one_clear_error_and_nothing_half_written(root, name, capsys):
    spoil, match, arguments = CORPUS[name]
    spoil(root)
    settings = [f"{key}={value}" for key, value in {**KNOBS, "max_epochs": 1}.items()]
    # without a plan, which looks at the data before training does
    overlay = root / "organ.yaml"
    overlay.write_text("organs: [1]\n", encoding="utf-8")
    before = contents(root)
    command = ["self-train", str(root / "list.json"), str(root / "out")]
    if "--overlays" not in arguments:
        command += ["--overlays", str(overlay)]
    command += ["--set", *settings]
    if arguments[:1] == ("--set",):
        command.append(arguments[1].replace("ROOT", str(root)))
    else:
        command += [argument.replace("ROOT", str(root)) for argument in arguments]
    assert main(command) == 1
    lines = capsys.readouterr().err.splitlines()
    # besides how far it was, and which labels have no organ
    other = re.compile(r"^[a-z ]*: scan \d+/\d+$|^$|^  |Warning: ")
    said = [line for line in lines if not other.search(line)]
    assert len(said) == 1, said
    assert said[0].startswith("stipple_monai self-train: ")
    assert re.search(match, said[0]), said[0]
    assert "--traceback" not in said[0], "an error of its own"
    file = NAMED.get(name.partition("_")[0], "")
    assert re.search(file, said[0]), said[0]
    # nothing of the user's is changed, and nothing is there that looks done
    after = contents(root)
    assert {path: after[path] for path in before} == before
    out = root / "out"
    assert not (root / "opened").exists()
    assert not list(out.glob("round_*/models")) + list(out.glob("round_*/pseudo_labels"))
    assert not [path for path in out.rglob("*") if path.suffix in {".pt", ".csv"}]
