"""A federated client trains and evaluates the bundle: MONAI's own, without a server."""

import shutil

import monai.fl.client
import pytest
import torch
from helpers.bundle_runs import CPU, QUIET, same, weights
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:executing the bundle config"),
]


@pytest.fixture(scope="module")
def site(runs, published, tmp_path_factory):
    """The folder of a client's app, with the bundle in it, and what the site sets."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(published, root / published.name)
    places = {"dataset_dir": str(runs.datalist.parent), "datalist": str(runs.datalist)}
    return root, {**places, "device": CPU}


@pytest.fixture(scope="module")
def start(published):
    return weights(published / "models" / "model.pt")


@pytest.fixture(scope="module")
def client(site, published):
    root, knobs = site
    client = monai.fl.client.MonaiAlgo(
        bundle_root=published.name,
        local_epochs=1,
        send_weight_diff=True,
        config_train_filename="configs/train.yaml",
        config_evaluate_filename="configs/train.yaml",
        best_model_filepath="models/model.pt",
        final_model_filepath="models/last.pt",
        train_kwargs=dict(knobs),
        eval_kwargs=dict(knobs),
    )
    client.initialize(extra={ExtraItems.CLIENT_NAME: "site-1", ExtraItems.APP_ROOT: str(root)})
    yield client
    client.finalize()


def test_two_rounds(client, site, published, start):
    root, _ = site
    models = root / published.name / "models"
    before = client.evaluate(ExchangeObject(weights=start)).metrics["val_mean_dice"]
    assert 0 < before < 1
    state = start
    for number in (1, 2):
        client.train(ExchangeObject(weights=state))
        sent = client.get_weights()
        assert sent.weight_type == WeightType.WEIGHT_DIFF
        assert sent.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] == 8
        assert client.trainer.state.epoch == number
        assert sent.weights.keys() == start.keys()
        changes = [d.abs().max() for d in sent.weights.values() if d.is_floating_point()]
        assert max(changes) > 0
        state = {key: start[key] + sent.weights[key] for key in start} if number == 1 else state
    last = client.get_weights(extra={ExtraItems.MODEL_TYPE: ModelType.FINAL_MODEL}).weights
    assert same(last, client.trainer.network.state_dict())
    best = client.get_weights(extra={ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL}).weights
    assert same(best, weights(models / "model.pt"))
    # what the server sends is evaluated, not what lies in the folder
    again = client.evaluate(ExchangeObject(weights=start)).metrics["val_mean_dice"]
    assert again == pytest.approx(before)
    zeros = {key: torch.zeros_like(value) for key, value in start.items()}
    assert client.evaluate(ExchangeObject(weights=zeros)).metrics["val_mean_dice"] != before


def test_statistics_are_those_of_the_sites_scans(runs, site, published):
    """Counts are of scans, not of the slices that are drawn of them."""
    root, knobs = site
    client = monai.fl.client.MonaiAlgoStats(
        bundle_root=published.name,
        config_train_filename="configs/train.yaml",
    )
    client.initialize(extra={ExtraItems.CLIENT_NAME: "site-1", ExtraItems.APP_ROOT: str(root)})
    client.workflow.parser.update(knobs)
    client.workflow.initialize()
    asked = {FlStatistics.HIST_BINS: [8], FlStatistics.HIST_RANGE: [[-1000, 1000]]}
    found = client.get_data_stats(extra=asked).statistics
    counts = {name: found[name][FlStatistics.DATA_COUNT] for name in ("train", "eval")}
    assert counts == {"train": 2, "eval": 1}
