"""The simulated scan and its prior on which GPU runs train (`training_step.prepare`), kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from training_step import prepare


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="128 × 128 × 60, not 512 × 512 × 240")
    arguments = parser.parse_args()
    prepare(arguments.root, factor=1 if arguments.tiny else 4)
    print(f"Scan and prior are in {arguments.root}.")


if __name__ == "__main__":
    main()
