"""Methods that are compared with STIPPLE, and its position switches, as overlays of the bundle."""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import AttentionUnet, DynUNet
from monai.networks.nets.attentionunet import AttentionBlock
from monai.transforms import Compose
from monai.utils import first, set_determinism

from stipple_monai import (
    PartialDiceCELoss,
    PriorDrivenNet,
    SliceUNet,
    atlas,
    load_priors,
    locate_organ,
    measure_position,
    organ_position,
)
from stipple_monai.data import read_datalist, split_datalist, write_datalist
from stipple_monai.losses.atlas_prior import AtlasPriorLoss
from stipple_monai.simulation import write_phantom

CONFIGS = Path(__file__).parents[2] / "bundles" / "pancreas_stipple" / "configs"
CPU = "$torch.device('cpu')"
NETWORK = {
    "channels": [4, 8, 16],
    "slice_size": [32, 32],
    "num_workers": 0,
    "device": CPU,
    "calibration": "equation_2",
    "decision": "argmax",
    "prior_dropout": 0.25,
    "rotation_degrees": 6,
    "zoom": 0.1,
    "vary_intensities": False,
}
TRAINING = {
    **NETWORK,
    "slices_per_scan": 12,
    "max_epochs": 1,
    "batch_size": 4,
    "learning_rate": 0.02,
    "progress": False,
}
# enough to predict the organ
STIPPLE = {"max_epochs": 6, "slices_per_scan": 48, "batch_size": 6, "channels": [8, 16]}
INFERENCE = {**NETWORK, "progress": False, "minimum_confidence": 0}
SWITCHED = {**INFERENCE, "channels": STIPPLE["channels"]}
PATCH = {"patch_size": [16, 16, 8]}
WITHOUT_PRIOR = {
    "attention_unet": ["baseline", "attention_unet"],
    "patch_3d": ["baseline", "patch_3d"],
    "coord_conv": ["coord_conv", "baseline"],
}
TRAINED = {**WITHOUT_PRIOR, "patch_3d_prior": ["patch_3d"], "atlas_prior": ["atlas_prior"]}
every_method = pytest.mark.parametrize("method", TRAINED)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Can't merge entry"),
    pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere"),
]


