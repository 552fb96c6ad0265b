"""One network of each semi-supervised method is evaluated alone and with its prior."""

import csv

import pytest
import torch
from helpers.method_runs import CONFIGS, NETWORK, TRAINING, make_scans, parsed, run

from stipple_monai import PriorDrivenNet, SliceUNet
from stipple_monai.study.plan import Study, plan_jobs, read_methods

PAIRS = ("mean_teacher", "cps", "bcp", "unimatch")
# what decides is left to the bundle: fused by constants, expected Dice
KNOBS = {k: v for k, v in NETWORK.items() if k not in ("calibration", "decision")}

pytestmark = pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere")


def defined(*names):
    study = Study("t", names, [0.5], phantom={})
    return study, read_methods(CONFIGS.parent / "studies" / "methods.yaml", study)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module", params=PAIRS)
def evaluated(request, root):
    """Folder of a method's network, and its two rows, evaluated as a study does."""
    rows = defined(request.param, f"{request.param}_prior")[1]
    folder = root / request.param
    knobs = {**KNOBS, "models_dir": str(folder)}
    run(("prior", *rows[0].overlays), root, models_dir=str(folder))
    run(("train", *rows[0].overlays, *rows[0].train), root, **{**TRAINING, **knobs})
    for row in rows:
        names = ("inference", "evaluate", *row.overlays, *row.evaluate)
        run(names, root, **knobs, minimum_confidence=0, output_dir=str(folder / row.name))
    return folder, rows


def test_pairs_share_a_network_and_only_they_do():
    study, methods = defined(*PAIRS, *(f"{name}_prior" for name in PAIRS))
    jobs = plan_jobs(study, methods)[: len(PAIRS)]
    assert sorted(sorted(m.name for m in job.methods) for job in jobs) == sorted(
        [name, f"{name}_prior"] for name in PAIRS
    )


def test_the_network_was_trained_without_prior(evaluated):
    folder, _ = evaluated
    state = torch.load(folder / "model.pt", weights_only=True)
    SliceUNet(1, 2, TRAINING["channels"]).load_state_dict(state)


def test_both_rows_score_the_test_scan(evaluated):
    folder, rows = evaluated
    for row in rows:
        with (folder / row.name / "scores.csv").open(encoding="utf-8") as file:
            (scores,) = csv.DictReader(file)
        assert 0 <= float(scores["dice"]) <= 1
        assert len(list((folder / row.name).glob("*_seg.nii.gz"))) == 1


def test_alone_the_network_says_what_it_says_without_wrapper(evaluated, root):
    folder, (alone, _) = evaluated
    parser = parsed(
        ("inference", "evaluate", *alone.evaluate), root, **KNOBS, models_dir=str(folder)
    )
    network, bare = parser.get_parsed_content("network"), SliceUNet(1, 2, TRAINING["channels"])
    assert type(network) is PriorDrivenNet
    for each in (network, bare):
        each.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        each.eval()
    network.calibrate(parser.get_parsed_content("calibration"))
    image, prior = torch.randn(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        odds = network(torch.cat([image, prior], 1)).diff(dim=1)
        torch.testing.assert_close(odds, bare(image).diff(dim=1), rtol=1e-4, atol=1e-5)
