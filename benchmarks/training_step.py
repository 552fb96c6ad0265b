"""What the prior adds to a step of the bundle's training, data loading included, and to its cache.

Compared: the bundle's `train.yaml` with the same and `baseline.yaml` on top. Transforms, network,
loss and optimizer are those of the configs; the scan is simulated and cached, as in every epoch but
the first. Batches are loaded in the process itself: with workers beside it, loading would hide
behind the network.

Tables:
    loading: one batch, no network.
    step: a batch loaded, forward, loss, backward, optimizer, by the 31 M-parameter U-Net.
    cache: bytes of one cached scan without prior, with positions as the bundle keeps them, and with
        the dense prior that the obvious pipeline would cache; and what the process really grew by.

Sizes: a scan of 128 × 128 × 60, or with ``--full`` of 512 × 512 × 240 (on a CPU, the step then
takes one slice instead of six).

Read: the step's ratio is to be at most 1.05; positions are to add bytes, not MiB.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset
from monai.transforms import Compose
from timing import compare, print_markdown, print_notes, print_table, resident_memory

from stipple_monai import PriorAlignd, SpatialPrior, prior_path
from stipple_monai.data import read_datalist
from stipple_monai.simulation import write_phantom

CONFIGS = Path(__file__).parents[1] / "bundles" / "pancreas_stipple" / "configs"
WITH, WITHOUT = "with prior", "without prior"
OVERLAYS: dict[str, list[str]] = {WITHOUT: ["baseline"], WITH: []}
GENERATED = (128, 60)
VOLUMES = 82


def write_scans(folder: Path, *, factor: int) -> Path:
    """Write one simulated scan, its voxels repeated ``factor`` times along each axis."""
    size, slices = GENERATED
    datalist = write_phantom(
        folder,
        cases=1,
        size=size,
        slices=(slices, slices),
        slice_spacing_mm=(3.0, 4.5),
        progress=False,
    )
    if factor > 1:
        for path in sorted(folder.glob("*sTr/*.nii.gz")):
            image = nib.load(path)
            array = np.asarray(image.dataobj)
            affine = image.affine @ np.diag([1 / factor] * 3 + [1.0])
            for axis in range(3):
                array = np.repeat(array, factor, axis)
            nib.Nifti1Image(array, affine).to_filename(path)
    return datalist


def prepare(root: Path, *, factor: int) -> dict[str, Any]:
    """Write scan and prior below ``root``; give the knobs of the configs that lead there.

    Those that an earlier call has written stay, whatever their size.
    """
    datalist = root / "phantom" / "dataset.json"
    path = prior_path(root / "models", 1)
    if not path.exists():
        datalist = write_scans(root / "phantom", factor=factor)
        labels = [item["label"] for item in read_datalist(datalist, "training")]
        path.parent.mkdir()
        SpatialPrior.estimate(labels, organ=1, bins=5).save(path)
    scan = nib.load(read_datalist(datalist, "training")[0]["image"])
    return {
        "bundle_root": str(root),
        "dataset_dir": str(datalist.parent),
        "slice_size": [int(n) for n in scan.shape[:2]],
        "batch_size": 6,
        "num_workers": 0,
        "train#dataset#progress": False,
    }


def training(overlays: Sequence[str], **knobs: Any) -> ConfigParser:
    """The bundle's training as its configs set it up, with some knobs changed."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("train", *overlays)])
    parser.update(knobs)
    parser.get_parsed_content("imports")
    return parser


def endless(parser: ConfigParser) -> Iterator[Mapping[str, Any]]:
    """Batches without end; every slice is drawn anew."""
    loader = parser.get_parsed_content("train#dataloader")
    while True:
        yield from loader


class Step:
    """Training steps, as MONAI's `SupervisedTrainer` does them, without its handlers.

    Args:
        parser: the training.
        count: steps in one call.
        amp: run the network in float16; ``None``: as the configs say.
        channels_last: keep weights and slices in this memory format.
        compiled: compile the network.
        batches: train on these, over and over, instead of loading.
    """

    def __init__(
        self,
        parser: ConfigParser,
        *,
        count: int,
        amp: bool | None = None,
        channels_last: bool = False,
        compiled: bool = False,
        batches: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.batches = endless(parser) if batches is None else itertools.cycle(batches)
        self.count = count
        self.device = parser.get_parsed_content("device")
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        network = parser.get_parsed_content("network").train().to(memory_format=self.format)
        self.network = torch.compile(network) if compiled else network
        self.loss = parser.get_parsed_content("loss")
        self.optimizer = parser.get_parsed_content("optimizer")
        self.amp = parser.get_parsed_content("amp") if amp is None else amp
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp)

    def __call__(self) -> None:
        """Load, forward, loss, backward, update."""
        for batch in itertools.islice(self.batches, self.count):
            # plain tensors, which torch.compile takes as one graph
            image = torch.as_tensor(batch["image"]).as_subclass(torch.Tensor)
            image = image.to(self.device, memory_format=self.format)
            label = torch.as_tensor(batch["label"]).as_subclass(torch.Tensor).to(self.device)
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.amp):
                loss = self.loss(self.network(image), label)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()


