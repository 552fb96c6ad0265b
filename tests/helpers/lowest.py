"""Print the oldest release of each dependency that setup.cfg admits, as pip constraints.

torch is left out: which build fits a machine is not for this file to say.
"""

import configparser
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

SETUP = Path(__file__).parents[2] / "setup.cfg"


def lowest(setup: Path = SETUP) -> Iterator[str]:
    """``name==version`` for each requirement with a lower bound."""
    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    extras = config["options.extras_require"]
    texts = [config["options"]["install_requires"], extras["test"]]
    for line in "\n".join(texts).splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        requirement = Requirement(text)
        bounds = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
        if bounds and requirement.name != "torch":
            yield f"{requirement.name}=={bounds[0]}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(lowest()) + "\n")
