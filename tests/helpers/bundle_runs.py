"""Runs of the bundle that several test files look at."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import monai.bundle
import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from stipple_monai.data import read_datalist

REPOSITORY = Path(__file__).parents[2]
BUNDLE = REPOSITORY / "bundles" / "pancreas_stipple"
CONFIGS = BUNDLE / "configs"
# the configs choose the device; these tests are about the CPU unless they say otherwise
CPU = "$torch.device('cpu')"
# what a network of an epoch says is too little for the constants of the fusion
EQUATION_2 = {"calibration": "equation_2", "decision": "argmax"}
NETWORK = {
    "channels": [8, 16],
    "slice_size": [32, 32],
    "num_workers": 0,
    "device": CPU,
    **EQUATION_2,
}
TRAINING = {
    **NETWORK,
    "slices_per_scan": 24,
    "max_epochs": 1,
    "batch_size": 6,
    "learning_rate": 0.02,
    "progress": False,
    "prior_dropout": 0.25,
    "rotation_degrees": 6,
    "zoom": 0.1,
    "vary_intensities": False,
}
# what a network sees after an epoch is nowhere certain
INFERENCE = {**NETWORK, "progress": False, "minimum_confidence": 0}
QUIET = [pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere")]


def load(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def files(*names):
    return [str(CONFIGS / f"{name}.yaml") for name in names]


def weights(path):
    return torch.load(path, weights_only=True)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@dataclass
class Runs:
    """A folder where the bundle ran, and how to run it there again."""

    root: Path
    datalist: Path

    @property
    def places(self):
        data = {"dataset_dir": str(self.datalist.parent), "datalist": str(self.datalist)}
        return {"bundle_root": str(self.root), **data}

    def run(self, *names, **overrides):
        known = {**self.places, **overrides}
        monai.bundle.run(config_file=files(*names), logging_file=False, **known)

    def parser(self, *names, **overrides):
        parser = ConfigParser()
        parser.read_config(files(*names))
        parser.update({**self.places, **overrides})
        return parser

    def models(self, name):
        """A new folder for weights, with the priors."""
        folder = self.root / name
        folder.mkdir()
        for prior in (self.root / "models").glob("prior_*"):
            shutil.copy(prior, folder)
        return folder

    def other(self, name, **sections):
        """The same folder with another datalist, ``sections`` of this one replaced."""
        now = json.loads(self.datalist.read_text(encoding="utf-8"))
        path = self.datalist.parent / f"{name}.json"
        path.write_text(json.dumps({**now, **sections}), encoding="utf-8")
        return Runs(self.root, path)

    def items(self, section):
        return read_datalist(self.datalist, section)

    @property
    def pseudo(self):
        return Runs(self.root, self.root / "eval" / "pseudo_labels" / "datalist.json")