@dataclass
class Runs:
    """A folder where the bundle ran, and how to run it there again."""

    root: Path

    @property
    def places(self):
        data = self.root / "data"
        datalist = str(data / "split.json")
        return {"bundle_root": str(self.root), "dataset_dir": str(data), "datalist": datalist}

    def run(self, *names, **knobs):
        files = [str(CONFIGS / f"{name}.yaml") for name in names]
        monai.bundle.run(config_file=files, logging_file=False, **{**self.places, **knobs})

    def parser(self, *names, **knobs):
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / f"{name}.yaml") for name in names])
        parser.update({**self.places, **knobs})
        return parser

    def parsed(self, method, *names, **knobs):
        """The configs with a method's overlays behind ``names``."""
        patch = PATCH if "patch_3d" in method else {}
        folder = str(self.models(method))
        known = {**TRAINING, **patch, "models_dir": folder}
        return self.parser(*names, *TRAINED[method], **{**known, **knobs})

    def steps(self, method, name, **knobs):
        """A list of transforms of training, as one."""
        known = {"prior_dropout": 0, "prior_shift_mm": [0, 0, 0], **knobs}
        return Compose(self.parsed(method, "train", **known).get_parsed_content(name))

    def models(self, method):
        return self.root / "models" / method

    def items(self, section):
        return read_datalist(self.places["datalist"], section)

    def scores(self, name):
        path = self.root / "eval" / name / "scores.csv"
        with path.open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each method trained for an epoch on two scans and evaluated, as its overlay says."""
    it = Runs(tmp_path_factory.mktemp("methods"))
    listed = write_phantom(
        it.root / "data",
        cases=6,
        size=32,
        slices=(12, 14),
        slice_spacing_mm=(10.0, 10.0),
        progress=False,
    )
    items = read_datalist(listed, "training")
    sections = split_datalist(items, labelled=2, validation=1, test=1, seed=0)
    write_datalist(it.places["datalist"], sections)
    it.run("prior", device=CPU)
    for method in ("patch_3d_prior", "atlas_prior"):
        it.models(method).mkdir()
        for name in ("prior_1.nii.gz", "prior_1_cases.npz"):
            shutil.copy(it.root / "models" / name, it.models(method))
    it.run("train", **{**TRAINING, **STIPPLE})
    for method, overlays in TRAINED.items():
        patch = PATCH if "patch_3d" in method else {}
        places = {"models_dir": str(it.models(method)), **patch}
        places["output_dir"] = str(it.root / "eval" / method)
        it.run("train", *overlays, **TRAINING, **places)
        if method == "atlas_prior":
            for path in it.models(method).glob("prior_1*"):
                path.unlink()
            overlays = ["baseline"]
        it.run("inference", "evaluate", *overlays, **INFERENCE, **places)
    for switch in ("naive_position", "random_reference", "atlas"):
        it.run("inference", "evaluate", switch, **SWITCHED)
    return it


# all


def test_every_method_scores_every_test_scan(runs):
    for method in (*TRAINED, "naive_position", "random_reference", "atlas"):
        rows = runs.scores(method)
        assert [Path(row["scan"]).name for row in rows] == [
            Path(item["image"]).name for item in runs.items("test")
        ], method
        assert all(0 <= float(row["dice"]) <= 1 for row in rows)


@every_method
def test_the_schedule_is_that_of_train(runs, method):
    train = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))
    parser = runs.parser("train", *TRAINED[method])
    knobs = "seed max_epochs val_interval batch_size learning_rate decay slices_per_scan"
    for key in (*knobs.split(), "slice_size", "optimizer", "lr_scheduler", "state", "amp"):
        assert parser[key] == train[key], key
    assert parser["train"]["trainer"] == train["train"]["trainer"]
    assert parser["train"]["dataset"] == train["train"]["dataset"]


@every_method
@pytest.mark.parametrize("base", ["train", "inference"])
def test_a_data_overlay_may_follow(runs, method, base):
    if (method, base) == ("atlas_prior", "inference"):
        pytest.skip("its inference is that of the baseline")
    phantom = yaml.safe_load((CONFIGS / "phantom.yaml").read_text(encoding="utf-8"))
    parser = runs.parser(base, *TRAINED[method], "phantom", device=CPU)
    for key in ("channels", "slice_size", "sw_batch_size"):
        assert parser.get_parsed_content(key) == phantom[key]
    backbone = parser.get_parsed_content("backbone")
    widths = {m.out_channels for m in backbone.modules() if hasattr(m, "out_channels")}
    assert set(phantom["channels"]) < widths
    assert max(widths) == max(phantom["channels"])
    size = [32, 32, 16] if "patch_3d" in method else phantom["slice_size"]
    channels = 4 if method == "coord_conv" else 1
    with torch.no_grad():
        assert backbone.eval()(torch.zeros(1, channels, *size)).shape == (1, 2, *size)
    if base == "train":
        assert parser.get_parsed_content("train#dataloader#batch_size") == phantom["batch_size"]


@pytest.mark.parametrize("method", [m for m in TRAINED if m != "atlas_prior"])
def test_overlays_may_stand_on_the_prior_config(runs, method):
    known = runs.parser("prior", "phantom").config
    parser = runs.parser("prior", *TRAINED[method], "phantom")
    for key in ("organs", "bins", "center", "dataset_dir", "items", "run"):
        assert parser[key] == known[key]
    assert parser.get_parsed_content("items") == runs.items("training")


@pytest.mark.parametrize("method", WITHOUT_PRIOR)
def test_the_order_with_baseline_does_not_matter(runs, method):
    for base in ("train", "inference"):
        configs = []
        for overlays in (["baseline", method], [method, "baseline"]):
            config = {**runs.parser(base, *overlays).config}
            # the last overlay names the folders
            del config["models_dir"], config["output_dir"]
            configs.append(config)
        assert configs[0] == configs[1]


@pytest.mark.parametrize("method", [*WITHOUT_PRIOR, "atlas_prior"])
def test_a_method_without_prior_knows_none(runs, method):
    """Its folder has no prior, and its scores have no position."""
    assert not list(runs.models(method).glob("prior_*"))
    rows = runs.scores(method)
    assert {row["position_error_mm"] for row in rows} == {""}
    assert not (runs.root / "eval" / method / "positions.csv").exists()
    names = TRAINED[method] if method in WITHOUT_PRIOR else ["baseline"]
    knobs = {**INFERENCE, "models_dir": str(runs.models(method))}
    network = runs.parser("inference", *names, **knobs).get_parsed_content("network")
    assert not any(isinstance(m, PriorDrivenNet) for m in network.modules())


# attention_unet


def test_attention_unet_is_that_of_monai_with_a_gate_at_every_skip(runs):
    network = runs.parsed("attention_unet", "train").get_parsed_content("network")
    assert type(network) is AttentionUnet
    gates = [m for m in network.modules() if isinstance(m, AttentionBlock)]
    assert len(gates) == len(NETWORK["channels"]) - 1
    state = torch.load(runs.models("attention_unet") / "model.pt", weights_only=True)
    network.load_state_dict(state)


def test_an_attention_unet_takes_the_prior_too(runs):
    parser = runs.parser("train", "attention_unet", **TRAINING)
    network = parser.get_parsed_content("network")
    assert type(network) is PriorDrivenNet
    assert type(network.network) is AttentionUnet
    assert network(torch.rand(1, 2, 32, 32)).shape == (1, 2, 32, 32)


# patch_3d


def one(items):
    """The only sample of a crop."""
    (item,) = items if isinstance(items, list) else [items]
    return item


def voxels_of(grid, volume):
    """Where the voxels of a grid lie in a volume, as voxel indices ``(3, *grid)``."""
    ranges = [torch.arange(n, dtype=torch.float64) for n in grid.shape[1:]]
    index = torch.stack([*torch.meshgrid(*ranges, indexing="ij"), torch.ones(grid.shape[1:])])
    across = torch.linalg.inv(volume.affine) @ grid.affine.double()
    return torch.einsum("ij,jwhd->iwhd", across, index.double())[:3]


@pytest.mark.parametrize("method", ["patch_3d", "patch_3d_prior"])
def test_patches_are_what_the_knob_says(runs, method):
    parser = runs.parsed(method, "train")
    set_determinism(seed=0)
    batch = first(parser.get_parsed_content("train#dataloader"))
    channels = 1 + (method == "patch_3d_prior")
    assert batch["image"].shape == (4, channels, *PATCH["patch_size"])
    assert batch["label"].shape == (4, 1, *PATCH["patch_size"])
    assert set(batch["label"].unique().tolist()) == {0, 1}
    network = parser.get_parsed_content("network")
    backbone = network.network if method == "patch_3d_prior" else network
    assert type(backbone) is DynUNet
    assert backbone.spatial_dims == 3
    window = parser.get_parsed_content("slice_inferer")
    assert type(window) is SlidingWindowInferer
    assert list(window.roi_size) == PATCH["patch_size"]
    assert type(network) is (PriorDrivenNet if method == "patch_3d_prior" else DynUNet)


def test_a_patch_is_turned_and_scaled_in_the_plane_like_a_slice(runs):
    fixed, crop = (runs.steps("patch_3d", f"train#{name}") for name in ("fixed", "slices"))
    crop.set_random_state(seed=1)
    volume = fixed(runs.items("training")[0])
    angles, scales = [], []
    for _ in range(40):
        image = one(crop(dict(volume)))["image"]
        across = torch.linalg.inv(volume["image"].affine) @ image.affine.double()
        torch.testing.assert_close(across[2, :3], torch.eye(3, dtype=torch.float64)[2])
        torch.testing.assert_close(across[:2, 2], torch.zeros(2, dtype=torch.float64))
        angles.append(float(torch.atan2(across[1, 0], across[0, 0])))
        scales.append(float(across[:2, 0].norm()))
    assert 0.07 < max(np.abs(angles)) <= 0.1048
    assert 0.89 < min(scales) < 0.95
    assert 1.05 < max(scales) < 1.11


def test_a_patch_shows_its_part_of_the_scan(runs):
    """The margin of the crop holds whatever turning and scaling asks for."""
    fixed, crop = (runs.steps("patch_3d", f"train#{name}") for name in ("fixed", "slices"))
    crop.set_random_state(seed=2)
    volume = fixed(runs.items("training")[0])
    values, label = volume["image"][0].as_tensor(), volume["label"][0].as_tensor()
    last = torch.tensor(values.shape).reshape(3, 1, 1, 1) - 1
    shares = []
    for _ in range(10):
        item = one(crop(dict(volume)))
        where = voxels_of(item["image"], volume["image"])
        # beyond the scan: its border
        unit = (2 * where.clamp(min=0).minimum(last) / last - 1).flip(0).permute(1, 2, 3, 0)
        expected = torch.nn.functional.grid_sample(
            values[None, None].double(), unit[None], align_corners=True
        )
        torch.testing.assert_close(
            item["image"].as_tensor().double(), expected[0], atol=0.02, rtol=0
        )
        inside = ((where > -0.4) & (where < last + 0.4)).all(0)
        # halfway between two voxels either is nearest
        sure = inside & ((where - where.floor() - 0.5).abs() > 0.02).all(0)
        w, h, d = where[:, sure].round().long()
        assert torch.equal(item["label"][0].as_tensor()[sure], label[w, h, d])
        shares.append(float(item["label"].mean()))
    assert max(shares) > 0.02


def test_the_prior_of_a_patch_is_the_one_placed_on_its_grid(runs):
    steps = [
        runs.steps("patch_3d_prior", name, leave_one_out=False)
        for name in ("train#fixed", "train#random")
    ]
    steps[1].set_random_state(seed=0)
    (prior,) = load_priors(runs.root / "models", [1])
    highest = []
    for scan in runs.items("training"):
        item = one(steps[1](steps[0](dict(scan))))
        assert set(item) == {"image", "label"}
        grid = MetaTensor(torch.zeros(1, *PATCH["patch_size"]), affine=item["image"].affine)
        placed = prior.place(measure_position(scan["label"], prior), grid)
        torch.testing.assert_close(item["image"][1:].as_tensor(), placed.as_tensor())
        highest.append(float(placed.max()))
    assert max(highest) > 0.5


def test_scans_smaller_than_a_patch_are_padded(runs):
    knobs = {"patch_size": [40, 40, 16]}
    fixed, crop = (runs.steps("patch_3d", f"train#{name}", **knobs) for name in ("fixed", "slices"))
    crop.set_random_state(seed=0)
    volume = fixed(runs.items("training")[0])
    assert volume["image"].shape[1:] < (40, 40, 16)
    item = one(crop(dict(volume)))
    assert item["image"].shape == item["label"].shape == (1, 40, 40, 16)
    parser = runs.parsed("patch_3d", "inference", **knobs)
    network = parser.get_parsed_content("network").eval()
    with torch.no_grad():
        logits = parser.get_parsed_content("slice_inferer")(volume["image"][None], network)
    assert logits.shape == (1, 2, *volume["image"].shape[1:])
    assert torch.isfinite(torch.as_tensor(logits)).all()


@pytest.mark.parametrize("method", ["patch_3d_prior", "coord_conv"])
def test_methods_make_pseudo_labels(runs, method, tmp_path):
    patch = PATCH if "patch_3d" in method else {}
    places = {"models_dir": str(runs.models(method)), "output_dir": str(tmp_path), **patch}
    runs.run("inference", "pseudo_label", *TRAINED[method], **INFERENCE, **places)
    made = read_datalist(tmp_path / "datalist.json", "training")
    assert len(made) == 4
    for item in made[2:]:
        label, scan = nib.load(item["label"]), nib.load(item["image"])
        assert label.shape == scan.shape
        np.testing.assert_allclose(label.affine, scan.affine, atol=1e-4)
        assert ("organ_position" in item) == (method == "patch_3d_prior")


# coord_conv


def test_coordinates_are_those_of_the_whole_scan_and_intensities_as_without(runs):
    volume = runs.steps("coord_conv", "train#fixed")(runs.items("training")[0])["image"]
    _, *size = volume.shape
    assert volume.shape[0] == 4
    for w, h, d in ((0, 0, 0), (5, 30, 7), (size[0] - 1, size[1] - 1, size[2] - 1), (16, 2, 0)):
        by_hand = [i / (n - 1) - 0.5 for i, n in zip((w, h, d), size, strict=True)]
        assert volume[1:, w, h, d].tolist() == pytest.approx(by_hand, abs=1e-6)
    plain = runs.parser("train", "baseline", **TRAINING).get_parsed_content("train#fixed")
    expected = Compose(plain)(runs.items("training")[0])["image"]
    assert torch.equal(volume[:1].as_tensor(), expected.as_tensor())
    assert torch.equal(volume.affine, expected.affine)


def test_a_slice_knows_its_place_after_augmentation(runs):
    fixed, cut = (runs.steps("coord_conv", f"train#{name}") for name in ("fixed", "slices"))
    cut.set_random_state(seed=0)
    volume = fixed(runs.items("training")[0])
    last = torch.tensor(volume["image"].shape[1:]).reshape(3, 1, 1, 1) - 1
    depths, outside = set(), 0
    for _ in range(8):
        image = one(cut(dict(volume)))["image"]
        assert image.shape == (4, *NETWORK["slice_size"], 1)
        where = voxels_of(image, volume["image"])
        # beyond the scan: its border
        expected = where.clamp(min=0).minimum(last) / last - 0.5
        found = image[1:].as_tensor().double()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        depths |= {round(float(d), 4) for d in found[2].unique()}
        outside += int((where != where.clamp(min=0).minimum(last)).sum())
    assert len(depths) > 2
    assert outside > 0


@pytest.mark.parametrize(
    ("spacing_mm", "inverted"),
    [([-1, -1, -1], ["Orientation"]), ([4.0, 4.0, -1], ["Orientation", "SpatialResample"])],
)
def test_inference_gives_the_network_what_validation_gives_it(runs, spacing_mm, inverted):
    (scan,) = runs.items("test")
    train, inference = (
        runs.parsed("coord_conv", name, spacing_mm=spacing_mm) for name in ("train", "inference")
    )
    image = inference.get_parsed_content("preprocessing")(scan)["image"]
    validation = train.get_parsed_content("validate#preprocessing")(scan)["image"]
    assert image.shape[0] == 4
    assert torch.equal(image.as_tensor(), validation.as_tensor())
    assert [step["class"] for step in image.applied_operations] == inverted


def test_padded_slices_continue_the_coordinates(runs):
    parser = runs.parsed("coord_conv", "inference", slice_size=[40, 40])
    volume = parser.get_parsed_content("preprocessing")(runs.items("test")[0])["image"]
    seen = []
    parser.get_parsed_content("slice_inferer")(
        volume[None], lambda x: seen.append(torch.as_tensor(x)) or x[:, :2]
    )
    slices = torch.cat(seen)
    assert slices.shape[1:] == (4, 40, 40)
    rows = slices[:, 1, :, 20]
    assert torch.equal(rows[:, :4], torch.full_like(rows[:, :4], -0.5))
    assert torch.equal(rows[:, -4:], torch.full_like(rows[:, -4:], 0.5))
    assert len(slices[:, 3].unique()) == volume.shape[-1]


def test_coordinates_stay_behind_other_intensities(runs):
    """A data set's overlay may replace the normalisation."""
    names = [*TRAINED["coord_conv"], "chaos_mr"]
    parser = runs.parser("train", *names, device=CPU)
    inference = runs.parser("inference", *names, device=CPU).get_parsed_content("preprocessing")
    for steps in (
        parser.get_parsed_content("train#fixed"),
        parser.get_parsed_content("validate#preprocessing").transforms,
        inference.transforms,
    ):
        assert [type(step).__name__ for step in steps][-3:] == [
            "ScaleIntensityRangePercentilesd",
            "NormalizeIntensityd",
            "AddCoordinateChannelsd",
        ]


