"""How far a training is, and what rises with it."""

import math

import pytest
from ignite.engine import Engine, Events

from stipple_monai.engines.schedule import done_share, ramp


def test_share_of_the_steps_that_are_done():
    engine, seen = Engine(lambda engine, batch: None), []
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda: seen.append(done_share(engine.state))
    )
    engine.run([0, 1], max_epochs=2)
    assert seen == [0, 1 / 4, 2 / 4, 3 / 4]


def test_ramp():
    values = [ramp(t) for t in (-1, 0, 0.25, 1, 7)]
    assert values == pytest.approx([math.exp(-5)] * 2 + [math.exp(-2.8125), 1, 1])
