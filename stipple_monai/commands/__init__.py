"""The commands of the command line, a module each: arguments in, one call, one line out.

Words: a *command* is a module with `add_parser`, which adds its parser to that of `__main__`, and
`run`, which receives the parsed options. Imports from all packages below it.
"""

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

__all__ = [
    "adopt",
    "calibrate",
    "check",
    "demo",
    "evaluate",
    "fuse",
    "ingest",
    "phantom",
    "place",
    "plan",
    "prior",
    "publish",
    "report",
    "segment",
    "self_train",
    "simulate",
    "split",
    "study",
    "train",
]