def test_coordinates_go_with_another_network(runs):
    names = ["attention_unet", "coord_conv", "baseline"]
    network = runs.parser("train", *names, **TRAINING).get_parsed_content("network")
    assert type(network) is AttentionUnet
    assert network(torch.rand(1, 4, 32, 32)).shape == (1, 2, 32, 32)


# atlas_prior


def test_the_atlas_goes_behind_the_label_at_the_organs_position(runs):
    folder = {"models_dir": str(runs.root / "models")}
    names = ("train#fixed", "train#slices", "prior_placement")
    fixed, cut, place = (runs.steps("atlas_prior", name, **folder) for name in names)
    cut.set_random_state(seed=0)
    (prior,) = load_priors(runs.root / "models", [1])
    (scan, _) = runs.items("training")
    volume, position = fixed(scan), measure_position(scan["label"], prior)
    highest = []
    for _ in range(6):
        item = place(one(cut(dict(volume))))
        assert item["image"].shape == (1, 32, 32, 1)
        label = item["label"]
        assert label.shape == (2, 32, 32, 1)
        grid = MetaTensor(torch.zeros(1, 32, 32, 1), affine=label.affine)
        placed = prior.place(position, grid).as_tensor()
        torch.testing.assert_close(label[1:].as_tensor(), placed)
        assert set(label[0].unique().tolist()) <= {0, 1}
        highest.append(float(placed.max()))
    assert max(highest) > 0.5


