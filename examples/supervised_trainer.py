"""STIPPLE with MONAI's engines: ``SupervisedTrainer``, ``SupervisedEvaluator`` and handlers.

On generated scans (a minute on a CPU core), or on yours (a datalist, see scans.py):

    python examples/supervised_trainer.py
    python examples/supervised_trainer.py --datalist split.json --organs 1 --patch 96 96 64 \
        --spacing-mm 1.5 1.5 2 --epochs 300

The prior travels in the channels behind the image's, so that ``prepare_batch``, AMP, metrics and
checkpoints stay MONAI's own. Lines that end in ``# STIPPLE`` are what is added.
"""

from collections.abc import Sequence

import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import (
    CheckpointLoader,
    CheckpointSaver,
    MeanDice,
    StatsHandler,
    ValidationHandler,
    from_engine,
)
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from monai.transforms import (
    Activationsd,
    AsDiscreted,
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
    DecideLabeld,
    OrganPositiond,
    PriorAlignd,
    PriorDrivenInferer,
    PriorDrivenNet,
    estimate_priors,
)
from stipple_monai.handlers import PositionTable


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train, keep the best weights, and give the losses and the test scans' mean Dice."""
    options = options_of(__doc__, arguments, out="runs/examples/supervised_trainer")
    (organ,) = options.organs
    set_determinism(seed=0)
    labels = [item["label"] for item in options.train]
    priors = estimate_priors(  # STIPPLE: writes prior_1.nii.gz
        labels, organs=[organ], folder=options.out, center="groupwise"
    )

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
        OrganPositiond("label", priors),  # STIPPLE
        mask,
        SpatialPadd(both, spatial_size=options.patch, mode="edge"),
        RandCropByPosNegLabeld(both, "label", options.patch, num_samples=4),
        PriorAlignd("image", priors),  # STIPPLE
        ConcatItemsd(["image", "prior"], name="image"),  # STIPPLE
        DeleteItemsd("prior"),  # STIPPLE
    ]
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[16, 32, 64],
    )
    network = PriorDrivenNet(network, image_channels=1).to(DEVICE)  # STIPPLE
    inferer = SlidingWindowInferer(options.patch, sw_batch_size=4, overlap=0.5)
    inferer = PriorDrivenInferer(  # STIPPLE
        inferer, priors, calibration="constants", prior_in_training=True
    )

    discrete = Compose(
        [
            Activationsd("pred", softmax=True),
            DecideLabeld("pred", "dice"),  # STIPPLE: the highest expected Dice
            AsDiscreted(["pred", "label"], to_onehot=2),
        ]
    )
    scored = from_engine(["pred", "label"])
    best = options.out / "model.pt"
    evaluator = SupervisedEvaluator(
        device=DEVICE,
        val_data_loader=DataLoader(CacheDataset(options.test, [*whole, mask], progress=False)),
        network=network,
        inferer=inferer,
        postprocessing=discrete,
        key_val_metric={"dice": MeanDice(include_background=False, output_transform=scored)},
        val_handlers=[
            StatsHandler(iteration_log=False),
            CheckpointSaver(
                save_dir=str(options.out),
                save_dict={"model": network},
                save_key_metric=True,
                key_metric_filename=best.name,
            ),
            PositionTable(options.out / "positions.csv", [organ]),  # STIPPLE: where it was placed
        ],
        amp=DEVICE.type == "cuda",
    )
    losses: list[float] = []
    trainer = SupervisedTrainer(
        device=DEVICE,
        max_epochs=options.epochs,
        train_data_loader=DataLoader(
            CacheDataset(options.train, Compose(training), progress=False),
            batch_size=2,
            shuffle=True,
        ),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=2e-3),
        loss_function=DiceCELoss(softmax=True, to_onehot_y=True),
        train_handlers=[ValidationHandler(validator=evaluator, interval=5)],
        amp=DEVICE.type == "cuda",
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"])
    )
    trainer.run()
    if best.is_file():
        CheckpointLoader(str(best), {"model": network}).attach(evaluator)
    evaluator.run()
    dice = evaluator.state.metrics["dice"]
    print(f"mean Dice of the test scans: {dice:.3f}")
    return {"loss": losses, "dice": [dice]}


if __name__ == "__main__":
    main()
