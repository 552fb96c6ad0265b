"""The prior of label files of 512 × 512 × 240 voxels, with only reading them.

Compared, over the same 8-bit `.nii.gz` files, each of another patient on a grid of its own:
    only reading: nibabel, `np.asanyarray(nibabel.load(path).dataobj)`.
    in pieces: nibabel as well, slices by slices, which keeps no map. It is where ours begins.
    prior of one organ: `SpatialPrior.estimate`, the pancreas, its width by likelihood.
    histogram of one organ: the same in 5 bins.
    group-wise: the same as the first about group-wise centres, as the bundle has it.
    priors of four organs: `SpatialPrior.estimate_several`; the liver is the largest.
    plainly: algorithm 1 on whole maps, with `scipy.ndimage.affine_transform`.

The first table is processor time on one thread, the second the clock's, with several workers. The
third is memory, which must not grow with the number of files; for reading it is that of one map.

The maps are the phantom's, enlarged to the practice size. There are 4 of them by default, and with
``--full`` 12, which are taken again until there are 82.

Read: the histogram of one organ is to take at most 1.3 times only reading, and a density at most
twice. Twice the workers take half
the time only where that many cores are free: mind the load that is printed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from timing import compare, peak_memory, print_markdown, print_notes, print_table

from stipple_monai import SpatialPrior
from stipple_monai.simulation import ORGANS, simulate_abdomen

SHAPE = (512, 512, 240)
PANCREAS = ORGANS.index("pancreas")
FOUR = [ORGANS.index(name) for name in ("pancreas", "liver", "spleen", "aorta")]
SLICES = 4


def write_label(path: Path, seed: int, shape: Sequence[int]) -> None:
    """Write a patient's organs on a grid of its own: voxels of 0.66 to 0.9 and 0.9 to 1.3 mm."""
    rng = np.random.default_rng(seed)
    small = simulate_abdomen(seed, slices=(60, 60), slice_spacing_mm=(4, 4), organs="all").label
    margins = rng.uniform(0, 4, (3, 2))
    index = [
        np.linspace(low, n - 1 - high, m).astype(int)
        for (low, high), n, m in zip(margins, small.shape, shape, strict=True)
    ]
    affine = np.diag([*rng.uniform((-0.9, 0.66, 0.9), (-0.66, 0.9, 1.3)), 1.0])
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    nib.save(nib.Nifti1Image(small[np.ix_(*index)], affine), path)


def read(paths: Sequence[Path]) -> None:
    """Only reading."""
    for path in paths:
        np.asanyarray(nib.load(path).dataobj)


def read_in_pieces(paths: Sequence[Path]) -> None:
    """Reading without keeping a map."""
    for path in paths:
        array = nib.load(path, keep_file_open=True).dataobj
        for first in range(0, array.shape[2], SLICES):
            np.asanyarray(array[..., first : first + SLICES])


def plain_prior(paths: Sequence[Path], organ: int) -> NDArray[np.float64]:
    """Algorithm 1 on whole maps: mask, box, sample about its centre, add; not yet in bins."""
    spacing = np.abs(np.diag(nib.load(paths[0]).affine)[:3])
    boxes = []
    for path in paths:
        image = nib.load(path)
        mask = np.asanyarray(image.dataobj) == organ
        (box,) = ndimage.find_objects(mask.astype(np.uint8))
        corners = np.array([(s.start, s.stop - 1) for s in box]).T
        low, high = np.sort(nib.affines.apply_affine(image.affine, corners), axis=0)
        shape = np.ceil((high - low) / spacing + 1).astype(int)
        grid = np.diag([*spacing, 1.0])
        grid[:3, 3] = (low + high) / 2 - spacing * (shape - 1) / 2
        shift = np.eye(4)
        shift[:3, 3] = corners[0]
        boxes.append(
            ndimage.affine_transform(
                mask[box].astype(np.float32),
                np.linalg.inv(image.affine @ shift) @ grid,
                output_shape=tuple(shape),
                order=1,
                mode="grid-constant",
            )
        )
    total = np.zeros(np.max([b.shape for b in boxes], axis=0))
    for box in boxes:
        start = (np.array(total.shape) - box.shape) // 2
        total[tuple(slice(a, a + n) for a, n in zip(start, box.shape, strict=True))] += box
    return total / len(boxes)


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="82 files; about ten minutes")
    parser.add_argument("--quick", action="store_true", help="small maps: to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = (128, 128, 60) if arguments.quick else SHAPE
    size = " × ".join(map(str, shape))
    # Many files are their own warm-up.
    warm_up = not arguments.full

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.nii.gz" for i in range(12 if arguments.full else 4)]
        for seed, path in enumerate(files):
            write_label(path, seed, shape)
        mib = sum(path.stat().st_size for path in files) / len(files) / 2**20
        paths = (files * 7)[:82] if arguments.full else files
        title = f"{len(paths)} label files of {size} voxels, {mib:.2f} MiB each"
        one = partial(SpatialPrior.estimate, organ=PANCREAS)
        four = partial(SpatialPrior.estimate_several, organs=FOUR)

        candidates = {
            "only reading": partial(read, paths),
            "in pieces": partial(read_in_pieces, paths),
            "prior of one organ": partial(one, paths),
            "histogram of one organ": partial(one, paths, bins=5),
            "group-wise": partial(one, paths, center="groupwise"),
            "priors of four organs": partial(four, paths),
        }
        if not arguments.full:
            candidates["plainly"] = partial(plain_prior, paths, PANCREAS)
        rows = compare(
            candidates,
            rounds=arguments.rounds,
            baseline="only reading",
            clock="cpu",
            warm_up=warm_up,
        )
        print_table(title, rows)

        rows = compare(
            {
                "only reading": partial(read, paths),
                "prior of one organ": partial(one, paths),
                **{
                    f"{what}, {n} workers": partial(estimate, paths, num_workers=n)
                    for n in arguments.workers
                    for what, estimate in (("one organ", one), ("four organs", four))
                },
            },
            rounds=arguments.rounds,
            baseline="only reading",
            warm_up=warm_up,
        )
        print_table(f"{title}, several at once", rows)

        counts = (1, 3, 12, 24)
        body = [["only reading", *[f"{peak_memory(partial(read, files[:1])):.0f} MiB"] * 4]]
        for name, estimate in (
            ("prior of one organ", one),
            ("one organ, 2 workers", partial(one, num_workers=2)),
            ("one organ, every slice kept", partial(one, smoothing_mm=None)),
            ("priors of four organs", four),
        ):
            peaks = [peak_memory(partial(estimate, (files * 6)[:n])) for n in counts]
            body.append([name, *(f"{peak:.0f} MiB" for peak in peaks)])
        print(f"\n### Peak memory, label files of {size} voxels\n")
        print_markdown(["", *(f"{n} files" for n in counts)], body)
        print_notes([f"{len(files)} different files; reading holds one map at a time."])


if __name__ == "__main__":
    main()
