"""MRI: thick slices, a 2D network, and no Hounsfield units.

On generated scans (two minutes on a CPU core), or on real ones, such as CHAOS T2-SPIR:

    python examples/mri.py
    python -m stipple_monai split chaos/dataset.json split.json --labelled 4 --test 4
    python examples/mri.py --datalist split.json --organs 1 2 3 4 --spacing-mm 2 2 0 \
        --patch 160 160 1 --epochs 100

What differs from CT: intensities are scaled by each scan's own percentiles, and axial slices keep
their thickness, as in the paper. The prior does not care about the modality.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.inferers import SliceInferer
from monai.metrics import DiceMetric
from monai.transforms import (
    AsDiscrete,
    Compose,
    ConcatItemsd,
    LoadImaged,
    MapLabelValued,
    NormalizeIntensityd,
    Orientationd,
    RandAffined,
    RandCropByLabelClassesd,
    ScaleIntensityRangePercentilesd,
    SelectItemsd,
    Spacingd,
    SqueezeDimd,
)
from monai.utils import set_determinism
from scans import DEVICE, options_of

from stipple_monai import (
    DecideLabel,
    OrganPositiond,
    PartialDiceCELoss,
    PriorAlignd,
    PriorDrivenInferer,
    PriorDrivenNet,
    SliceUNet,
    estimate_priors,
)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train, test, and give the losses and the Dice of each organ."""
    options = options_of(
        __doc__,
        arguments,
        out="runs/examples/mri",
        organs=(2, 3, 4, 5),
        spacing_mm=(4.0, 4.0, 0.0),
        patch=(96, 96, 1),
    )
    organs, classes = options.organs, len(options.organs) + 1
    set_determinism(seed=0)
    if options.datalist is None:
        for index, item in enumerate([*options.train, *options.test]):
            item["image"] = mr_like(item["image"], options.out / "mr", seed=index)
    labels = [item["label"] for item in options.train]
    priors = estimate_priors(labels, organs=organs, folder=options.out, center="groupwise")

    both, in_plane = ["image", "label"], options.patch[:2]
    channels = dict(zip(organs, range(1, classes), strict=True))
    whole: list[Any] = [
        LoadImaged(both, ensure_channel_first=True),
        Orientationd(both, axcodes="RAS", labels=None),
        Spacingd(both, pixdim=[s or -1 for s in options.spacing_mm], mode=["bilinear", "nearest"]),
        ScaleIntensityRangePercentilesd("image", 0.5, 99.5, b_min=0, b_max=1, clip=True),
        NormalizeIntensityd("image"),
    ]
    renumber = MapLabelValued("label", range(256), [channels.get(v, 0) for v in range(256)])
    training = [
        *whole,
        OrganPositiond("label", priors),
        renumber,
        # a slice keeps its third axis until the prior is placed: its affine says where it lies
        RandCropByLabelClassesd(
            both, "label", (-1, -1, 1), num_classes=classes, num_samples=16, warn=False
        ),
        RandAffined(
            both,
            prob=1,
            spatial_size=(*in_plane, 1),
            rotate_range=(0, 0, 0.1),
            translate_range=(5, 5, 0),
            scale_range=(0.1, 0.1, 0),
            mode=["bilinear", "nearest"],
            padding_mode=["border", "zeros"],
        ),
        PriorAlignd("image", priors),
        ConcatItemsd(["image", "prior"], name="image"),
        SelectItemsd(both),
        SqueezeDimd(both, dim=-1),
    ]
    train = DataLoader(CacheDataset(options.train, Compose(training), progress=False), shuffle=True)
    test = DataLoader(Dataset(options.test, Compose([*whole, renumber])), batch_size=1)

    network = SliceUNet(in_channels=1, out_channels=classes, channels=(16, 32, 64, 128))
    network = PriorDrivenNet(network, image_channels=1).to(DEVICE)
    # A Dice for each slice would push every voxel of an empty one to the background.
    loss_function = PartialDiceCELoss(softmax=True, include_background=False, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for epoch in range(options.epochs):
        network.train()
        total = 0.0
        for batch in train:
            optimizer.zero_grad()
            loss = loss_function(network(batch["image"].to(DEVICE)), batch["label"].to(DEVICE))
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(train))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}")

    slices = SliceInferer(spatial_dim=2, roi_size=in_plane, sw_batch_size=16, overlap=0.25)
    inferer = PriorDrivenInferer(slices, priors, calibration="constants", prior_in_training=True)
    metric, one_hot = DiceMetric(include_background=False), AsDiscrete(to_onehot=classes)
    decide = DecideLabel("dice")
    network.eval()
    with torch.no_grad():
        for batch in test:
            logits = inferer(batch["image"].to(DEVICE), network)
            truth = [one_hot(label) for label in batch["label"].to(DEVICE)]
            metric([one_hot(decide(x.softmax(0))) for x in decollate_batch(logits)], truth)
    dice = metric.aggregate("mean_batch").tolist()
    for organ, score in zip(organs, dice, strict=True):
        print(f"mean Dice of organ {organ}: {score:.3f}")
    return {"loss": losses, "dice": dice}


def mr_like(ct: str, folder: Path, *, seed: int) -> str:
    """Give a simulated CT scan the looks of fat-suppressed T2: fluid bright, fat and bone dark.

    Each scan has a scale and a bias field of its own, so that a value means nothing by itself.
    """
    rng = np.random.default_rng(seed)
    scan = nib.load(ct)
    hu = np.asarray(scan.dataobj, dtype=np.float32)
    signal = np.interp(hu, [-1000, -300, -100, 0, 60, 150, 300], [0, 0, 0.2, 1.0, 0.7, 0.3, 0.05])
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in hu.shape], indexing="ij")
    bias = 1 + sum(rng.uniform(-0.25, 0.25) * axis for axis in axes)
    image = rng.uniform(300, 900) * np.abs(signal * bias + rng.normal(0, 0.02, hu.shape))
    path = folder / Path(ct).name
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image.astype(np.float32), scan.affine), path)
    return str(path)


if __name__ == "__main__":
    main()
