"""What the atlas from CT is worth on MR: its priors, own ones of 1 and 2 labels, and both.

Priors are asked about the labels of CHAOS MR that none of the own ones was made of, liver, both
kidneys and spleen, each prior at the true position as it measures it. Candidates:

    atlas: `stipple_monai.atlas("abdomen")`, no label of the data set.
    own: from 1 or 2 of its labels, group-wise centres, width by leave-one-out likelihood.
    half: the mean of both, placed.
    likelihood: ``w`` atlas + ``(1 − w)`` own; w by the likelihood of each own label under the
        atlas and the prior of the other own labels; with one label there are none, so w = 1/2.

A row is a scan: its log-likelihood (`priors/likelihood.py`: nats at one observation a millilitre,
above no prior at all), and the Dice of the placed prior above the threshold that is best for that
candidate, organ and number of labels over all its rows, so a bound rather than a result.

With ``--mirrors`` instead: whether `check_orientation` finds labels of CHAOS and BTCV mirrored
with the atlas's priors, and whether it raises false alarms. BTCV's labels made the atlas.

Run: ``python benchmarks/atlas_transfer.py --out docs/results/atlas_transfer.csv`` and
``--mirrors --out docs/results/atlas_mirrors.csv`` (ten minutes and two on one core).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from stipple_monai import SpatialPrior, atlas, check_orientation, measure_position
from stipple_monai.data import label_names, read_volume, stem_of
from stipple_monai.files import write_csv
from stipple_monai.positioning.orientation import DEFAULT_MARGIN
from stipple_monai.priors.likelihood import log_likelihood

DATA = Path(__file__).parents[2] / "shared" / "data"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
THRESHOLDS = np.arange(0.05, 1.0, 0.05)
SIZES = (1, 2)
HEAD = ("organ", "labels", "draw", "scan", "candidate", "weight", "nats", "threshold", "dice")
MIRRORS = ("data", "scan", "mirrored", "said_to_be", "fit", "best_fit")


def coarser(label: MetaTensor) -> MetaTensor:
    """Every second voxel in the plane: 2.5 mm."""
    affine = label.affine.clone()
    affine[:3, :2] *= 2
    return MetaTensor(label.as_tensor()[:, ::2, ::2], affine=affine, meta=label.meta)


def at_its_place(prior: SpatialPrior, label: MetaTensor) -> NDArray[np.float32]:
    """The prior on a label's grid, at the true position as it measures it."""
    return prior.place(measure_position(label, prior), label)[0].numpy()


def nats(label: MetaTensor, organ: int, p: NDArray[np.float32]) -> float:
    """Log-likelihood of one organ of a label."""
    voxel_ml = abs(float(torch.linalg.det(label.affine[:3, :3]))) / 1000
    mask = (label[0].numpy() == organ).astype(np.float32)
    return log_likelihood(mask, p, voxel_ml=voxel_ml)


def weight_of(own: SpatialPrior, from_atlas: SpatialPrior, labels: Sequence[MetaTensor]) -> float:
    """The atlas's weight with the highest likelihood of labels that are left out."""
    if len(labels) < 2:
        return 0.5
    scores = dict.fromkeys(WEIGHTS, 0.0)
    for i, label in enumerate(labels):
        theirs = own.place(measure_position(label, own), label, without=[i])[0].numpy()
        its = at_its_place(from_atlas, label)
        for w in WEIGHTS:
            scores[w] += nats(label, own.organ, w * its + (1 - w) * theirs)
    return max(scores, key=lambda w: scores[w])


def dices(label: MetaTensor, organ: int, p: NDArray[np.float32]) -> NDArray[np.float64]:
    """Dice of the prior above each threshold."""
    mask = label[0].numpy() == organ
    above = [p > t for t in THRESHOLDS]
    return np.array([2 * (a & mask).sum() / max(a.sum() + mask.sum(), 1) for a in above])