def test_the_atlas_prior_trains_the_baselines_network(runs):
    folder = {"models_dir": str(runs.root / "models")}
    parser = runs.parsed("atlas_prior", "train", **folder)
    network, loss = parser.get_parsed_content("network"), parser.get_parsed_content("loss")
    assert type(network) is SliceUNet
    assert type(loss) is AtlasPriorLoss
    batch = first(parser.get_parsed_content("train#dataloader"))
    assert batch["image"].shape == (4, 1, 32, 32)
    logits, target = network(batch["image"].as_tensor()), batch["label"].as_tensor()
    dice = PartialDiceCELoss(softmax=True, include_background=False, batch=True, lambda_ce=0)
    expected = AtlasPriorLoss(gamma=2, atlas_gamma=2, atlas_factor=1)(logits, target)
    torch.testing.assert_close(loss(logits, target), expected + dice(logits, target[:, :1]))
    state = torch.load(runs.models("atlas_prior") / "model.pt", weights_only=True)
    SliceUNet(1, 2, NETWORK["channels"]).load_state_dict(state)


def test_the_atlas_is_scored_as_the_others(runs):
    path = runs.models("atlas_prior") / "curve.csv"
    with path.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert 0 <= float(row["train_dice"]) <= 1
    assert 0 <= float(row["validation_dice"]) <= 1


