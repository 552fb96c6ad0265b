"""The commands of the command line, a module each: arguments in, one call, one line out.

Imports from all packages below it.
"""

from stipple_monai.commands.data_commands import (
    add_data_commands,
)

__all__ = [
    "add_data_commands",
]
