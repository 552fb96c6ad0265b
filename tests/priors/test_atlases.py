"""The atlas that the package ships, and the script that makes it."""

import json
import runpy
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.real_data import DATA, real
from monai.data import MetaTensor

from stipple_monai import PriorError, atlas, check_orientation, load_priors
from stipple_monai.data import label_names, read_volume
from stipple_monai.files import read_json
from stipple_monai.priors.atlases import atlas_folder, atlas_has

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "make_atlas.py"
RIGHT, ANTERIOR, SUPERIOR = range(3)


@pytest.fixture(scope="module")
def organs():
    record = read_json(atlas_folder() / "atlas.json")
    priors = atlas()
    assert [prior.organ for prior in priors] == [int(value) for value in record["organs"]]
    return dict(zip(record["organs"].values(), priors, strict=True))


def middle_of_mass(prior):
    """Of a prior at its mean offset; its centre is the middle of a box, far off for a liver."""
    weights = prior.probability.numpy()
    axes = [
        (np.arange(n) - (n - 1) / 2) * s
        for n, s in zip(weights.shape, prior.spacing_mm, strict=True)
    ]
    middle = [(weights * x).sum() / weights.sum() for x in np.meshgrid(*axes, indexing="ij")]
    return np.add(middle, prior.offset_mm)


def test_thirteen_organs_lie_where_they_do_in_people(organs):
    assert len(organs) == 13
    assert np.abs(np.sum([p.offset_mm for p in organs.values()], axis=0)).max() < 0.1
    at = {name: middle_of_mass(prior) for name, prior in organs.items()}

    def in_order(axis, *names):
        assert list(names) == sorted(names, key=lambda name: at[name][axis])

    left_to_right = ("spleen", "left kidney", "stomach", "aorta", "inferior vena cava", "liver")
    in_order(RIGHT, *left_to_right)
    in_order(RIGHT, "left adrenal gland", "aorta", "right adrenal gland", "right kidney")
    in_order(ANTERIOR, "left kidney", "aorta", "pancreas", "stomach")
    in_order(SUPERIOR, "right kidney", "pancreas", "stomach", "oesophagus")


def test_it_tells_how_many_labels_and_their_volumes(organs):
    counts = {name: prior.case_count for name, prior in organs.items()}
    # 20 patients, one without gallbladder, and 40 further pancreases
    assert counts.pop("pancreas") == 60
    assert counts.pop("gallbladder") == 19
    assert set(counts.values()) == {20}
    for prior in organs.values():
        volumes = prior.volumes_ml
        assert volumes.minimum < volumes.mean < volumes.maximum
        assert prior.cases is None
        assert prior.log_likelihood > 0
        # a density holds as much organ as its labels do on average
        inside = float(prior.probability.sum()) * np.prod(prior.spacing_mm) / 1000
        assert inside == pytest.approx(volumes.mean, rel=0.05)
    assert organs["liver"].volumes_ml.mean == pytest.approx(1689, abs=1)


def test_it_is_small_and_names_its_sources():
    folder = atlas_folder()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000
    assert not list(folder.glob("*cases*"))
    for source in read_json(folder / "atlas.json")["sources"]:
        assert "not verified" in source["licence"]
        assert source["name"]
        assert source["used_for"]


def test_organs_by_the_names_and_values_of_others(organs):
    wanted = {3: "Spleen", 1: "kidney_right", 9: "left-kidney", 4: "Esophagus"}
    found = atlas("abdomen", wanted)
    assert [prior.organ for prior in found] == list(wanted)
    names = ("spleen", "right kidney", "left kidney", "oesophagus")
    for prior, name in zip(found, names, strict=True):
        assert (prior.probability == organs[name].probability).all()
        assert prior.offset_mm == organs[name].offset_mm
        assert prior.volumes_ml == organs[name].volumes_ml
    assert [atlas_has(n) for n in ("adrenal_gland_left", "background", "IVC")] == [
        True,
        False,
        True,
    ]


def test_what_is_not_there():
    with pytest.raises(PriorError, match=r"`name` must be an atlas of the package, abdomen, got"):
        atlas("thorax")
    with pytest.raises(PriorError, match=r"`organs` must be among spleen, .*, got colon: leave"):
        atlas("abdomen", {1: "liver", 2: "colon"})


@real("chaos_mr_t2")
def test_mirrored_mr_is_found_with_priors_from_ct():
    folder = DATA / "chaos_mr_t2"
    names = {k: name for k, name in label_names(folder / "dataset.json").items() if k}
    label = read_volume(folder / "labelsTr" / "chaos_05.nii.gz")
    priors = atlas("abdomen", names)
    assert check_orientation(label, priors).agrees
    mirrored = MetaTensor(label.as_tensor().flip(1), affine=label.affine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not check_orientation(mirrored, priors).agrees


def put_labels(folder, name, values):
    label = np.zeros((40, 30, 30), np.uint8)
    for value in values:
        label[3 * value - 2 : 3 * value, 10:20, 8:20] = value
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    nib.save(nib.Nifti1Image(label, affine), folder / name)


@pytest.mark.slow
def test_the_script_makes_one(tmp_path, monkeypatch):
    names = {str(k): f"organ {k}" for k in range(1, 12)} | {"0": "background"}
    (tmp_path / "btcv_ct").mkdir()
    (tmp_path / "btcv_ct" / "dataset.json").write_text(json.dumps({"labels": names}))
    put_labels(tmp_path / "btcv_labels", "a.nii.gz", range(1, 12))
    put_labels(tmp_path / "btcv_labels", "b.nii.gz", range(1, 12))
    put_labels(tmp_path / "pancreas_ct_labels" / "labels", "c.nii.gz", [1])
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["make", "--data", str(tmp_path), "--out", str(out)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(SCRIPT), run_name="__main__")
    priors = load_priors(out, range(1, 12))
    # the further label has value 1 and is the pancreas, BTCV's 11
    assert [prior.case_count for prior in priors] == [2] * 10 + [3]
    assert all(np.allclose(p.probability * 255, (p.probability * 255).round()) for p in priors)
    assert priors[1].offset_mm[0] - priors[0].offset_mm[0] == pytest.approx(12, abs=0.5)
    assert len(read_json(out / "atlas.json")["organs"]) == 11
