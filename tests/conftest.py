"""One thread for every process: the tests' networks are small, and some run two at a time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers.bundle_runs import INFERENCE, TRAINING, Runs

from stipple_monai.bundle.publish import publish_bundle
from stipple_monai.data import read_datalist, split_datalist, write_datalist
from stipple_monai.simulation import write_phantom

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Every command of the README once, on two labelled scans."""
    root = tmp_path_factory.mktemp("bundle")
    dataset = write_phantom(
        root / "data",
        cases=6,
        size=32,
        slices=(12, 14),
        slice_spacing_mm=(10.0, 10.0),
        progress=False,
    )
    sections = split_datalist(
        read_datalist(dataset, "training"), labelled=2, validation=1, test=1, seed=0
    )
    datalist = root / "data" / "split.json"
    write_datalist(datalist, sections)
    it = Runs(root, datalist)
    # the baseline first: it needs no prior
    it.run("train", "baseline", **TRAINING)
    it.run("prior")
    longer = {"max_epochs": 6, "slices_per_scan": 48, "val_interval": 2}
    it.run("train", **{**TRAINING, **longer})
    it.run("inference", **INFERENCE, probabilities=True)
    for name, overlays in {
        "stipple": [],
        "baseline": ["baseline"],
        "true_position": ["true_position"],
        "located": ["locator"],
    }.items():
        out = str(root / "eval" / name)
        it.run("inference", "evaluate", *overlays, **INFERENCE, output_dir=out)
    it.run("inference", "pseudo_label", **INFERENCE)
    it.models("round_1")
    again = {"models_dir": str(root / "round_1"), "output_dir": str(root / "eval" / "round_1")}
    it.pseudo.run("train", **TRAINING, **again)
    return it


@pytest.fixture(scope="session")
def published(runs, tmp_path_factory):
    """The bundle with the small network of `runs`, to be read and not to be changed."""
    return publish_bundle(
        tmp_path_factory.mktemp("zoo") / "models" / "pancreas_stipple",
        models=runs.root / "models",
        options={**TRAINING, **INFERENCE},
    )
