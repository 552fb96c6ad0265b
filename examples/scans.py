"""The scans that the examples run on: a generated phantom, or a datalist of yours.

A datalist is a JSON file whose sections ``training`` and ``test`` list items of an ``image`` and a
``label``. ``python -m stipple_monai split dataset.json split.json --labelled 6 --test 4`` makes one
of a data set in the layout of the Medical Segmentation Decathlon.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from stipple_monai.data import read_datalist
from stipple_monai.simulation import write_phantom

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def options_of(
    description: str,
    arguments: Sequence[str] | None,
    *,
    out: str,
    organs: Sequence[int] = (1,),
    spacing_mm: Sequence[float] = (5.0, 5.0, 6.0),
    patch: Sequence[int] = (32, 32, 16),
    epochs: int = 40,
) -> argparse.Namespace:
    """Read an example's arguments and find its scans.

    Args:
        description: the example's docstring.
        arguments: of the command line; those of the process where None.
        out: folder for all that the example writes, the phantom included.
        organs: label values, see ``stipple_monai.simulation.ORGANS`` for the phantom's.
        spacing_mm: voxels of the network along R, A and S; 0 keeps the scan's own.
        patch: voxels that the network sees at a time.
        epochs: rounds over all training scans.

    Returns:
        The options, and with them ``train`` and ``test``, lists of items.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--datalist", type=Path, help="yours; without it a phantom is generated")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for all files")
    parser.add_argument("--organs", type=int, nargs="+", default=list(organs), help="label values")
    parser.add_argument("--spacing-mm", type=float, nargs=3, default=list(spacing_mm))
    parser.add_argument("--patch", type=int, nargs=3, default=list(patch), help="voxels")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--size", type=int, default=64, help="of the phantom, voxels in a slice")
    options = parser.parse_args(arguments)
    if options.datalist is not None:
        options.train = read_datalist(options.datalist, "training")
        options.test = read_datalist(options.datalist, "test")
    else:
        items = phantom_items(options.out / "phantom", size=options.size)
        options.train, options.test = items[:6], items[6:]
    return options


def phantom_items(folder: Path, *, size: int) -> list[dict[str, str]]:
    """Generate eight simulated CT scans with eleven labelled organs, once."""
    dataset = write_phantom(
        folder, cases=8, size=size, slices=(22, 28), slice_spacing_mm=(6.0, 6.0), organs="all"
    )
    return read_datalist(dataset, "training")
