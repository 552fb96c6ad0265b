"""STIPPLE in PyTorch Lightning (``pip install lightning``).

On generated scans (a quarter of a minute on a CPU core), or on yours (a datalist, see scans.py):

    python examples/lightning_module.py
    python examples/lightning_module.py --datalist split.json --organs 1 --patch 96 96 64 \
        --spacing-mm 1.5 1.5 2 --epochs 300

Lightning moves batches to the device and adds devices, precision and logging by flags of its
``Trainer``; nothing of that needs to know of the prior. Lines that end in ``# STIPPLE`` are added.
"""

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from monai.data import CacheDataset, DataLoader, decollate_batch
from monai.inferers import Inferer, SlidingWindowInferer
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
from scans import options_of

from stipple_monai import (
    DecideLabel,
    OrganPositiond,
    PriorAlignd,
    PriorDrivenInferer,
    PriorDrivenNet,
    SpatialPrior,
)


class Segmenter(lightning.LightningModule):
    """Any Lightning module for segmentation: only the label map is decided in another way."""

    def __init__(self, network: torch.nn.Module, inferer: Inferer) -> None:
        """Keep what it trains and how whole scans are segmented."""
        super().__init__()
        self.network, self.inferer = network, inferer
        self.loss = DiceCELoss(softmax=True, to_onehot_y=True)
        self.dice = DiceMetric(include_background=False)
        self.decide = DecideLabel("dice")  # STIPPLE
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """Loss of a batch of patches."""
        loss = self.loss(self.network(batch["image"]), batch["label"])
        self.losses.append(loss.item())
        self.log("loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Dice of a whole scan."""
        logits = self.inferer(batch["image"], self.network)
        one_hot = AsDiscrete(to_onehot=2)
        predicted = [one_hot(self.decide(x.softmax(0))) for x in decollate_batch(logits)]
        self.dice(predicted, [one_hot(batch["label"][0])])

    def on_test_epoch_end(self) -> None:
        """Log the mean over scans."""
        self.log("dice", self.dice.aggregate().item())
        self.dice.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; a checkpoint of the wrapped network holds the backbone's weights alone."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train, test, and give the losses and the test scans' mean Dice."""
    options = options_of(__doc__, arguments, out="runs/examples/lightning")
    (organ,) = options.organs
    set_determinism(seed=0)  # of MONAI's transforms, too
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
    mask = LabelToMaskd("label", select_labels=[organ])
    training = [
        *whole,
        OrganPositiond("label", [prior]),  # STIPPLE
        mask,
        SpatialPadd(both, spatial_size=options.patch, mode="edge"),
        RandCropByPosNegLabeld(both, "label", options.patch, num_samples=4),
        PriorAlignd("image", [prior]),  # STIPPLE
        ConcatItemsd(["image", "prior"], name="image"),  # STIPPLE
        DeleteItemsd("prior"),  # STIPPLE
    ]
    train = CacheDataset(options.train, Compose(training), progress=False)
    test = CacheDataset(options.test, Compose([*whole, mask]), progress=False)

    network = UNet(3, in_channels=1, out_channels=2, channels=(16, 32, 64), strides=(2, 2))
    network = PriorDrivenNet(network, image_channels=1)  # STIPPLE
    inferer = SlidingWindowInferer(options.patch, sw_batch_size=4, overlap=0.5)
    inferer = PriorDrivenInferer(  # STIPPLE
        inferer, [prior], calibration="constants", prior_in_training=True
    )

    segmenter = Segmenter(network, inferer)
    trainer = lightning.Trainer(
        max_epochs=options.epochs, default_root_dir=options.out, logger=False, log_every_n_steps=1
    )
    trainer.fit(segmenter, DataLoader(train, batch_size=2, shuffle=True))
    (scores,) = trainer.test(segmenter, DataLoader(test, batch_size=1))
    return {"loss": segmenter.losses, "dice": [scores["dice"]]}


if __name__ == "__main__":
    main()
