"""The published bundle passes what the model zoo's CI runs, offline, as it stands.

After ``ci/verify_bundle.py``, ``ci/utils.py``, ``ci/get_bundle_requirements.py`` and
``ci/unit_tests`` of Project-MONAI/model-zoo (commits 17e7879, b831e50, 006add4, ac9fd3e).
"""

import functools
import http.server
import json
import pickle
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import fire
import monai.bundle
import monai.bundle.scripts
import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from helpers.bundle_runs import BUNDLE, CONFIGS, INFERENCE, NETWORK, QUIET, files, weights
from helpers.meta_schema import SCHEMA
from monai.apps.utils import HashCheckError
from monai.bundle import ConfigParser, ConfigWorkflow

import stipple_monai
from stipple_monai import DatasetError
from stipple_monai.__main__ import main
from stipple_monai.bundle.publish import LARGEST_FILE_BYTES, publish_bundle
from stipple_monai.files import sha256
from stipple_monai.networks import Calibration

PROJECT = Path(stipple_monai.__file__).parents[1]
pytestmark = QUIET


def command(name, /, **flags):
    """``python -m monai.bundle NAME --flag value``, in this process."""
    texts = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
    fire.Fire(getattr(monai.bundle, name), command=texts)


@pytest.fixture(scope="module")
def metadata(published):
    return json.loads((published / "configs" / "metadata.json").read_text(encoding="utf-8"))


# layout


def test_the_zoos_files_are_there_and_none_is_too_large(published):
    needed = ["LICENSE", "configs/metadata.json", "models/model.pt", "configs/inference.yaml"]
    preferred = ["configs/logging.conf", "docs/README.md", "docs/data_license.txt"]
    for name in [*needed, *preferred, "models/prior_1.nii.gz", "configs/inference.json"]:
        assert (published / name).is_file(), name
    found = [path for path in published.rglob("*") if path.is_file()]
    assert {path.relative_to(published).parts[0] for path in found} == {
        *("LICENSE", "configs", "docs", "models")
    }
    assert max(path.stat().st_size for path in found) <= LARGEST_FILE_BYTES == 25 * 2**20


def test_the_licence_is_the_apache_licence_to_the_letter():
    text = (BUNDLE / "LICENSE").read_text(encoding="utf-8")
    assert text == (PROJECT / "LICENSE").read_text(encoding="utf-8")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


# metadata


def verify(metadata, folder):
    """`verify_metadata` where the zoo's CI has put the schema before."""
    for name, content in (("metadata", metadata), ("schema", SCHEMA)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    command("verify_metadata", meta_file=folder / "metadata.json", filepath=folder / "schema.json")


def test_metadata_follows_the_schema(metadata, tmp_path):
    assert metadata["schema"].endswith("meta_schema_20240725.json")
    verify(metadata, tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["version"], None),
        (["required_packages_version"], None),
        (["task"], 3),
        (["references"], "Petit"),
        (["network_data_format", "outputs"], None),
        (["network_data_format", "inputs", "image", "num_channels"], "2"),
        (["network_data_format", "inputs", "image", "value_range"], ["0"]),
    ],
)
def test_the_schema_sees_what_breaks_it(metadata, tmp_path, path, value):
    wrong = json.loads(json.dumps(metadata))
    inner = functools.reduce(dict.__getitem__, path[:-1], wrong)
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    with pytest.raises(ValueError, match="Failed validating"):
        verify(wrong, tmp_path)


def test_version_is_in_the_changelog_and_that_of_the_package(metadata):
    assert metadata["version"] in metadata["changelog"]
    assert metadata["required_packages_version"]["stipple-monai"] == metadata["version"]


def test_requirements_are_bare_versions(metadata):
    """The zoo's CI writes `name==version` and adds 1 to the last number of MONAI's."""
    versions = dict(metadata["required_packages_version"])
    for name in ("version", "monai_version", "pytorch_version", "numpy_version"):
        versions[name] = metadata[name]
    assert {k: v for k, v in versions.items() if not re.fullmatch(r"\d+\.\d+\.\d+", v)} == {}


def test_one_input_and_named_labels(metadata):
    layout = {"inputs": "image", "outputs": "pred"}
    assert metadata["network_data_format"].keys() == layout.keys()
    for side, name in layout.items():
        assert list(metadata["network_data_format"][side]) == [name]
        tensor = metadata["network_data_format"][side][name]
        assert len(tensor["channel_def"]) == tensor["num_channels"] == 2
    assert tensor["channel_def"] == {"0": "background", "1": "pancreas"}


# configs


