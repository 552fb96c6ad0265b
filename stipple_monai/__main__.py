"""Command line: ``python -m stipple_monai --help``."""

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai.utils import optional_import
from tqdm import tqdm

from stipple_monai.commands import COMMANDS, GROUPS, OneLineParser, UsageError
from stipple_monai.errors import (
    DatasetError,
    PositionError,
    PriorError,
    StudyError,
    TrainingError,
)
from stipple_monai.ownership import refuse_file_above

OUTPUTS = ("out", "folder", "csv")
"""Options of the commands that say where results go."""

RESUMED = ("train", "calibrate", "self-train", "study", "segment", "fuse", "ingest", "demo")
"""Commands that go on in a begun folder."""

shtab, has_shtab = optional_import("shtab")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` where ``None``.

    Returns:
        The exit status: 0, 1 after an error, which is one line on standard error, or 130 after an
        interrupt.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # completion is of a word, and python has its own
    completed = any(text.startswith("--print-completion") for text in given)
    try:
        parser = make_parser("stipple" if completed else None, listed=completed)
        options = parser.parse_args(given)
    except UsageError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    try:
        for name in OUTPUTS:
            if isinstance(path := getattr(options, name, None), Path):
                refuse_file_above(path)
        options.run(options)
    except KeyboardInterrupt:
        more = ""
        if options.command in RESUMED:
            again = " without --overwrite" if getattr(options, "overwrite", False) else ""
            more = f", the same command{again} goes on"
        print(f"stipple_monai {options.command}: interrupted{more}", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            raise
        _close_bars()
        print(f"stipple_monai {options.command}: {_first_message(error)}", file=sys.stderr)
        return 1
    return 0


def make_parser(prog: str | None = None, *, listed: bool = False) -> argparse.ArgumentParser:
    """Parser of the whole command line; what it parses has ``run``, the command's function.

    Args:
        prog: what the program is called; ``stipple`` or ``python -m stipple_monai`` if None, as it
            was started.
        listed: keep argparse's own list of the commands, from which a completion is made.
    """
    if prog is None:
        started = Path(sys.argv[0]).stem
        prog = started if started == "stipple" else "python -m stipple_monai"
    parser = OneLineParser(
        prog=prog,
        usage=f"{prog} [-h] [--traceback] COMMAND ...",
        description="STIPPLE for MONAI: 3D spatial priors and pseudo-labels for organ "
        "segmentation. A command with --help tells its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from, for a bug report"
    )
    if has_shtab:
        shtab.add_argument_to(parser, "--print-completion", help="of a shell, to be evaluated")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=prog)
    for command in COMMANDS:
        command.add_parser(commands)
    parser.epilog = _grouped({action.dest: action.help for action in commands._choices_actions})
    if not listed:
        # they are told in groups instead
        commands._choices_actions.clear()
    return parser


def _close_bars() -> None:
    """Stop what progress bars there are, so that none is painted over the error."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.disable = True


def _grouped(texts: Mapping[str, str | None]) -> str:
    """The commands' help, in groups."""
    lines = []
    for title, group in GROUPS.items():
        lines.append(f"{title}:")
        for command in group:
            name = command.__name__.rpartition(".")[2].replace("_", "-")
            lines.append(f"  {name:<12}{texts[name]}")
        lines.append("")
    return "\n".join(lines)


def console() -> int:
    """Entry point ``stipple``: what a command has started ends with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return main()


def _first_message(error: BaseException) -> str:
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
    sys.exit(console())