# position switches


def positions(runs, name):
    path = runs.root / "eval" / name / "positions.csv"
    with path.open(encoding="utf-8") as file:
        return [[float(row[f"{axis}_mm"]) for axis in "ras"] for row in csv.DictReader(file)]


def predicted(runs, parser):
    """The organ's probability in the test scan, from the backbone alone."""
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(runs.root / "models" / "model.pt", weights_only=True))
    image = parser.get_parsed_content("preprocessing")(runs.items("test")[0])["image"]
    with torch.no_grad():
        logits = parser.get_parsed_content("slice_inferer")(image[None], network.network)
    return MetaTensor(torch.as_tensor(logits)[0].softmax(0)[1:], affine=image.affine)


def test_the_naive_position_is_the_box_centre_of_the_prediction(runs):
    coarse = predicted(runs, runs.parser("inference", "naive_position", **SWITCHED))
    mask = MetaTensor((coarse >= 0.5).float(), affine=coarse.affine)
    expected = organ_position(mask, center="bbox")
    assert positions(runs, "naive_position") == [pytest.approx(expected.tolist(), abs=0.006)]


def test_the_atlas_takes_the_place_of_the_own_prior(runs):
    parser = runs.parser("inference", "atlas", **SWITCHED)
    (prior,), (expected,) = parser.get_parsed_content("priors"), atlas("abdomen", {1: "pancreas"})
    assert torch.equal(prior.probability, expected.probability)
    # the network's own labels count, not the atlas's
    assert (expected.case_count, parser.get_parsed_content("inferer").labelled) == (60, [2])
    located = locate_organ(predicted(runs, parser), expected)
    assert positions(runs, "atlas") == [pytest.approx(located.tolist(), abs=0.006)]