COMBINATIONS = [
    ["prior"],
    ["train"],
    ["train", "multi_gpu_train"],
    ["train", "mlflow"],
    ["train", "baseline"],
    ["train", "baseline", "unlabelled", "mean_teacher"],
    ["train", "baseline", "unlabelled", "adversarial"],
    ["train", "baseline", "unlabelled", "cross_pseudo"],
    ["train", "baseline", "unlabelled", "copy_paste"],
    ["train", "baseline", "unlabelled", "unimatch"],
    ["train", "patch_3d"],
    ["inference"],
    ["inference", "evaluate"],
    ["inference", "evaluate", "true_position"],
    ["inference", "pseudo_label", "multi_gpu_pseudo_label"],
    ["inference", "locator"],
    ["inference", "volumes"],
    ["self_train"],
]


@pytest.mark.filterwarnings("ignore:Can't merge entry")
@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_every_reference_of_the_configs_is_defined(names):
    parser = ConfigParser()
    parser.read_config(files(*names))
    parser.parse()
    for name in list(parser.ref_resolver.items):
        parser.ref_resolver.get_resolved_content(name, instantiate=False, eval_expr=False)


class Unique(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML would take the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.*")), ids=lambda path: path.name)
def test_config_is_tidy(path):
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert [line for line in text.splitlines() if line != line.rstrip() or "\t" in line] == []
    if path.suffix == ".yaml":
        assert yaml.load(text, Loader=Unique) == yaml.safe_load(text)
    if path.suffix == ".json":
        assert json.loads(text)


# network


def small_input():
    return torch.rand(2, 2, 32, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network(published):
    parser = ConfigParser()
    parser.read_config(str(published / "configs" / "inference.yaml"))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(weights(published / "models" / "model.pt"))
    return network


def test_network_takes_and_gives_what_the_metadata_says(published):
    command(
        "verify_net_in_out",
        net_id="network_def",
        meta_file=published / "configs" / "metadata.json",
        config_file=published / "configs" / "inference.yaml",
        bundle_root=published,
    )


def test_exported_torchscript_equals_the_eager_network(published, network, tmp_path):
    command(
        "ckpt_export",
        net_id="network_def",
        filepath=tmp_path / "model.ts",
        ckpt_file=published / "models" / "model.pt",
        meta_file=published / "configs" / "metadata.json",
        config_file=published / "configs" / "inference.yaml",
        bundle_root=published,
    )
    x = small_input()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(x), network(x))


def test_the_exported_network_segments_as_the_eager_one(runs, published, network, tmp_path):
    """As the zoo asks to check an export: in place of the network, without loading weights."""
    exported = tmp_path / "model.ts"
    torch.jit.save(torch.jit.script(network), exported)
    found = {}
    overrides = {"network_def": f"$torch.jit.load('{exported}')", "handlers#0#_disabled_": True}
    for name, more in (("eager", {}), ("exported", overrides)):
        out = tmp_path / name
        check_workflow(runs, published, "infer", ["inference"], output_dir=out, **more)
        (path,) = out.glob("*_seg.nii.gz")
        found[name] = np.asarray(nib.load(path).dataobj)
    np.testing.assert_array_equal(found["exported"], found["eager"])


def test_exported_onnx_equals_the_eager_network(published, network, tmp_path):
    x = small_input()
    command(
        "onnx_export",
        net_id="network_def",
        filepath=tmp_path / "model.onnx",
        ckpt_file=published / "models" / "model.pt",
        meta_file=published / "configs" / "metadata.json",
        config_file=published / "configs" / "inference.yaml",
        input_shape=list(x.shape),
        bundle_root=published,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (name,) = (node.name for node in session.get_inputs())
    (found,) = session.run(None, {name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, network(x).numpy(), atol=1e-4)


# runs


def check_workflow(runs, published, kind, names, *, output_dir, **overrides):
    """As the zoo's unit tests: initialize, look for the required ids, run, finalize."""
    workflow = ConfigWorkflow(
        workflow_type=kind,
        config_file=[str(published / "configs" / f"{name}.yaml") for name in names],
        logging_file=str(published / "configs" / "logging.conf"),
        meta_file=str(published / "configs" / "metadata.json"),
        bundle_root=str(published),
        dataset_dir=str(runs.datalist.parent),
        datalist=str(runs.datalist),
        output_dir=str(output_dir),
        **overrides,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return workflow


def test_one_epoch_of_training(runs, published, tmp_path):
    shutil.copytree(published / "models", tmp_path / "models")
    before = (tmp_path / "models" / "model.pt").read_bytes()
    workflow = check_workflow(
        *(runs, published, "train", ["train"]),
        output_dir=tmp_path / "eval",
        models_dir=str(tmp_path / "models"),
    )
    assert workflow.trainer.state.epoch == workflow.max_epochs == 1
    assert workflow.train_dataset_data == runs.items("training")
    assert workflow.spatial_shape == ["16*n", "16*n"]
    assert (tmp_path / "models" / "model.pt").read_bytes() != before


@pytest.mark.parametrize("names", [["inference"], ["inference", "evaluate"]], ids="+".join)
def test_inference_and_evaluation(runs, published, tmp_path, names):
    workflow = check_workflow(runs, published, "infer", names, output_dir=tmp_path)
    assert workflow.channel_def == {"0": "background", "1": "pancreas"}
    (item,) = runs.items("test")
    name = Path(item["image"]).name.removesuffix(".nii.gz")
    assert (tmp_path / f"{name}_seg.nii.gz").is_file()
    assert (tmp_path / "val_mean_dice_raw.csv").is_file() == (len(names) == 2)


# publishing


def test_published_configs_are_the_trained_ones(published):
    yaml_file, json_file = (published / "configs" / f"inference.{s}" for s in ("yaml", "json"))
    settled = yaml.safe_load(yaml_file.read_text(encoding="utf-8"))
    assert json.loads(json_file.read_text(encoding="utf-8")) == settled
    assert settled["channels"] == [8, 16]
    train = yaml.safe_load((published / "configs" / "train.yaml").read_text(encoding="utf-8"))
    assert (train["channels"], train["slices_per_scan"]) == ([8, 16], 24)
    untouched = yaml.safe_load((CONFIGS / "inference.yaml").read_text(encoding="utf-8"))
    known = (*INFERENCE, "prior_dropout")
    assert settled == {**untouched, **{key: settled[key] for key in known}}


def untrained(runs, folder, *names, **options):
    """Weights that fit configs and knobs, with the priors of the runs."""
    parser = runs.parser("inference", *names, models_dir=str(runs.root / "models"), **options)
    shutil.copytree(runs.root / "models", folder)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    return folder


def test_without_settings_the_configs_keep_their_comments(runs, tmp_path):
    models = untrained(runs, tmp_path / "models")
    (models / "provenance.json").unlink()
    parser = runs.parser("inference", models_dir=str(models))
    torch.save(parser.get_parsed_content("network_def").state_dict(), models / "model.pt")
    Calibration.identity(1).save(models / "calibration.json")
    out = publish_bundle(tmp_path / "pancreas_stipple", models=models)
    # without it, label maps would be decided as of a network that nothing was fitted for
    assert Calibration.load(out / "models" / "calibration.json") == Calibration.identity(1)
    for name in ("train", "inference", "prior"):
        now, then = (f / f"{name}.yaml" for f in (out / "configs", CONFIGS))
        assert now.read_bytes() == then.read_bytes()


def test_knobs_of_the_record_are_settled_where_nothing_else_knows_them(runs, tmp_path):
    models = untrained(runs, tmp_path / "models")
    assert not (models / "model.json").exists()
    config = json.loads((models / "provenance.json").read_text(encoding="utf-8"))["config"]
    out = publish_bundle(tmp_path / "one", models=models)
    inference = yaml.safe_load((out / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    train = yaml.safe_load((out / "configs" / "train.yaml").read_text(encoding="utf-8"))
    for knob in ("channels", "slice_size"):
        assert inference[knob] == train[knob] == config[knob]
    assert inference["calibration"] == config["calibration"]
    # what is as without a record stays as the config has it
    assert inference["floor"].startswith("$")
    other = publish_bundle(tmp_path / "two", models=models, options={"sw_batch_size": 3})
    settled = yaml.safe_load((other / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    assert (settled["sw_batch_size"], settled["channels"]) == (3, config["channels"])


def test_command_publishes_with_an_overlay(runs, tmp_path, capsys):
    out = tmp_path / "pancreas_stipple"
    models = str(untrained(runs, tmp_path / "models", "phantom"))
    assert main(["publish", str(out), "--models", models, "--overlays", "phantom"]) == 0
    assert str(out) in capsys.readouterr().out
    settled = yaml.safe_load((out / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    assert settled["channels"] == [16, 32, 64, 128]


def test_overlays_folders_are_not_those_of_the_published_bundle(runs, tmp_path):
    folder = untrained(runs, tmp_path / "models", "attention_unet")
    models = {"models": folder, "overlays": ["attention_unet"]}
    out = publish_bundle(tmp_path / "one", **models)
    settled = yaml.safe_load((out / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    assert settled["models_dir"] == "$@bundle_root + '/models'"
    assert settled["output_dir"] == "$@bundle_root + '/eval'"
    assert settled["backbone"]["_target_"] == "AttentionUnet"
    out = publish_bundle(tmp_path / "two", **models, options={"output_dir": "/results"})
    settled = yaml.safe_load((out / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    assert settled["output_dir"] == "/results"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder, and the address under which it is served on this computer."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as it:
        threading.Thread(target=it.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{it.server_port}/"
        it.shutdown()


def test_large_files_are_listed_and_downloaded(runs, tmp_path, server):
    served, url = server
    model = runs.root / "models" / "model.pt"
    out = publish_bundle(
        tmp_path / "pancreas_stipple",
        models=model.parent,
        options=NETWORK,
        url=url,
        largest_file_bytes=model.stat().st_size - 1,
    )
    listed = yaml.safe_load((out / "large_files.yml").read_text(encoding="utf-8"))
    entry = {"path": "models/model.pt", "url": f"{url}models/model.pt"}
    entry |= {"hash_val": sha256(model), "hash_type": "sha256"}
    assert entry in listed["large_files"]
    assert not (out / "models" / "model.pt").exists()
    shutil.copytree(model.parent, served / "models")
    (served / "models" / "model.pt").write_bytes(model.read_bytes()[:-1])
    with pytest.raises(HashCheckError, match="hash check of downloaded"):
        command("download_large_files", bundle_path=out)
    shutil.copy(model, served / "models")
    command("download_large_files", bundle_path=out)
    assert (out / "models" / "model.pt").read_bytes() == model.read_bytes()


def test_small_files_need_no_list(runs, tmp_path):
    out = publish_bundle(
        tmp_path / "small", models=runs.root / "models", options=NETWORK, url="http://nowhere"
    )
    assert not (out / "large_files.yml").exists()
    assert (out / "models" / "model.pt").is_file()


class Hub:
    """Stands in for Hugging Face: keeps what it is asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, token=None):
        return self

    def __getattr__(self, name):
        return lambda **kwargs: self.asked.append((name, kwargs))


def test_push_to_hugging_face_has_a_model_card(runs, tmp_path, monkeypatch):
    models = runs.root / "models"
    out = publish_bundle(tmp_path / "pancreas_stipple", models=models, options=NETWORK)
    hub = Hub()
    monkeypatch.setattr(monai.bundle.scripts, "huggingface_hub", SimpleNamespace(HfApi=hub))
    command(
        "push_to_hf_hub",
        repo="group/pancreas_stipple",
        name="pancreas_stipple",
        bundle_dir=tmp_path,
        version="0.1.0",
    )
    assert [name for name, _ in hub.asked] == ["create_repo", "upload_folder", "create_tag"]
    assert hub.asked[1][1] == {"repo_id": "group/pancreas_stipple", "folder_path": str(out)}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    assert (out / "docs" / "README.md").read_text(encoding="utf-8") in card


def test_what_cannot_be_published_is_said(runs, tmp_path):
    models = runs.root / "models"
    with pytest.raises(
        DatasetError, match=r"`models` must have model\.pt and the priors, got .*no"
    ):
        publish_bundle(tmp_path / "out", models=tmp_path / "nothing")
    with pytest.raises(DatasetError, match="`bundle` must be the folder of the bundle"):
        publish_bundle(tmp_path / "out", models=models, bundle=tmp_path)
    with pytest.raises(ValueError, match="did you mean channels"):
        publish_bundle(tmp_path / "out", models=models, options={"chanels": [8]})
    with pytest.raises(FileExistsError, match="`out` must not exist yet"):
        publish_bundle(tmp_path, models=models)
    assert not (tmp_path / "out").exists()


def other_weights(path):
    state = torch.load(path, weights_only=True)
    torch.save({f"x.{name}": value for name, value in state.items()}, path)


def nan_weights(path):
    state = torch.load(path, weights_only=True)
    next(iter(state.values())).fill_(float("nan"))
    torch.save(state, path)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (other_weights, r"model\.pt must hold weights of this network"),
        (nan_weights, r"model\.pt must hold finite weights"),
        (
            lambda path: path.write_bytes(pickle.dumps(print)),
            "more than tensors|be weights|hold weights",
        ),
        (lambda path: path.write_bytes(b"junk"), r"model\.pt must hold weights"),
    ],
)
def test_weights_that_cannot_be_handed_on_are_refused(runs, tmp_path, spoil, match):
    models = shutil.copytree(runs.root / "models", tmp_path / "models")
    spoil(models / "model.pt")
    with pytest.raises(DatasetError, match=match) as caught:
        publish_bundle(tmp_path / "out", models=models, options=NETWORK)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_nothing_that_lay_in_a_part_is_handed_on(runs, tmp_path):
    part = tmp_path / "out.part" / "models"
    part.mkdir(parents=True)
    (part / "prior_7.nii.gz").touch()
    (part / "patients.txt").write_text("mine")
    out = publish_bundle(tmp_path / "out", models=runs.root / "models", options=NETWORK)
    assert {p.name for p in (out / "models").iterdir()} == {"model.pt", "prior_1.nii.gz"}
    assert (part / "patients.txt").read_text() == "mine"
