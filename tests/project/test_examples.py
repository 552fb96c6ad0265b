"""The examples run and learn, on small generated scans, and the overlay fits bundles of the zoo."""

import csv
import importlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import monai.bundle
import nbformat
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from nbclient import NotebookClient

from stipple_monai import PriorDrivenInferer, PriorDrivenNet, SpatialPrior, load_priors
from stipple_monai.data import write_datalist
from stipple_monai.simulation import write_phantom

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("plain_pytorch", "supervised_trainer", "lightning_module", "several_organs", "mri")
ZOO = EXAMPLES / "model_zoo"
README = EXAMPLES / "README.md"
TRAINING, INFERENCE = ZOO / "stipple.yaml", ZOO / "stipple_inference.yaml"
BUNDLES = {"like_spleen_ct_segmentation": 1, "like_wholeBody_ct_segmentation": 11}
TINY = "--spacing-mm 8 8 8 --patch 24 24 16 --epochs 8"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Organ .* its prior stays neutral"),
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
]


def load(name, monkeypatch):
    """An example, imported as when its file is run: its folder comes first on the path."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder with a phantom where the examples look for it, and a datalist of the same scans."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        items = load("scans", patch).phantom_items(folder / "phantom", size=32)
    write_datalist(folder / "split.json", {"training": items[:6], "test": items[6:]})
    return folder


def run(name, scans, out, arguments, monkeypatch):
    """Run an example on the datalist, where its loss must fall; give what it returns."""
    module = load(name, monkeypatch)
    command = f"--datalist {scans / 'split.json'} --out {out} {arguments}"
    result = module.main(shlex.split(command))
    third = max(1, len(result["loss"]) // 3)
    assert np.mean(result["loss"][-third:]) < np.mean(result["loss"][:third])
    assert all(0 <= dice <= 1 for dice in result["dice"])
    return result


def weights(path):
    return torch.load(path, weights_only=True)


@pytest.mark.training
def test_plain_pytorch(scans, tmp_path, monkeypatch):
    result = run("plain_pytorch", scans, tmp_path, f"--organs 2 {TINY}", monkeypatch)
    assert len(result["loss"]) == 8
    assert len(result["dice"]) == 2
    assert SpatialPrior.load(tmp_path / "prior.nii.gz").case_count == 6
    assert all(key.startswith("network.") for key in weights(tmp_path / "model.pt"))


@pytest.mark.training
def test_supervised_trainer(scans, tmp_path, monkeypatch):
    arguments = f"--organs 2 {TINY} --epochs 5"
    result = run("supervised_trainer", scans, tmp_path, arguments, monkeypatch)
    assert len(result["loss"]) == 15
    (prior,) = load_priors(tmp_path, [2])
    assert prior.center == "groupwise"
    with (tmp_path / "positions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["scan"]).name for row in rows] == [
        "phantom_006.nii.gz",
        "phantom_007.nii.gz",
    ]
    assert {row["organ"] for row in rows} == {"2"}


@pytest.mark.training
def test_lightning(scans, tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason="PyTorch Lightning is not installed")
    result = run("lightning_module", scans, tmp_path, f"--organs 2 {TINY}", monkeypatch)
    assert len(result["loss"]) == 24
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    state = weights(checkpoint)["state_dict"]
    assert all(key.startswith("network.network.") for key in state)


@pytest.mark.training
def test_several_organs(scans, tmp_path, monkeypatch):
    organs = [5, 2, 3]
    arguments = f"--organs {' '.join(map(str, organs))} {TINY}"
    result = run("several_organs", scans, tmp_path, arguments, monkeypatch)
    assert len(result["dice"]) == 3
    assert [p.organ for p in load_priors(tmp_path, organs)] == organs
    for name in ("phantom_006", "phantom_007"):
        written = nib.load(tmp_path / "predictions" / f"{name}_trans.nii.gz")
        scan = nib.load(scans / "phantom" / "imagesTr" / f"{name}.nii.gz")
        assert written.shape == scan.shape
        np.testing.assert_allclose(written.affine, scan.affine, atol=1e-4)
        found = set(np.unique(written.dataobj).tolist())
        assert found <= {0, *organs}
        assert len(found) > 1


@pytest.mark.training
def test_mri(scans, monkeypatch):
    """Without a datalist, on the phantom that is there, with the looks of MR."""
    arguments = "--out {} --size 32 --spacing-mm 8 8 0 --patch 48 48 1 --epochs 3 --organs 2 3"
    result = load("mri", monkeypatch).main(shlex.split(arguments.format(scans)))
    assert result["loss"][-1] < result["loss"][0]
    assert len(result["dice"]) == 2
    images = [nib.load(path).get_fdata() for path in sorted((scans / "mr").glob("*.nii.gz"))]
    assert len(images) == 8
    assert all(image.min() >= 0 for image in images)
    # a value means nothing by itself
    greatest = [image.max() for image in images]
    assert max(greatest) > 1.5 * min(greatest)


@pytest.mark.slow
def test_notebook(tmp_path, monkeypatch):
    """Every cell runs in its order; there are pictures, and the fused prediction is better."""
    notebook = nbformat.read(EXAMPLES / "stipple.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    path = [str(EXAMPLES.parent), str(EXAMPLES), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    printed = "".join(output.get("text", "") for output in outputs)
    bare, fused = map(float, re.search(r"prior: ([\d.]+), fused: ([\d.]+)", printed).groups())
    assert bare < 0.5 < fused  # the network sees its prior in training and is poor without
    assert float(re.search(r"^Dice: ([\d.]+)", printed, re.MULTILINE)[1]) > 0.5
    located = float(re.search(r"located: ([\d.]+) mm", printed)[1])
    assert located < float(re.search(r"centre of the prediction: ([\d.]+) mm", printed)[1])


@pytest.mark.parametrize("name", SCRIPTS)
def test_commands_of_the_docstring_are_understood(name, monkeypatch):
    scans_module = load("scans", monkeypatch)
    monkeypatch.setattr(scans_module, "read_datalist", lambda path, section: [])
    monkeypatch.setattr(scans_module, "phantom_items", lambda folder, size: [])
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    doc = text.split('"""')[1].replace("\\\n", " ")
    commands = re.findall(r"python examples/(\w+)\.py(.*)", doc)
    assert len(commands) == 2
    for script, arguments in commands:
        assert script == name
        options = scans_module.options_of(doc, shlex.split(arguments), out="x")
        assert (options.datalist is None) == (not arguments.strip())


