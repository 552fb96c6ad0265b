"""The demo on a phantom of two scans a section, its interruptions and its pictures."""

import contextlib
import functools
import io
import logging
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from stipple_monai.data import read_datalist
from stipple_monai.demo import run as demo
from stipple_monai.errors import DatasetError
from stipple_monai.segmentation import segment
from stipple_monai.simulation import write_phantom

STAGES = [
    "estimate the prior",
    "train the network",
    "pseudo-label the unlabelled scans",
    "train on labels and pseudo-labels",
    "train a network without prior",
    "test: network without prior, alone",
    "test: prior alone, located in its output",
    "test: network trained with the prior, equation 2",
    "test: STIPPLE",
    "test: STIPPLE, one round of pseudo-labels",
    "test: STIPPLE, prior at the true position",
]
OPTIONS = {
    "channels": [4, 8],
    "slice_size": [32, 32],
    "slices_per_epoch": 16,
    "batch_size": 4,
    "max_epochs": 1,
    "device": "$torch.device('cpu')",
}


@contextlib.contextmanager
def usual_logging():
    """Undo what the bundle's logging.conf does to the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="module")
def tiny():
    """Make the demo's phantom and split small."""
    with pytest.MonkeyPatch.context() as patch:
        small = {"size": 32, "slices": (12, 13), "slice_spacing_mm": (10.0, 10.0)}
        patch.setattr(demo, "write_phantom", functools.partial(write_phantom, **small))
        for name in ("LABELLED", "UNLABELLED", "TEST"):
            patch.setattr(demo, name, 2)
        yield patch


def run(out):
    """Run the demo; give what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), usual_logging():
        path = demo.run_demo(out, options=OPTIONS)
    assert path == out / "results.md"
    return printed.getvalue()


def stages(printed, *, skipped):
    """Titles of the stages that ran, or were skipped, in order."""
    ending = ": done before"
    lines = [line.split("] ", 1)[-1] for line in printed.splitlines() if line.startswith("[")]
    lines = [line for line in lines if line.removesuffix(ending) in STAGES]
    return [line.removesuffix(ending) for line in lines if line.endswith(ending) == skipped]


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A demo that was interrupted before the pseudo-labels, and started again."""
    out = tmp_path_factory.mktemp("demo")
    whole = monai.bundle.run

    def until_pseudo_labels(config_file, **options):
        if any("pseudo_label" in name for name in config_file):
            raise KeyboardInterrupt
        whole(config_file=config_file, **options)

    tiny.setattr(monai.bundle, "run", until_pseudo_labels)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    tiny.setattr(monai.bundle, "run", whole)
    return out, run(out)


def scores(out):
    return {name: demo.read_dice(out / "eval" / name) for name in demo._METHODS}


def times(out):
    made = [p for suffix in ("nii.gz", "pt", "csv") for p in out.rglob(f"*.{suffix}")]
    return {path: path.stat().st_mtime_ns for path in made}


def test_interrupted_demo_goes_on(finished):
    out, printed = finished
    assert stages(printed, skipped=True) == STAGES[:2]
    assert stages(printed, skipped=False) == STAGES[2:]
    assert len(read_datalist(out / "eval" / "pseudo_labels" / "datalist.json", "training")) == 4


def test_results_are_a_table_predictions_and_pictures(finished):
    out, printed = finished
    text = (out / "results.md").read_text(encoding="utf-8")
    assert text in printed
    assert "2 labelled, 2 unlabelled, 2 test cases" in text
    rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if "|" in line)
    found = scores(out)
    for name, title in demo._METHODS.items():
        assert f"{100 * np.mean(found[name]):.1f}" in rows[title]
    tests = read_datalist(out / "phantom" / "split.json", "test")
    for folder in found:
        names = {p.name for p in (out / "eval" / folder).glob("*.nii.gz")}
        expected = {Path(item["image"]).name.replace(".nii", "_seg.nii") for item in tests}
        assert names == expected
    assert (out / "prior.png").read_bytes().startswith(b"\x89PNG")


