"""STIPPLE in a plain PyTorch loop with MONAI's transforms.

On generated scans (a quarter of a minute on a CPU core), or on yours (a datalist, see scans.py):

    python examples/plain_pytorch.py
    python examples/plain_pytorch.py --datalist split.json --organs 1 --patch 96 96 64 \
        --spacing-mm 1.5 1.5 2 --epochs 300

It differs from a loop without STIPPLE in the lines that end in ``# STIPPLE``.
"""

from collections.abc import Sequence

import torch
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscrete,
    Compose,
    ConcatItemsd,
    DeleteItemsd,
    LabelToMaskd,
    LoadImaged,
    Orientationd,
    RandCropByPosNegLabeld,
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
    PriorDrivenInferer,
    PriorDrivenNet,
    SpatialPrior,
)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train, test, and give the loss of each epoch and the Dice of each test scan."""
    options = options_of(__doc__, arguments, out="runs/examples/plain_pytorch")
    (organ,) = options.organs
    set_determinism(seed=0)

    # The prior comes from the training labels alone, and is a NIfTI file to look at.
    labels = [item["label"] for item in options.train]
    prior = SpatialPrior.estimate(labels, organ=organ, center="groupwise")  # STIPPLE
    prior.save(options.out / "prior.nii.gz")  # STIPPLE

    both = ["image", "label"]
    whole = [
        LoadImaged(both, ensure_channel_first=True),
        Orientationd(both, axcodes="RAS", labels=None),
        Spacingd(both, pixdim=options.spacing_mm, mode=["bilinear", "nearest"]),
        ScaleIntensityRanged("image", a_min=-160, a_max=300, b_min=-1, b_max=1, clip=True),
    ]
    training = [
        *whole,
        OrganPositiond("label", [prior]),  # STIPPLE: while the label is whole; three numbers
        LabelToMaskd("label", select_labels=[organ]),
        SpatialPadd(both, spatial_size=options.patch, mode="edge"),
        RandCropByPosNegLabeld(both, "label", options.patch, num_samples=4),
        PriorAlignd("image", [prior]),  # STIPPLE: the affine says where the patch lies
        ConcatItemsd(["image", "prior"], name="image"),  # STIPPLE: the image comes first
        DeleteItemsd("prior"),  # STIPPLE
    ]
    testing = [*whole, LabelToMaskd("label", select_labels=[organ])]
    train = DataLoader(
        CacheDataset(options.train, Compose(training), progress=False), batch_size=2, shuffle=True
    )
    test = DataLoader(Dataset(options.test, Compose(testing)), batch_size=1)

    network = UNet(3, in_channels=1, out_channels=2, channels=(16, 32, 64), strides=(2, 2))
    network = PriorDrivenNet(network, image_channels=1).to(DEVICE)  # STIPPLE
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for epoch in range(options.epochs):
        network.train()
        total = 0.0
        for batch in train:
            optimizer.zero_grad()
            logits = network(batch["image"].to(DEVICE))
            loss = loss_function(logits, batch["label"].to(DEVICE))
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(train))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}")

    inferer = SlidingWindowInferer(options.patch, sw_batch_size=4, overlap=0.5)
    inferer = PriorDrivenInferer(  # STIPPLE: nobody tells it where the organ is
        inferer, [prior], calibration="constants", prior_in_training=True
    )
    decide = DecideLabel("dice")  # STIPPLE: the label map of the highest expected Dice
    metric, one_hot = DiceMetric(include_background=False), AsDiscrete(to_onehot=2)
    network.eval()
    with torch.no_grad():
        for batch in test:
            logits = inferer(batch["image"].to(DEVICE), network)
            predicted = [one_hot(decide(x.softmax(0))) for x in decollate_batch(logits)]
            metric(predicted, [one_hot(y) for y in batch["label"].to(DEVICE)])
    dice = metric.aggregate("none").flatten().tolist()
    torch.save(network.state_dict(), options.out / "model.pt")
    print("Dice of the test scans:", ", ".join(f"{d:.3f}" for d in dice))
    return {"loss": losses, "dice": dice}


if __name__ == "__main__":
    main()
