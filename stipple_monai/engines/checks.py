"""Options of trainers that must lie in a range."""

from __future__ import annotations


def check_weights(**weights: float) -> None:
    """Raise ValueError where a weight is negative or NaN."""
    for name, value in weights.items():
        if not value >= 0:
            raise ValueError(f"`{name}` must be 0 or more, got {value}: 0 switches it off.")


def check_shares(**shares: float) -> None:
    """Raise ValueError where a share is not in [0, 1]."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {value}: it is a share.")
