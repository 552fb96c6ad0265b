"""Several organs with one softmax, located together, written as label maps on the scans' grids.

On generated scans (a minute on a CPU core: liver, spleen and both kidneys of the phantom),
or on yours (a datalist, see scans.py):

    python examples/several_organs.py
    python examples/several_organs.py --datalist split.json --organs 1 2 3 6 11 --patch 96 96 64 \
        --spacing-mm 1.5 1.5 2 --epochs 300

``--organs`` are the label values; those that are left out count as background. Lines that end in
``# STIPPLE`` are what is added to a pipeline without it.
"""

from collections.abc import Sequence

import torch
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import SegResNet
from monai.transforms import (
    AsDiscrete,
    Compose,
    ConcatItemsd,
    DeleteItemsd,
    Invertd,
    LoadImaged,
    MapLabelValued,
    Orientationd,
    RandCropByLabelClassesd,
    SaveImaged,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism
from scans import DEVICE, options_of

from stipple_monai import (
    DecideLabel,
    OrganPositiond,
    PriorAlignd,
    PriorAugmentd,
    PriorDrivenInferer,
    PriorDrivenNet,
    estimate_priors,
)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train, segment the test scans, and give the losses and the Dice of each organ."""
    options = options_of(
        __doc__, arguments, out="runs/examples/several_organs", organs=(2, 3, 4, 5)
    )
    organs, classes = options.organs, len(options.organs) + 1
    set_determinism(seed=0)

    # Estimated together, the priors know where the organs lie to each other.
    labels = [item["label"] for item in options.train]
    priors = estimate_priors(  # STIPPLE: prior_2.nii.gz, …
        labels, organs=organs, folder=options.out, center="groupwise"
    )

    both = ["image", "label"]
    load = [
        LoadImaged(both, ensure_channel_first=True),
        Orientationd(both, axcodes="RAS", labels=None),
        Spacingd(both, pixdim=options.spacing_mm, mode=["bilinear", "nearest"]),
        ScaleIntensityRanged("image", a_min=-160, a_max=300, b_min=-1, b_max=1, clip=True),
    ]
    # Channels of a softmax are 0, 1, 2, …, in the order of the priors.
    channels = dict(zip(organs, range(1, classes), strict=True))
    values = range(256)
    renumber = MapLabelValued("label", values, [channels.get(v, 0) for v in values])
    training = [
        *load,
        OrganPositiond("label", priors),  # STIPPLE: reads the values that the priors know
        renumber,
        SpatialPadd(both, spatial_size=options.patch, mode="edge"),
        RandCropByLabelClassesd(
            both, "label", options.patch, num_classes=classes, num_samples=4, warn=False
        ),
        # STIPPLE: a quarter of the patches see no prior. Without this line, one of the two test
        # scans was placed wrong after so short a training. It can also cost: see README.md.
        PriorAugmentd(translation_mm=0, dropout=0.25),
        PriorAlignd("image", priors),  # STIPPLE: one channel per organ
        ConcatItemsd(["image", "prior"], name="image"),  # STIPPLE
        DeleteItemsd("prior"),  # STIPPLE
    ]
    train = DataLoader(
        CacheDataset(options.train, Compose(training), progress=False), batch_size=2, shuffle=True
    )
    testing = Compose([*load, renumber])
    test = DataLoader(Dataset(options.test, testing), batch_size=1)

    network = SegResNet(
        in_channels=1, out_channels=classes, init_filters=8, blocks_down=(1, 2, 2), blocks_up=(1, 1)
    )
    network = PriorDrivenNet(network, image_channels=1).to(DEVICE)  # STIPPLE
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True)
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

    inferer = SlidingWindowInferer(options.patch, sw_batch_size=4, overlap=0.5)
    inferer = PriorDrivenInferer(  # STIPPLE: an organ gone astray is outvoted
        inferer, priors, calibration="constants", prior_in_training=True
    )
    decide = DecideLabel("dice")  # STIPPLE: the label map of the highest expected Dice
    metric, one_hot = DiceMetric(include_background=False), AsDiscrete(to_onehot=classes)
    written = Compose(
        [
            Invertd("pred", transform=testing, orig_keys="image", nearest_interp=True),
            MapLabelValued("pred", range(classes), [0, *organs]),
            SaveImaged("pred", output_dir=options.out / "predictions", separate_folder=False),
        ]
    )
    network.eval()
    with torch.no_grad():
        for batch in test:
            batch["pred"] = inferer(batch["image"].to(DEVICE), network)
            print("certainty of the positions:", batch["pred"].meta["organ_position_confidence"])
            for item in decollate_batch(batch):
                item["pred"] = decide(item["pred"].softmax(0))
                metric([one_hot(item["pred"])], [one_hot(item["label"].to(DEVICE))])
                written(item)
    dice = metric.aggregate("mean_batch").tolist()
    for organ, score in zip(organs, dice, strict=True):
        print(f"mean Dice of organ {organ}: {score:.3f}")
    return {"loss": losses, "dice": dice}


if __name__ == "__main__":
    main()
