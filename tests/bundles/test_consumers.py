"""Other programs that run MONAI bundles get what they ask for, from the published bundle.

Where a program is installed, its own classes run. What always runs does, step by step, what these
files do with a bundle:

- MONAI Label 0.8.5, ``monailabel/tasks/infer/bundle.py``, ``basic_infer.py``, ``train/bundle.py``
- MONAI Deploy App SDK 4.0.0, ``monai/deploy/operators/monai_bundle_inference_operator.py``
- 3D Slicer's MONAIAuto3DSeg, ``MONAIAuto3DSeg/Scripts/monaibundle_inference.py`` (commit 17f45b9)
"""

import json
import os
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bundle_runs import QUIET, weights
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, MapTransform, SaveImaged

pytestmark = QUIET


@pytest.fixture(scope="module")
def scan(runs):
    (item,) = runs.items("test")
    return item["image"]


@pytest.fixture(scope="module")
def expected(runs, published, scan, tmp_path_factory):
    """What the bundle's own inference makes of the scan, on two grids."""
    found = {}
    for name, spacing in (("own", [-1, -1, -1]), ("other", [14.0, 14.0, -1])):
        out = tmp_path_factory.mktemp(name)
        monai.bundle.run(
            config_file=str(published / "configs" / "inference.yaml"),
            logging_file=False,
            bundle_root=str(published),
            datalist=str(runs.datalist),
            output_dir=str(out),
            spacing_mm=spacing,
        )
        (path,) = out.glob("*_seg.nii.gz")
        found[name] = np.asarray(nib.load(path).dataobj)
    assert 0 < found["own"].sum() < found["own"].size
    return found


@pytest.fixture
def bundle(published, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(published, tmp_path / "pancreas_stipple"))


# MONAI Label


def label_task(bundle, *, dropout=0.0, **knobs):
    """The parser and network of ``BundleInferTask.__init__``."""
    names = ("inference.json", "inference.yaml")
    (config, *_) = [p for n in names if (p := bundle / "configs" / n).exists()]
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.config.update({"bundle_root": str(bundle), "use_click": False, **knobs})
    if dropout > 0:
        parser["network_def"]["dropout"] = dropout
    return parser, parser.get_parsed_content("network_def", instantiate=True)


def label_infer(bundle, scan, *, dropout=0.0, **knobs):
    """``BasicInferTask.__call__``: transforms one by one, on a dictionary with ``image_path``."""
    parser, network = label_task(bundle, dropout=dropout, **knobs)
    data = {"image": scan, "image_path": scan, "model_filename": "model.pt", "device": "cpu"}
    parser.config.update({"device": "cpu"})
    pre = list(parser.get_parsed_content("preprocessing", instantiate=True).transforms)
    loaders = [t for t in pre if isinstance(t, LoadImaged)]
    assert loaders
    for loader in loaders:
        loader._loader.image_only = False
    for transform in pre:
        data = transform(data)
    inferer = parser.get_parsed_content("inferer", instantiate=True)
    network.load_state_dict(weights(bundle / "models" / "model.pt"), strict=False)
    network.eval()
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network)[0]
    post = parser.get_parsed_content("postprocessing", instantiate=True)
    for transform in post.transforms:
        if not isinstance(transform, SaveImaged):
            data = transform(data)
    return data, network


@pytest.mark.parametrize(("grid", "spacing"), [("own", -1), ("other", 14.0)])
def test_label_infers_with_a_path_beside_the_scan(bundle, scan, expected, grid, spacing):
    data, _ = label_infer(bundle, scan, spacing_mm=[spacing, spacing, -1])
    assert data["image_path"] == scan
    pred = data["pred"]
    # Restored resizes to this shape and writes with this affine
    assert tuple(pred.shape[1:]) == tuple(data["image"].meta["spatial_shape"])
    np.testing.assert_array_equal(pred[0].numpy(), expected[grid])
    np.testing.assert_allclose(data["image"].meta["original_affine"], nib.load(scan).affine)


