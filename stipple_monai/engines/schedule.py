"""How far a training is, and weights that rise with it."""

from __future__ import annotations

import math

from ignite.engine import State

__all__ = ["done_share", "ramp"]


def done_share(state: State) -> float:
    """Share of all steps that are done before this one, in [0, 1).

    Args:
        state: of a trainer in a step, whose ``iteration`` counts from 1.
    """
    return (state.iteration - 1) / (state.max_epochs * state.epoch_length)


def ramp(progress: float) -> float:
    """Rise from exp(−5) to 1 as exp(−5 (1 − t)²) of the share ``t`` of the training done.

    Args:
        progress: ``t``; below 0 counts as 0, above 1 as 1.

    Example:
        >>> [round(ramp(t), 3) for t in (0, 0.5, 1)]
        [0.007, 0.287, 1.0]
    """
    left = 1 - min(max(progress, 0.0), 1.0)
    return math.exp(-5 * left**2)
