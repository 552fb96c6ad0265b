"""Trainings of the other methods on a tiny phantom."""

import shutil
from pathlib import Path

import monai.bundle
import torch
from monai.bundle import ConfigParser

from stipple_monai.data import read_datalist, split_datalist, write_datalist
from stipple_monai.simulation import write_phantom

CONFIGS = Path(__file__).parents[2] / "bundles" / "pancreas_stipple" / "configs"


NETWORK = {
    "channels": [4, 8],
    "slice_size": [32, 32],
    "num_workers": 0,
    "device": "$torch.device('cpu')",
    "progress": False,
    "calibration": "equation_2",
    "decision": "argmax",
}


TRAINING = {
    **NETWORK,
    "slices_per_scan": 8,
    "max_epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.01,
}


def partly_labelled(count, *, width, height, known):
    """Batches of slices: the first and third are unlabelled, the second from row ``known`` on."""
    torch.manual_seed(5)
    made = []
    for _ in range(count):
        label = torch.randint(0, 3, (4, 1, width, height)).float()
        label[0] = label[2] = label[1, :, known:] = 255
        made.append({"image": torch.randn(4, 1, width, height), "label": label})
    return made


def files(*names):
    return [str(CONFIGS / f"{name}.yaml") for name in names]


def places(root):
    return {
        "bundle_root": str(root),
        "dataset_dir": str(root),
        "datalist": str(root / "split.json"),
        "models_dir": str(root / "models"),
    }


def run(names, root, **knobs):
    known = {**places(root), **knobs}
    monai.bundle.run(config_file=files(*names), logging_file=False, **known)


def parsed(names, root, **knobs):
    parser = ConfigParser()
    parser.read_config(files(*names))
    parser.update({**places(root), **knobs})
    return parser


def make_scans(root):
    """Two scans with label, three without whose truth is no image, one to validate, one to test."""
    listed = write_phantom(
        root,
        cases=7,
        size=32,
        slices=(12, 14),
        slice_spacing_mm=(10.0, 10.0),
        progress=False,
    )
    sections = split_datalist(
        read_datalist(listed, "training"), labelled=2, validation=1, test=1, seed=0
    )
    garbage = root / "truth.nii.gz"
    garbage.write_text("not an image")
    for item in sections["unlabelled"]:
        item["truth"] = str(garbage)
    write_datalist(root / "split.json", sections)
    return root


def weights(path):
    return torch.load(path, weights_only=True)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def resume_second_epoch(names, root, **knobs):
    """Train on from the first epoch's checkpoint of a finished training, in another folder."""
    resumed = root / f"resumed_{names[-1]}"
    resumed.mkdir()
    shutil.copy(root / "models" / "checkpoint_epoch=1.pt", resumed)
    run(names, root, **{**knobs, "models_dir": str(resumed)}, resume=True)
    return resumed