def run_loading(knobs: Mapping[str, Any], *, rounds: int) -> None:
    """Time the loading of one batch."""
    loaders = {name: endless(training(overlay, **knobs)) for name, overlay in OVERLAYS.items()}
    rows = compare(
        {name: partial(next, batches) for name, batches in loaders.items()},
        rounds=rounds,
        baseline=WITHOUT,
        clock="cpu",
    )
    size, batch = knobs["slice_size"][0], knobs["batch_size"]
    print_table(f"Loading a batch of {batch} × {size} × {size}, in the process itself", rows)


def run_step(knobs: Mapping[str, Any], *, rounds: int) -> None:
    """Time a training step, on a GPU with four processes that load."""
    gpu = torch.cuda.is_available()
    if gpu:
        knobs = {**knobs, "num_workers": 4}
    count = 40 if gpu else 1
    rows = compare(
        {name: Step(training(overlay, **knobs), count=count) for name, overlay in OVERLAYS.items()},
        rounds=rounds,
        baseline=WITHOUT,
        clock="wall" if gpu else "cpu",
    )
    size, batch = knobs["slice_size"][0], knobs["batch_size"]
    where = f"cuda, {count} steps" if gpu else "cpu"
    print_table(f"Training step, batch of {batch} × {size} × {size}, {where}", rows)


def item_bytes(value: Any) -> int:
    """Bytes of all arrays and tensors in a cached item."""
    if isinstance(value, Mapping):
        return sum(item_bytes(v) for v in value.values())
    if isinstance(value, list | tuple):
        return sum(item_bytes(v) for v in value)
    return int(getattr(value, "nbytes", 0))


def run_cache(knobs: Mapping[str, Any]) -> None:
    """Cache one scan without prior, with positions and with a dense prior; print the bytes."""
    parsers = {name: training(overlay, **knobs) for name, overlay in OVERLAYS.items()}
    transforms: dict[str, list[Any]] = {
        name: parser.get_parsed_content("train#fixed") for name, parser in parsers.items()
    }
    priors = parsers[WITH].get_parsed_content("priors")
    transforms["with a dense prior"] = [*transforms[WITH], PriorAlignd("image", priors)]
    items = parsers[WITH].get_parsed_content("train_items")[:1]
    body, first = [], 0
    build = partial(CacheDataset, items, cache_rate=1.0, progress=False)
    build(transform=Compose(transforms[WITH]))
    for name, steps in transforms.items():
        dataset, grown = resident_memory(partial(build, transform=Compose(steps)))
        size = item_bytes(dataset[0])
        shape = dataset[0]["image"].shape[1:]
        first = first or size
        body.append(
            [
                name,
                f"{size / 2**20:,.1f} MiB",
                f"{size - first:,} bytes",
                f"{VOLUMES * size / 2**30:.1f} GiB",
                f"{VOLUMES * (size - first) / 2**20:,.3f} MiB",
                f"{grown:,.1f} MiB",
            ]
        )
        del dataset
        gc.collect()
    print(f"\n### Cache, scans of {' × '.join(map(str, shape))}\n")
    head = ["", "one scan", "the prior's part", f"{VOLUMES} scans", "the prior's part", "process"]
    print_markdown(head, body)
    print_notes(
        [
            f"One scan: all arrays and tensors of the cached item. {VOLUMES} scans: that times "
            f"{VOLUMES}. Process: what its resident memory grew by for the one scan."
        ]
    )


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="512 × 512 × 240: 7 GiB, minutes")
    parser.add_argument("--rounds", type=int, default=3, help="training steps each")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        knobs = prepare(Path(folder), factor=4 if arguments.full else 1)
        run_cache(knobs)
        run_loading(knobs, rounds=25)
        few = arguments.full and not torch.cuda.is_available()
        run_step({**knobs, "batch_size": 1 if few else 6}, rounds=arguments.rounds)
    print(f"Done in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
