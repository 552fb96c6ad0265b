"""Make the atlas that the package ships: priors of thirteen abdominal organs from CT labels.

The labels are those of BTCV, thirteen organs of 20 patients, and 40 pancreases of two further
sets. They are estimated together, about group-wise centres, each under a Gaussian whose width the
labels choose. Values are rounded to 255ths, which compresses well and changes a probability by
less than 0.002. What single labels contributed is not kept.

Run: ``python benchmarks/make_atlas.py`` (minutes); ``--data`` is the folder of real labels.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from stipple_monai import SpatialPrior, prior_path
from stipple_monai.data import label_names
from stipple_monai.files import whole_file

OUT = Path(__file__).parents[1] / "stipple_monai" / "priors" / "atlases" / "abdomen"
DATA = Path(__file__).parents[2] / "shared" / "data"
SPACING_MM = 4.0
PANCREAS = 11
SOURCES = [
    {
        "name": "BTCV (MICCAI 2015, Synapse syn3193805), 20 of its patients",
        "used_for": "all organs and their offsets",
        "licence": "usually listed as CC BY 4.0; not verified",
    },
    {
        "name": "NIH Pancreas-CT, 8 patients, as stored in modaresimr/evalseg",
        "used_for": "pancreas",
        "licence": "CC BY 3.0 by its page at TCIA, not verified; the repository says CC0",
    },
    {
        "name": "Medical Segmentation Decathlon, pancreas, 32 patients, as stored there",
        "used_for": "pancreas; masks may include tumour",
        "licence": "CC BY-SA 4.0; not verified; the repository says CC0",
    },
]


def labels_of(folder: Path) -> Iterator[Path | MetaTensor]:
    """All label maps; pancreases of the other sets with BTCV's label value."""
    yield from sorted((folder / "btcv_labels").glob("*.nii.gz"))
    for path in sorted((folder / "pancreas_ct_labels" / "labels").glob("*.nii.gz")):
        image = nib.load(path)
        mask = np.asarray(image.dataobj) == 1
        organ = torch.from_numpy(mask.astype(np.uint8) * PANCREAS)
        yield MetaTensor(organ[None], affine=image.affine, meta={"filename_or_obj": str(path)})


def compressible(prior: SpatialPrior) -> SpatialPrior:
    """The same prior in 255ths, without its cases."""
    return SpatialPrior(
        (255 * prior.probability).round() / 255,
        spacing_mm=prior.spacing_mm,
        organ=prior.organ,
        case_count=prior.case_count,
        center=prior.center,
        offset_mm=prior.offset_mm,
        offsets_id=prior.offsets_id,
        smoothing_mm=prior.smoothing_mm,
        volumes_ml=prior.volumes_ml,
        log_likelihood=prior.log_likelihood,
    )


def main() -> None:
    """Estimate, write, and print what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = label_names(options.data / "btcv_ct" / "dataset.json")
    del names[0]
    priors = SpatialPrior.estimate_several(
        labels_of(options.data),
        organs=list(names),
        spacing_mm=(SPACING_MM,) * 3,
        center="groupwise",
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for prior in map(compressible, priors):
        path = prior_path(options.out, prior.organ)
        prior.save(path)
        # as small as gzip makes it, and without the time of day
        with whole_file(path) as part:
            part.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 9, mtime=0))
        print(names[prior.organ], prior, f"{path.stat().st_size / 1024:.0f} KiB", flush=True)
    record = {"organs": {str(k): name for k, name in names.items()}, "sources": SOURCES}
    with whole_file(options.out / "atlas.json") as part:
        part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
