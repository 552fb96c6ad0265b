"""Plugin of every process that runs tests: what is made once for all of them."""

import functools
import os

import pytest
import torch
from filelock import FileLock
from helpers.bundle_runs import INFERENCE, TRAINING, Runs
from monai.bundle import ComponentLocator
from monai.transforms import Randomizable
from monai.utils import set_determinism

from stipple_monai.bundle.publish import publish_bundle
from stipple_monai.data import read_datalist, split_datalist, write_datalist
from stipple_monai.simulation import write_phantom

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Each parser of configs looks through all of MONAI's modules for names, and hundreds are made here.
in_modules = functools.cache(functools.partial(ComponentLocator._find_classes_or_functions, None))
ComponentLocator._find_classes_or_functions = lambda self, names: in_modules(tuple(names))


@pytest.fixture(autouse=True)
def same_draws():
    """Let what a test draws without an own seed be the same in every run."""
    Randomizable.R.seed(0)
    set_determinism(seed=0)
    yield
    set_determinism(seed=None)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Fill a folder in the first worker that asks for it; ``once(name, fill)`` is its path."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def filled(name, fill):
        folder, full = root / f"once_{name}", root / f"once_{name}.full"
        with FileLock(root / f"once_{name}.lock"):
            if not full.exists():
                folder.mkdir()
                fill(folder)
                full.touch()
        return folder

    return filled


@pytest.fixture(scope="session")
def runs(once):
    """Every command of the README once, on two labelled scans."""
    root = once("bundle", run_bundle_commands)
    return Runs(root, root / "data" / "split.json")


@pytest.fixture(scope="session")
def published(runs, once):
    """The bundle with the small network of `runs`, to be read and not to be changed."""

    def publish(folder):
        publish_bundle(
            folder / "models" / "pancreas_stipple",
            models=runs.root / "models",
            options={**TRAINING, **INFERENCE},
        )

    return once("zoo", publish) / "models" / "pancreas_stipple"


def run_bundle_commands(root):
    """What `runs` has."""
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
    it.run("inference", "pseudo_label", **INFERENCE, share=0.5)
    it.models("round_1")
    again = {"models_dir": str(root / "round_1"), "output_dir": str(root / "eval" / "round_1")}
    it.pseudo.run("train", **TRAINING, **again)