def draw_rows(
    labels: Mapping[str, MetaTensor], priors: Sequence[SpatialPrior], size: int, draw: int
) -> Iterator[tuple]:
    """Rows of one draw, with the Dice at every threshold."""
    order = np.random.default_rng(draw).permutation(sorted(labels)).tolist()
    mine, others = [labels[name] for name in order[:size]], order[size:]
    organs = [prior.organ for prior in priors]
    own = SpatialPrior.estimate_several(mine, organs=organs, center="groupwise")
    for from_atlas, of_labels in zip(priors, own, strict=True):
        organ = of_labels.organ
        chosen = weight_of(of_labels, from_atlas, mine)
        candidates = {"atlas": 1.0, "own": 0.0, "half": 0.5, "likelihood": chosen}
        for name in others:
            label = labels[name]
            both = at_its_place(from_atlas, label), at_its_place(of_labels, label)
            for candidate, w in candidates.items():
                p = w * both[0] + (1 - w) * both[1]
                found = (nats(label, organ, p), dices(label, organ, p))
                yield organ, size, draw, name, candidate, w, *found


def with_best_threshold(rows: Sequence[tuple], names: Mapping[int, str]) -> list[tuple]:
    """The rows with their Dice at one threshold a candidate, organ and number of labels."""
    groups: dict[tuple, list[NDArray[np.float64]]] = defaultdict(list)
    for organ, size, _, _, candidate, _, _, dice in rows:
        groups[organ, size, candidate].append(dice)
    best = {key: int(np.mean(found, axis=0).argmax()) for key, found in groups.items()}
    written = []
    for organ, size, draw, name, candidate, w, value, dice in rows:
        k = best[organ, size, candidate]
        numbers = (f"{value:.1f}", f"{THRESHOLDS[k]:.2f}", f"{dice[k]:.4f}")
        written.append((names[organ], size, draw, name, candidate, w, *numbers))
    return written


def mirror_rows(name: str, folder: Path, priors: Sequence[SpatialPrior]) -> Iterator[tuple]:
    """What would be said of every label as it is, and with one of its axes reversed.

    A reversed volume fits the priors with some axis codes as the volume itself does with that axis
    the other way round, so that one look is enough.
    """
    for path in sorted(folder.glob("*.nii.gz")):
        label = coarser(read_volume(path))
        here = [prior for prior in priors if (label == prior.organ).any()]
        found = check_orientation(label, here, margin=float("inf"))
        best = max(found.fit.values())
        for mirrored, pair in {
            "": "",
            "left-right": "LR",
            "front-back": "PA",
            "feet-head": "IS",
        }.items():
            codes = found.header.translate(str.maketrans(pair, pair[::-1]))
            fit = found.fit[codes]
            said = best > fit * (1 + DEFAULT_MARGIN)
            yield name, stem_of(path), mirrored, int(said), f"{fit:.4f}", f"{best:.4f}"


def all_mirrors(data: Path) -> Iterator[tuple]:
    """CHAOS and BTCV."""
    chaos = atlas("abdomen", organs_of(data / "chaos_mr_t2"))
    yield from mirror_rows("chaos_mr_t2", data / "chaos_mr_t2" / "labelsTr", chaos)
    every = atlas("abdomen", organs_of(data / "btcv_ct"))
    yield from mirror_rows("btcv_ct", data / "btcv_ct" / "labelsTr", every)


def organs_of(folder: Path) -> dict[int, str]:
    """A data set's organs."""
    names = label_names(folder / "dataset.json")
    return {value: name for value, name in names.items() if value > 0}


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--mirrors", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.mirrors:
        write_csv(options.out, MIRRORS, all_mirrors(options.data))
        return
    folder = options.data / "chaos_mr_t2"
    paths = sorted((folder / "labelsTr").glob("*.nii.gz"))
    labels = {stem_of(path): coarser(read_volume(path)) for path in paths}
    names = organs_of(folder)
    priors = atlas("abdomen", names)
    rows = []
    for size in SIZES:
        for draw in range(options.draws):
            rows += draw_rows(labels, priors, size, draw)
            print(f"{size} labels, draw {draw}: {len(rows)} rows", flush=True)
    write_csv(options.out, HEAD, with_best_threshold(rows, names))


if __name__ == "__main__":
    main()
