"""The commands by what a person does with them: the one list that they stand in."""

from stipple_monai.commands import (
    adopt,
    calibrate,
    check,
    demo,
    evaluate,
    fuse,
    ingest,
    phantom,
    place,
    plan,
    prior,
    publish,
    report,
    segment,
    self_train,
    simulate,
    split,
    study,
    train,
)

GROUPS = {
    "data": (ingest, check, split, plan),
    "train": (prior, train, calibrate, self_train, evaluate, study, adopt),
    "use": (segment, fuse, place, report, publish),
    "try": (demo, phantom, simulate),
}
"""The commands by what a person does, in the order of ``--help``."""
COMMANDS = tuple(command for group in GROUPS.values() for command in group)
