"""The moving average of weights: against its definition, across a resumed training, and without."""

import copy

import pytest
import torch
from ignite.engine import Engine, Events

from stipple_monai.handlers import WeightAverage


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.BatchNorm1d(2))


def trainer(net, average, history=None):
    def step(engine, batch):
        net(torch.full((2, 1, 8), float(batch)) + torch.arange(8.0) * engine.state.iteration)
        with torch.no_grad():
            for number, weight in enumerate(net.parameters()):
                weight += 0.1 * (number + 1) * engine.state.iteration

    engine = Engine(step)
    average.attach(engine)
    if history is not None:
        keep = lambda: history.append(copy.deepcopy(net.state_dict()))  # noqa: E731
        engine.add_event_handler(Events.ITERATION_COMPLETED, keep)
    return engine


def by_definition(history, decay):
    mean = {key: value.clone() for key, value in history[0].items()}
    for steps, state in enumerate(history[1:], 1):
        d = min(decay, steps / (steps + 1))
        for key, value in state.items():
            mean[key] = d * mean[key] + (1 - d) * value if value.is_floating_point() else value
    return mean


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_it_is_the_mean_and_then_a_moving_average(decay):
    net, history = network(), []
    average = WeightAverage(net, decay=decay)
    trainer(net, average, history).run(range(7), max_epochs=2)
    expected = by_definition(history, decay)
    found = average.network.state_dict()
    assert found.keys() == net.state_dict().keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    assert not torch.equal(found["0.weight"], net.state_dict()["0.weight"])


def test_a_resumed_training_ends_with_the_same_average():
    net = network()
    whole = WeightAverage(net, decay=0.8)
    trainer(net, whole).run(range(5), max_epochs=3)
    other = network()
    first = WeightAverage(other, decay=0.8)
    engine = trainer(other, first)
    engine.run(range(5), max_epochs=1)
    state, weights = copy.deepcopy(first.state_dict()), copy.deepcopy(other.state_dict())
    again = network()
    again.load_state_dict(weights)
    resumed = WeightAverage(again, decay=0.8)
    resumed.load_state_dict(state)
    rest = trainer(again, resumed)
    rest.load_state_dict({"epoch": 1, "max_epochs": 3, "epoch_length": 5})
    rest.run(range(5), max_epochs=3)
    for key, value in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value), key


def test_training_does_not_notice():
    nets = network(), network()
    for net, decay in zip(nets, (0.9, None), strict=True):
        trainer(net, WeightAverage(net, decay=decay)).run(range(4))
    for key, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[key])


def test_without_decay_the_network_stands_for_itself():
    net = network()
    average = WeightAverage(net, decay=None)
    assert average.network is net
    assert average.state_dict() == {}
    average.load_state_dict({})
    engine = Engine(lambda engine, batch: None)
    average.attach(engine)
    assert not engine.has_event_handler(average._update)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_decay_is_a_part(decay):
    with pytest.raises(ValueError, match=rf"`decay` must lie in \(0, 1\), got {decay}"):
        WeightAverage(network(), decay=decay)