def test_finished_demo_does_nothing_again(finished):
    out, _ = finished
    before, table = times(out), (out / "results.md").read_bytes()
    printed = run(out)
    assert stages(printed, skipped=True) == STAGES
    assert times(out) == before
    assert (out / "results.md").read_bytes() == table


def test_only_what_was_removed_is_made_again(finished):
    out, _ = finished
    before = scores(out)
    model = out / "models" / "model.pt"
    weights = torch.load(model, weights_only=True)
    model.unlink()
    (out / "eval" / "stipple" / "val_mean_dice_raw.csv").unlink()
    printed = run(out)
    assert stages(printed, skipped=False) == [STAGES[1], STAGES[8]]
    again = torch.load(model, weights_only=True)
    assert all(torch.equal(again[key], weights[key]) for key in weights)
    assert scores(out) == before


def test_its_networks_segment_as_they_did_in_the_demo(finished, tmp_path):
    out, _ = finished
    device = {"device": OPTIONS["device"]}
    for models, method in ((out, "stipple"), (out / "models" / "round_1", "relabelled")):
        results = tmp_path / method
        segment([out / "phantom" / "split.json"], results, models=models, options=device)
        for path in (out / "eval" / method).glob("*_seg.nii.gz"):
            same = np.asarray(nib.load(path).dataobj)
            assert np.array_equal(np.asarray(nib.load(results / path.name).dataobj), same)
            assert path.name.startswith("phantom_")
        assert len(list(results.glob("*_seg.nii.gz"))) == 2


def test_pictures_of_what_the_prior_changed(finished):
    out, _ = finished
    for item in read_datalist(out / "phantom" / "split.json", "test"):
        truth = nib.load(item["label"])
        organ = np.asarray(truth.dataobj)
        seg = Path(item["image"]).name.replace(".nii", "_seg.nii")
        for folder, voxels in (("network_alone", np.roll(organ, 5, axis=0)), ("stipple", organ)):
            nib.save(nib.Nifti1Image(voxels, truth.affine), out / "eval" / folder / seg)
    pictures = [out / "recovered_miss.png", out / "removed_false_positive.png"]
    for path in pictures:
        path.unlink(missing_ok=True)
    assert "no picture" not in run(out)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    for item in read_datalist(out / "phantom" / "split.json", "test"):
        seg = Path(item["image"]).name.replace(".nii", "_seg.nii")
        shown = nib.load(out / "eval" / "stipple" / seg)
        nib.save(shown, out / "eval" / "network_alone" / seg)
    printed = run(out)
    assert "no picture recovered_miss.png" in printed
    assert "no picture removed_false_positive.png" in printed


def test_another_seed_needs_another_folder(finished):
    out, _ = finished
    before = times(out)
    with pytest.raises(
        DatasetError, match=r"begun with other seed \(0, now 1\), see demo\.json there"
    ):
        demo.run_demo(out, seed=1, options=OPTIONS)
    with pytest.raises(
        DatasetError,
        match=r"begun with other options: max_epochs \(.*, now 2\), see demo\.json there",
    ):
        demo.run_demo(out, options={**OPTIONS, "max_epochs": 2})
    assert times(out) == before


@pytest.mark.parametrize("name", ["models", "eval/stipple", "phantom", "results.md", "prior.png"])
def test_a_folder_with_files_of_somebody_else_is_refused(tmp_path, name):
    mine = tmp_path / name / "model.pt" if "." not in name else tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(DatasetError, match=f"was not written by this package, got .*{name[:4]}"):
        demo.run_demo(tmp_path, options=OPTIONS)
    assert mine.read_text() == "mine"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [mine]


def test_wrong_bundle(tmp_path):
    with pytest.raises(DatasetError, match=r"`bundle` must be the folder of .* --bundle"):
        demo.run_demo(tmp_path / "out", bundle=tmp_path)
    assert not (tmp_path / "out").exists()