def test_every_example_is_in_the_table():
    table = README.read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w/.]+)\)", table))
    shown = {path.name for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]}
    assert shown <= linked
    assert {f"model_zoo/{path.name}" for path in ZOO.glob("*.yaml")} <= linked
    assert all((EXAMPLES / target).exists() for target in linked)


# The overlay on bundles of the zoo.


class Bundle:
    """A copy of a bundle and its data, and how to run its configs there."""

    def __init__(self, root, data):
        self.root, self.data = root, data

    def files(self, *names):
        return [n if isinstance(n, Path) else self.root / "configs" / f"{n}.json" for n in names]

    @property
    def places(self):
        return {"bundle_root": str(self.root), "dataset_dir": str(self.data)}

    def run(self, *names, **overrides):
        files = [str(path) for path in self.files(*names)]
        monai.bundle.run(config_file=files, logging_file=False, **self.places, **overrides)

    def parser(self, *names):
        parser = ConfigParser()
        parser.read_config([str(path) for path in self.files(*names)])
        parser.update(self.places)
        return parser

    def kept(self):
        return {path: path.read_bytes() for path in self.root.glob("configs/*")}


@pytest.fixture(scope="module", params=BUNDLES)
def bundle(request, tmp_path_factory):
    """The bundle by itself for an epoch; then, with the overlay: priors, training, evaluation."""
    folder = tmp_path_factory.mktemp(request.param)
    data = folder / "data"
    organs = "pancreas" if BUNDLES[request.param] == 1 else "all"
    options = {"slices": (22, 22), "slice_spacing_mm": (6.0, 6.0), "progress": False}
    write_phantom(data, cases=5, size=32, organs=organs, **options)
    (data / "imagesTs").mkdir()
    shutil.copy(data / "imagesTr" / "phantom_004.nii.gz", data / "imagesTs")
    it = Bundle(folder / "bundle", data)
    shutil.copytree(ZOO / request.param, it.root)
    it.organs = BUNDLES[request.param]
    before = it.kept()
    it.run("train", **{"train#trainer#max_epochs": 1})
    it.bare = weights(it.root / "models" / "model.pt")
    it.run("train", TRAINING, run_id="prior")
    it.run("train", TRAINING, **{"train#trainer#max_epochs": 1})
    it.run("train", "evaluate", TRAINING)
    it.run("inference", INFERENCE)
    assert it.kept() == before
    return it


def test_the_overlay_estimates_priors_from_the_labels_that_train(bundle):
    priors = load_priors(bundle.root / "models", range(1, bundle.organs + 1))
    labels = [bundle.data / "labelsTr" / f"phantom_00{i}.nii.gz" for i in range(3)]
    present = [set(np.unique(nib.load(path).dataobj).tolist()) for path in labels]
    for prior in priors:
        assert prior.case_count == sum(prior.organ in found for found in present)