def test_the_atlas_needs_a_name_for_each_organ(runs):
    parser = runs.parser("inference", "atlas", **SWITCHED, atlas_names=["liver", "pancreas"])
    with pytest.raises(RuntimeError, match="zip"):
        parser.get_parsed_content("priors")


def drawn(runs, **knobs):
    """The labels whose organ is the reference of each of some seeds."""
    paths = [item["label"] for item in runs.items("training")]
    sizes = {int((np.asarray(nib.load(path).dataobj) == 1).sum()): path for path in paths}
    assert len(sizes) == len(paths)
    parsers = [
        runs.parser("inference", "random_reference", **INFERENCE, reference_seed=seed, **knobs)
        for seed in range(8)
    ]
    found = [parser.get_parsed_content("inferer").references[0] for parser in parsers]
    return [sizes[int(reference.probability.sum())] for reference in found]


def test_the_random_reference_is_one_training_label(runs):
    labels = drawn(runs)
    assert set(labels) == {item["label"] for item in runs.items("training")}
    assert drawn(runs) == labels
    inferer = runs.parser("inference", "random_reference", **INFERENCE).get_parsed_content(
        "inferer"
    )
    # what is placed stays the prior of all
    (placed,), (prior,) = inferer.priors, load_priors(runs.root / "models", [1])
    assert torch.equal(placed.probability, prior.probability)
    assert placed.case_count == 2


def test_neither_pseudo_labels_nor_other_sections_are_references(runs, tmp_path):
    (one, other), (test,) = runs.items("training"), runs.items("test")
    (plain, *_) = runs.items("unlabelled")
    path = tmp_path / "next.json"
    pseudo = {**other, "pseudo_label": {"round": 1}}
    write_datalist(path, {"training": [pseudo, {"image": plain["image"]}, one]})
    write_datalist(tmp_path / "test.json", {"test": [test]})
    places = {"datalist": str(tmp_path / "test.json"), "reference_datalist": str(path)}
    assert set(drawn(runs, **places)) == {one["label"]}


def test_the_position_is_where_the_reference_fits_best(runs):
    parser = runs.parser("inference", "random_reference", **SWITCHED)
    coarse = predicted(runs, parser)
    (reference,) = parser.get_parsed_content("inferer").references
    expected = locate_organ(coarse, reference)
    assert positions(runs, "random_reference") == [pytest.approx(expected.tolist(), abs=0.006)]
