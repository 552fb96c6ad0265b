"""Stop the build at a public name without a place in the API reference or without docstring.

Public are the names in ``__all__`` of `PACKAGES`, and of `MODULES` those in ``__all__`` or, without
one, what is defined there and does not begin with an underscore. References to the module that
defines a name, as docstrings and annotations have them, lead to where it is imported from.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

PACKAGES = ("stipple_monai", "stipple_monai.data")
MODULES = (
    "stipple_monai.engines.adversarial",
    "stipple_monai.losses.atlas_prior",
    "stipple_monai.visualize.comparison",
    "stipple_monai.ingest.dataset_check",
    "stipple_monai.data.folds",
    "stipple_monai.ingest.run",
    "stipple_monai.demo.run",
    "stipple_monai.errors",
    "stipple_monai.visualize.figures",
    "stipple_monai.results.grid_writer",
    "stipple_monai.handlers.training",
    "stipple_monai.engines.mean_teacher",
    "stipple_monai.self_training.pool",
    "stipple_monai.handlers.provenance",
    "stipple_monai.bundle.publish",
    "stipple_monai.positioning.references",
    "stipple_monai.report.run",
    "stipple_monai.results.scores",
    "stipple_monai.segmentation.run",
    "stipple_monai.self_training.rounds",
    "stipple_monai.bundle.stages",
    "stipple_monai.results.statistics",
    "stipple_monai.study.run",
    "stipple_monai.study.plan",
    "stipple_monai.results.volumes",
)
# MONAI's spellings of a dictionary transform besides that with a small d
ALIASES = ("D", "Dict")


def public_names() -> Iterator[tuple[str, Any]]:
    """Full name, as a user imports it, and value of all that is public."""
    seen = set()
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            value = getattr(package, name)
            seen.add(id(value))
            yield f"{package.__name__}.{name}", value
    for module in map(importlib.import_module, MODULES):
        for name in getattr(module, "__all__", None) or vars(module):
            value = getattr(module, name)
            own = getattr(value, "__module__", None) == module.__name__
            if own and not name.startswith("_") and id(value) not in seen:
                yield f"{module.__name__}.{name}", value


def is_alias(full_name: str, value: Any) -> bool:
    """Whether the name is another spelling of a class that has its own."""
    spelling = full_name.rpartition(".")[2]
    return inspect.isclass(value) and value.__name__ != spelling and spelling.endswith(ALIASES)


def faults(documented: set[str]) -> list[str]:
    """What the API reference lacks, given the full names that it has."""
    found = []
    for name, value in public_names():
        if is_alias(name, value):
            continue
        if name not in documented:
            found.append(f"{name} is public and must appear in a page of docs/api")
        if (inspect.isclass(value) or inspect.isroutine(value)) and not value.__doc__:
            found.append(f"{name} is public and must have a docstring")
    return found


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each fault; ``-W`` turns warnings into a failure."""
    documented = set(env.domains.python_domain.objects)
    for fault in faults(documented):
        logging.getLogger(__name__).warning(fault)


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Node | None:
    """Find what is referred to by the module that defines it."""
    places = {
        f"{value.__module__}.{value.__name__}": name
        for name, value in public_names()
        if hasattr(value, "__name__") and not is_alias(name, value)
    }
    owner, _, member = node.get("reftarget", "").rpartition(".")
    target = places.get(node.get("reftarget"))
    if target is None and owner in places:
        target = f"{places[owner]}.{member}"
    if target is None:
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Check when all pages are read, resolve when they are written."""
    app.connect("env-check-consistency", check)
    app.connect("missing-reference", resolve)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