def test_the_overlay_trains_the_bundles_network_with_priors(bundle):
    trained = weights(bundle.root / "models" / "model.pt")
    assert trained.keys() == {f"network.{key}" for key in bundle.bare}
    parser = bundle.parser("train", TRAINING)
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    assert batch["image"].shape[1:] == (1 + bundle.organs, 32, 32, 16)
    assert batch["label"].shape[1:] == (1, 32, 32, 16)
    assert "prior" not in batch
    priors = batch["image"][:, 1:]
    assert 0 <= priors.min() < priors.max() <= 1
    scan = next(iter(parser.get_parsed_content("validate#dataloader")))
    assert scan["image"].shape[1] == 1


@pytest.mark.parametrize(
    ("config", "overlay", "inside", "evaluator"),
    [
        ("train", TRAINING, "validate#inferer", "validate#evaluator"),
        ("inference", INFERENCE, "inferer", "evaluator"),
    ],
)
def test_the_overlay_locates_with_the_bundles_inferer(bundle, config, overlay, inside, evaluator):
    parser = bundle.parser(config, overlay)
    engine = parser.get_parsed_content(evaluator)
    assert isinstance(engine.inferer, PriorDrivenInferer)
    assert isinstance(engine.network, PriorDrivenNet)
    own = parser.get_parsed_content(inside)
    assert engine.inferer.inferer is own
    assert isinstance(own, SlidingWindowInferer)


def test_the_overlay_evaluates(bundle):
    with (bundle.root / "eval" / "val_mean_dice_raw.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["filename"]).name for row in rows] == [
        "phantom_003.nii.gz",
        "phantom_004.nii.gz",
    ]
    assert all(0 <= float(row["mean"]) <= 1 for row in rows)


def test_the_overlay_segments_on_the_scans_own_grid(bundle):
    (path,) = (bundle.root / "eval").rglob("*_trans.nii.gz")
    written, scan = nib.load(path), nib.load(bundle.data / "imagesTs" / "phantom_004.nii.gz")
    assert written.shape == scan.shape
    np.testing.assert_allclose(written.affine, scan.affine, atol=1e-4)
    assert set(np.unique(written.dataobj).tolist()) <= set(range(bundle.organs + 1))


def test_weights_of_the_bare_bundle_load(bundle):
    network = bundle.parser("inference", INFERENCE).get_parsed_content("network")
    network.load_state_dict(bundle.bare)
    for key, value in network.network.state_dict().items():
        assert torch.equal(value.cpu(), bundle.bare[key])


def test_steps_in_one_list_are_taken_apart_as_the_readme_says(bundle, tmp_path):
    """The same patches as with ``+``, by the README's lines, on the list as a whole."""
    overlay = read(TRAINING)
    measured = overlay.pop("+train#deterministic_transforms")
    placed = overlay.pop("+train#random_transforms")
    (lines,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    plain = bundle.parser("train").get_parsed_content("train#deterministic_transforms")
    lines = yaml.safe_load(lines.replace(":6", f":{len(plain)}").replace("6:", f"{len(plain)}:"))
    path = tmp_path / "overlay.yaml"
    content = {**overlay, "measured": measured, "placed": placed, **lines}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    patches = []
    for file in (TRAINING, path):
        dataset = bundle.parser("train", file).get_parsed_content("train#dataset")
        dataset.transform.set_random_state(3)
        drawn = dataset[0]
        patches.append(drawn if isinstance(drawn, list) else [drawn])
    for one, other in zip(*patches, strict=True):
        assert one.keys() == other.keys()
        assert one["image"].shape[0] == 1 + bundle.organs
        torch.testing.assert_close(one["image"].as_tensor(), other["image"].as_tensor())


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    return [x for v in value for x in leaves(v)] if isinstance(value, list) else [value]


def test_overlays_say_the_same_in_short_lines():
    training, inference = read(TRAINING), read(INFERENCE)
    for name in ("organs", "prior_dir", "priors", "network"):
        assert training[name] == inference[name]
    fused = [{**overlay["stipple_inferer"], "inferer": None} for overlay in (training, inference)]
    assert fused[0] == fused[1]
    assert fused[0]["prior_in_training"]
    for path in (TRAINING, INFERENCE):
        assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 100
        assert all(len(x) < 80 for x in leaves(read(path)) if str(x).startswith("$"))


@pytest.mark.parametrize("name", BUNDLES)
def test_train_and_inference_of_a_bundle_have_one_network(name):
    configs = [
        json.loads((ZOO / name / "configs" / f"{c}.json").read_text(encoding="utf-8"))
        for c in ("train", "inference")
    ]
    assert configs[0]["network_def"] == configs[1]["network_def"]
    assert "stipple" not in json.dumps(configs)
