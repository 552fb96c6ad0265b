"""What `import stipple_monai` takes beside `import monai`, each in a fresh interpreter.

Measured is the processor time of the child process, the interpreter's own start included in both.
Read: the ratio is to be at most 1.05. `import torch`, which both contain, is there to compare.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial

from timing import compare, print_table


def import_in_fresh_interpreter(module: str) -> None:
    """Start Python, import a module, end.

    Raises:
        subprocess.CalledProcessError: the import failed.
    """
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    modules = ("monai", "stipple_monai", "torch")
    rows = compare(
        {f"import {name}": partial(import_in_fresh_interpreter, name) for name in modules},
        rounds=arguments.rounds,
        baseline="import monai",
        clock="children",
    )
    print_table("Import in a fresh interpreter", rows)


if __name__ == "__main__":
    main()