def test_label_asks_for_dropout(bundle):
    _, network = label_task(bundle, dropout=0.3)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Dropout2d)]
    assert {layer.p for layer in layers} == {0.3}
    x = torch.rand(1, 2, 32, 32)
    network.train()
    assert not torch.equal(network(x), network(x))


def test_label_names_the_labels(bundle):
    meta = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    pred = meta["network_data_format"]["outputs"]["pred"]
    named = {v.lower(): int(k) for k, v in pred["channel_def"].items() if v.lower() != "background"}
    assert named == {"pancreas": 1}


def labelled_items(runs):
    sections = ("training", "validation")
    return [
        {key: item[key] for key in ("image", "label")} for s in sections for item in runs.items(s)
    ]


@pytest.mark.parametrize("validation", [1, 0])
def test_label_trains_on_its_own_scans(runs, bundle, validation):
    """The overrides of ``BundleTrainTask.__call__``; no datalist is where the config has one."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.yaml"))
    items = labelled_items(runs)
    handlers = parser.get("train#handlers")
    assert not [
        h for h in handlers if isinstance(h, dict) and h.get("_target_") == "CheckpointLoader"
    ]
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(bundle / "models" / "model.pt"),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "train.yaml"),
        **{
            "bundle_root": str(bundle),
            "train#trainer#max_epochs": 1,
            "train#dataset#data": items[: len(items) - validation],
            "device": "cpu",
            "train#handlers": [loader, *handlers],
            "validate#dataset#data": items[len(items) - validation :],
        },
    )
    assert (bundle / "models" / "last.pt").exists() == bool(validation)
    record = json.loads((bundle / "models" / "provenance.json").read_text(encoding="utf-8"))
    found = {name: data["scans"] for name, data in record["data"].items()}
    assert found == {"training": 3 - validation, "validation": validation}


def test_label_itself(runs, bundle, scan, expected):
    infer = pytest.importorskip("monailabel.tasks.infer.bundle", reason="needs MONAI Label")
    train = pytest.importorskip("monailabel.tasks.train.bundle", reason="needs MONAI Label")
    task = infer.BundleInferTask(str(bundle), {"preload": "false"}, dropout=0.1)
    assert task.is_valid()
    assert task.labels == {"pancreas": 1}
    request = {"image": scan, "device": "cpu", "model_filename": "model.pt"}
    path, _ = task({**request, "result_extension": ".nii.gz"})
    result = nib.load(path)
    np.testing.assert_array_equal(np.asarray(result.dataobj), expected["own"])
    np.testing.assert_allclose(result.affine, nib.load(scan).affine)
    Path(path).unlink()

    class Datastore:
        def datalist(self):
            return labelled_items(runs)

    before = weights(bundle / "models" / "model.pt")
    trainer = train.BundleTrainTask(str(bundle), {})
    asked = {"model": bundle.name, "device": "cpu", "max_epochs": 1, "val_split": 0.34}
    trainer(asked, Datastore())
    after = weights(bundle / "models" / "model.pt")
    assert not all(torch.equal(before[key], after[key]) for key in before)


# MONAI Deploy


def in_memory(scan):
    """As the operator passes a scan on: ``(W, H, D)`` with the affine among its metadata."""
    image = nib.load(scan)
    affine = np.asarray(image.affine)
    meta = {
        "original_affine": affine,
        "affine": affine.copy(),
        "spatial_shape": np.asarray(image.shape),
        "original_channel_dim": "no_channel",
        "space": "RAS",
    }
    return MetaTensor.ensure_torch_and_prune_meta(image.get_fdata(dtype=np.float32), meta)


def test_deploy_passes_scans_in_memory(bundle, scan, expected, monkeypatch):
    # the operator does not set bundle_root
    monkeypatch.chdir(bundle)
    parser = ConfigParser()
    meta = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    parser.read_meta(f=meta)
    parser.read_config([bundle / "configs" / "inference.json"])
    parser.parse()
    device = parser.get_parsed_content("device")
    inferer = parser.get_parsed_content("inferer")
    steps = {}
    for name in ("preprocessing", "postprocessing"):
        steps[name] = parser.get_parsed_content(name)
        assert isinstance(steps[name], Compose)
        kept = [
            t
            for t in steps[name].transforms
            if not any(word in type(t).__name__ for word in ("LoadImage", "SaveImage"))
        ]
        steps[name].transforms = tuple(kept)
        assert isinstance(kept[0], MapTransform)
    network = parser.get_parsed_content("network")
    network.load_state_dict(weights(bundle / "models" / "model.pt"), strict=True)
    network.eval()
    inputs = steps["preprocessing"]({"image": in_memory(scan)})
    first = inputs["image"]
    with torch.no_grad():
        outputs = inferer(inputs=first[None].to(device), network=network)
    found = steps["postprocessing"]({"pred": next(iter(outputs)), "image": first})
    np.testing.assert_array_equal(np.squeeze(found["pred"].numpy(), 0), expected["own"])


def test_deploy_itself(bundle, scan, expected, monkeypatch):
    core = pytest.importorskip("monai.deploy.core", reason="needs the MONAI Deploy App SDK")
    operators = pytest.importorskip("monai.deploy.operators.monai_bundle_inference_operator")
    monkeypatch.chdir(bundle)

    class Port:
        models = None

        def receive(self, name):
            image = nib.load(scan)
            sizes = [float(size) for size in image.header.get_zooms()]
            names = ("row_pixel_spacing", "col_pixel_spacing", "depth_pixel_spacing")
            meta = {**dict(zip(names, sizes, strict=True)), "nifti_affine_transform": image.affine}
            voxels = np.swapaxes(image.get_fdata(dtype=np.float32), 0, 2)
            return core.Image(voxels, {**meta, "space": "RAS"})

        def emit(self, value, name):
            self.sent = {name: value}

    mapping = {
        f"{side}_mapping": [operators.IOMapping(name, core.Image, core.IOType.IN_MEMORY)]
        for side, name in (("input", "image"), ("output", "pred"))
    }
    port = Port()
    application = core.Application()
    operator = operators.MonaiBundleInferenceOperator(
        application, app_context=port, bundle_path=str(bundle), **mapping
    )
    operator.compute(port, port, None)
    found = np.swapaxes(port.sent["pred"].asnumpy(), 0, 2)
    np.testing.assert_array_equal(found, expected["own"])


def test_prior_channels_leave_nothing_beside_the_image(runs, bundle):
    """More tensors than the inputs that metadata.json names would be passed to the network."""
    for names in (["train"], ["inference", "evaluate", "true_position"]):
        parser = ConfigParser()
        parser.read_config([str(bundle / "configs" / f"{name}.yaml") for name in names])
        parser.update({"bundle_root": str(bundle), "datalist": str(runs.datalist)})
        dataset = parser.get_parsed_content("train#dataset" if names[0] == "train" else "dataset")
        (item,) = dataset[0] if isinstance(dataset[0], list) else [dataset[0]]
        tensors = {key for key, value in item.items() if isinstance(value, MetaTensor)}
        assert tensors == {"image", "label"}
        assert len(item["image"]) == 2


# 3D Slicer


def test_slicer_runs_the_bundle_on_one_file(bundle, scan, expected, tmp_path):
    """``_infer`` of the bundle runner."""
    out = tmp_path / "out"
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    device = torch.device("cpu")
    parser["bundle_root"] = bundle.as_posix()
    parser["dataset_dir"] = Path(scan).parent.as_posix()
    parser["output_dir"] = out.as_posix()
    parser["datalist"] = [Path(scan).as_posix()]
    parser["window_device"] = "cpu"
    parser["device"] = device
    parser["inferer"]["device"] = device
    parser["dataloader"]["num_workers"] = 0
    assert len(parser.get_parsed_content("dataloader")) == 1
    with torch.no_grad():
        parser.get_parsed_content("evaluator").run()
    newest = max(out.rglob("*.nii.gz"), key=os.path.getmtime)
    np.testing.assert_array_equal(np.asarray(nib.load(newest).dataobj), expected["own"])
