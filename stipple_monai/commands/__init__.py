"""The commands of the command line, a module each: arguments in, one call, one line out.

Words: a *command* is a module with `add_parser`, which adds its parser to that of `__main__`, and
`run`, which receives the parsed options; `groups` lists them.
"""

from stipple_monai.commands.groups import COMMANDS, GROUPS
from stipple_monai.commands.options import OneLineParser, UsageError

__all__ = [
    "COMMANDS",
    "GROUPS",
    "OneLineParser",
    "UsageError",
]
