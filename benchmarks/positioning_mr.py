"""What positioning several organs together is worth in Dice: CHAOS MR, four organs, two labels.

Four splits with two labelled scans each; a network is trained with prior and one without (a
quarter of an hour each split on two cores; models that are in ``--work`` already are kept). Seven
scans, the *dev* half, lend the labelled ones and were used to choose how to position; the other
seven, *test*, were not used for anything else.

How to read it. ``share`` is the part of the Dice between the baseline without prior and the prior
at the true position that a method recovers, over all splits; distances are to where the prior fits
the true label best. Positions come from the prior-trained network's own output without prior, or
from the baseline's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, ResampleToMatch
from positioning import print_confidence
from timing import machine, print_markdown
from tqdm import tqdm

from stipple_monai import (
    Located,
    PriorAlign,
    SpatialPrior,
    load_priors,
    locate_organ,
    locate_organs,
    measure_position,
    softmax_logits,
)
from stipple_monai.data import read_volume, write_datalist

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "chaos_mr_t2"
CONFIGS = ROOT / "bundles" / "pancreas_stipple" / "configs"
ORGANS = [1, 2, 3, 4]
SPLITS = 4


class Scan(NamedTuple):
    """A scan's truth and both networks' logits on the network's grid."""

    label: MetaTensor
    resampled: torch.Tensor
    logits: dict[str, torch.Tensor]


def sections(split: int) -> dict[str, list[dict[str, str]]]:
    """The datalist of a split."""
    names = sorted(path.name for path in (DATA / "imagesTr").iterdir())
    order = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    dev, test = order[:7], sorted(order[7:])
    labelled = [dev[2 * split % 7], dev[(2 * split + 1) % 7]]

    def items(chosen: list[str]) -> list[dict[str, str]]:
        return [
            {"image": str(DATA / "imagesTr" / n), "label": str(DATA / "labelsTr" / n)}
            for n in chosen
        ]

    rest = [n for n in dev if n not in labelled]
    return {"training": items(labelled), "dev": items(rest), "test": items(test)}


def train(split: int, folder: Path) -> None:
    """Estimate the priors and train both networks, as far as they are missing."""
    datalist = folder / "split.json"
    write_datalist(datalist, sections(split))
    paths = ["--bundle_root", str(folder), "--datalist", str(datalist)]
    stages = {
        folder / "models" / "prior_4.nii.gz": (["prior"], []),
        folder / "models" / "model.pt": (["train"], ["--seed", str(split)]),
        folder / "models" / "baseline" / "model.pt": (
            ["train", "baseline"],
            ["--seed", str(split)],
        ),
    }
    for done, (names, options) in stages.items():
        if not done.exists():
            files = [str(CONFIGS / f"{n}.yaml") for n in [*names, "chaos_mr"]]
            command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
            subprocess.run([*command, *paths, *options], check=True, cwd=CONFIGS.parent)


def predict(item: dict[str, str], parser: ConfigParser, networks: dict[str, Any]) -> Scan:
    """Logits of both networks without prior."""
    prepare = Compose([*parser.get_parsed_content("preprocessing").transforms])
    image = prepare({"image": item["image"]})["image"]
    inferer = parser.get_parsed_content("slice_inferer")
    with torch.no_grad():
        logits = {
            name: torch.as_tensor(inferer(image[None], network)[0]).as_subclass(torch.Tensor)
            for name, network in networks.items()
        }
    label = read_volume(item["label"])
    resampled = ResampleToMatch(mode="nearest")(label, image)
    affine = image.affine
    return Scan(label, MetaTensor(resampled.as_tensor(), affine=affine), logits)


def load_networks(folder: Path) -> tuple[ConfigParser, dict[str, Any]]:
    """The inference config and both trained backbones."""
    networks = {}
    for name, file in {"own": "model.pt", "baseline": "baseline/model.pt"}.items():
        parser = ConfigParser()
        parser.read_config([CONFIGS / "inference.yaml", CONFIGS / "chaos_mr.yaml"])
        parser.update({"bundle_root": str(folder), "device": "$torch.device('cpu')"})
        network = parser.get_parsed_content("backbone")
        state = torch.load(folder / "models" / file, weights_only=True)
        state = state.get("model", state)
        network.load_state_dict({k.removeprefix("network."): v for k, v in state.items()})
        networks[name] = network.eval()
    return parser, networks


