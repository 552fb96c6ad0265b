"""Command line: ``python -m stipple_monai --help``."""

import argparse
import signal
import sys
from collections.abc import Sequence

from tqdm import tqdm

from stipple_monai.commands import (
    check,
    demo,
    ingest,
    phantom,
    publish,
    report,
    segment,
    self_train,
    simulate,
    split,
    study,
)
from stipple_monai.commands.options import OneLineParser, UsageError
from stipple_monai.errors import (
    DatasetError,
    PositionError,
    PriorError,
    StudyError,
    TrainingError,
)

# in the order of --help
COMMANDS = (
    demo,
    phantom,
    simulate,
    ingest,
    check,
    split,
    self_train,
    segment,
    publish,
    report,
    study,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` where ``None``.

    Returns:
        The exit status: 0, 1 after an error, which is one line on standard error, or 130 after an
        interrupt.
    """
    try:
        options = make_parser().parse_args(arguments)
    except UsageError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    try:
        options.run(options)
    except KeyboardInterrupt:
        print(f"stipple_monai {options.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            raise
        _close_bars()
        print(f"stipple_monai {options.command}: {_said(error)}", file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Parser of the whole command line; what it parses has ``run``, the command's function."""
    parser = OneLineParser(
        prog="python -m stipple_monai",
        description="STIPPLE for MONAI: 3D spatial priors and pseudo-labels for organ "
        "segmentation. Training and inference are MONAI Bundle commands, see "
        "bundles/pancreas_stipple/docs/README.md.",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from, for a bug report"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def _close_bars() -> None:
    """Stop what progress bars there are, so that none is painted over the error."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.disable = True


def _said(error: BaseException) -> str:
    """One line of what the first error said, around which MONAI puts its own words."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    known = (ValueError, OSError, ImportError, StudyError, TrainingError)
    ours = [
        e for e in chain if isinstance(e, (PriorError, PositionError, DatasetError, TrainingError))
    ]
    told = [*ours[::-1], *(e for e in chain if isinstance(e, known)), chain[-1]][0]
    text = " ".join(str(told).encode(errors="backslashreplace").decode().split())
    if isinstance(told, known):
        return text
    return f"{type(told).__name__}: {text} (--traceback shows where)"


if __name__ == "__main__":
    # so that what a command has started ends with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
