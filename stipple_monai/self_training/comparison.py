"""Which round's network is the best on scans with known truth, and whether a round helped.

Words: a round's *score* is the Dice of its `model.pt` on the validation scans, the best of its
epochs where it was validated. It is as optimistic for one round as for the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stipple_monai.files import read_csv, write_csv


@dataclass(frozen=True)
class RoundComparison:
    """Scores of rounds, by number.

    Args:
        rounds: epoch and score in [0, 1] of each round that was validated.

    Example:
        >>> for line in RoundComparison({0: (9, 0.61), 1: (8, 0.58)}).lines():
        ...     print(line)
        round 0: Dice 0.610 on the validation scans (epoch 9)
        round 1: Dice 0.580 on the validation scans (epoch 8), 0.030 less than round 0: this round \
does not help
        best: round 0, use round_0/models
    """

    rounds: Mapping[int, tuple[int, float]]

    @classmethod
    def read(cls, out: Path, last: int) -> RoundComparison:
        """Scores from the learning curves of rounds 0 to ``last``; none without validation."""
        found: dict[int, tuple[int, float]] = {}
        for number in range(last + 1):
            curve = read_csv(out / f"round_{number}" / "models" / "curve.csv")
            scores = [
                (float(row["validation_dice"]), int(row["epoch"]))
                for row in curve
                if row["validation_dice"]
            ]
            if scores:
                best, epoch = max(scores, key=lambda pair: pair[0])
                found[number] = epoch, best
        return cls(found)

    def best(self) -> int:
        """Number of the round with the highest score; of equal ones the first."""
        return max(sorted(self.rounds), key=lambda number: self.rounds[number][1])

    def lines(self) -> list[str]:
        """Say of each round whether it helped, and which to use."""
        text = []
        top: int | None = None
        for number in sorted(self.rounds):
            epoch, score = self.rounds[number]
            line = f"round {number}: Dice {score:.3f} on the validation scans (epoch {epoch})"
            if top is not None:
                gain = score - self.rounds[top][1]
                much = f"{abs(gain):.3f} {'more' if gain > 0 else 'less'} than" if gain else "as"
                line += f", {much} round {top}: this round "
                line += "helps" if gain > 0 else "does not help"
            text.append(line)
            if top is None or score > self.rounds[top][1]:
                top = number
        return [*text, f"best: round {self.best()}, use round_{self.best()}/models"]

    def write(self, path: Path) -> None:
        """Write as CSV with the columns ``round``, ``epoch``, ``dice`` and ``best``."""
        rows = [
            [number, epoch, f"{score:.5f}", "yes" if number == self.best() else "no"]
            for number, (epoch, score) in sorted(self.rounds.items())
        ]
        write_csv(path, ["round", "epoch", "dice", "best"], rows)