def dice(scan: Scan, labels: torch.Tensor) -> float:
    """Mean over the organs."""
    truth = scan.resampled[0].as_tensor()
    return float(
        np.mean(
            [
                2
                * float(((labels == k) & (truth == k)).sum())
                / max(1.0, float((labels == k).sum() + (truth == k).sum()))
                for k in ORGANS
            ]
        )
    )


def with_prior(scan: Scan, priors: list[SpatialPrior], positions: torch.Tensor) -> torch.Tensor:
    """The labels that the prior-trained network gives with priors at these positions."""
    placed = torch.as_tensor(PriorAlign(priors)(scan.resampled, positions))
    fused = softmax_logits(scan.logits["own"][None], placed.as_subclass(torch.Tensor)[None])
    return fused[0].argmax(0)


def locate(scan: Scan, network: str, priors: list[SpatialPrior]) -> Located:
    """Positions in a network's output."""
    maps = scan.logits[network].softmax(0)[1:]
    return locate_organs(MetaTensor(maps, affine=scan.resampled.affine), priors)


def alone(prior: SpatialPrior) -> SpatialPrior:
    """The prior without its offset, so that its organ is located by itself."""
    return SpatialPrior(
        prior.probability, spacing_mm=prior.spacing_mm, organ=prior.organ, center=prior.center
    )


def main() -> None:
    """Train what is missing, locate the organs of each scan and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for models")
    parser.add_argument("--part", choices=("dev", "test"), default="test")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not DATA.is_dir():
        print(f"Skipped: there is no {DATA}.")
        return
    results: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    errors, confidences = defaultdict(list), defaultdict(list)
    for split in range(SPLITS):
        folder = options.work.resolve() / f"split_{split}"
        train(split, folder)
        config, networks = load_networks(folder)
        items = sections(split)
        priors = SpatialPrior.estimate_several(
            [i["label"] for i in items["training"]], organs=ORGANS, spacing_mm=(2, 2, 7.7)
        )
        assert [p.probability.shape for p in priors] == [
            p.probability.shape for p in load_priors(folder / "models", ORGANS)
        ]
        singles = [alone(p) for p in priors]
        for item in tqdm(items[options.part], desc=f"split {split}"):
            scan = predict(item, config, networks)
            truth = torch.stack([measure_position(scan.label, p) for p in priors])
            organs = [(scan.label == p.organ).float() for p in priors]
            fits = torch.stack([locate_organ(o, p) for o, p in zip(organs, priors, strict=True)])
            baseline = scan.logits["baseline"].argmax(0)
            results["no prior (baseline)"][split].append(dice(scan, baseline))
            results["true position"][split].append(dice(scan, with_prior(scan, priors, truth)))
            results["where the label fits best"][split].append(
                dice(scan, with_prior(scan, priors, fits))
            )
            for network in ("own", "baseline"):
                for how, chosen in {"each by itself": singles, "**together**": priors}.items():
                    found = locate(scan, network, chosen)
                    name = f"{how}, {network} output"
                    labels = with_prior(scan, priors, found.position_mm)
                    results[name][split].append(dice(scan, labels))
                    error = (found.position_mm - fits).norm(dim=1)
                    errors[name] += error.tolist()
                    confidences[how] += zip(found.confidence.tolist(), error.tolist(), strict=True)

    print(f"{machine()}\n\n{options.part} scans, Dice by split\n")
    mean = {n: np.array([np.mean(d[s]) for s in range(SPLITS)]) for n, d in results.items()}
    low, high = mean["no prior (baseline)"].mean(), mean["true position"].mean()
    body = []
    for name, values in mean.items():
        mm = np.array(errors.get(name, [np.nan]))
        figures = [f"{v:.3f}" for v in [*values, values.mean()]]
        figures.append(f"{(values.mean() - low) / (high - low):.2f}")
        if name in errors:
            figures += [f"{f:.1f}" for f in (np.nanmean(mm), np.nanmedian(mm))]
            figures += [f"{np.nanpercentile(mm, 90):.1f}", str(int(np.isnan(mm).sum()))]
        body.append([name, *figures, *[""] * (10 - len(figures))])
    head = ["position of the prior", *map(str, range(SPLITS)), "mean", "share"]
    print_markdown([*head, "mean mm", "median", "90 %", "without"], body)
    for how, pairs in confidences.items():
        print(f"\nConfidence, {how}\n")
        print_confidence(pairs, limits=(0, 0.2, 0.4, 0.5, 0.51, 0.525, 0.55, 1.01))


if __name__ == "__main__":
    main()
