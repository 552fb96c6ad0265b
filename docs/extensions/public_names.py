"""A package's part of the API reference, and a stop at a public name that has none.

``.. package:: stipple_monai.priors`` documents what the package lists in ``__all__``, in the order
of its modules; ``.. symbols::`` lists the names of all packages, a line each. A name that
`stipple_monai` itself offers is documented as that, since this is how a user imports it.
Constants are documented where a text follows them in the code. References to
the module that defines a name, or to the package that offers it, lead there as well.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = "stipple_monai"
TOP = importlib.import_module(ROOT)
SOURCE = Path(TOP.__file__ or "").parent
# commands are what `--help` says
PACKAGES = sorted({p.parent.name for p in SOURCE.glob("*/__init__.py")} - {"commands"})
MODULES = [f"{ROOT}.{name}" for name in (*PACKAGES, "errors")]
# MONAI's spellings of a dictionary transform besides that with a small d
ALIASES = ("D", "Dict")


def is_alias(name: str, value: Any) -> bool:
    """Whether the name is another spelling of a class that has its own."""
    return inspect.isclass(value) and value.__name__ != name and name.endswith(ALIASES)


def texts(module: ModuleType) -> dict[str, list[str]]:
    """What follows the constants of a package's modules."""
    folder, found = Path(module.__file__ or ""), {}
    for path in sorted(folder.parent.glob("*.py")) if folder.stem == "__init__" else [folder]:
        analyzer = ModuleAnalyzer.for_file(path, f"{module.__name__}.{path.stem}")
        found |= {n: text for (owner, n), text in analyzer.find_attr_docs().items() if not owner}
    return found


def offered(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Names and values of what a module offers and the reference has, module by module."""
    documented = texts(module)
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", 0) == module.__name__]
    names = getattr(module, "__all__", None) or [n for n in own if not n.startswith("_")]
    values = {name: getattr(module, name) for name in names}
    for name, value in sorted(values.items(), key=lambda i: str(getattr(i[1], "__module__", ""))):
        described = inspect.isclass(value) or inspect.isroutine(value) or name in documented
        if described and not is_alias(name, value):
            yield name, value


def public_names() -> Iterator[tuple[str, Any]]:
    """Full name, as a user imports it, and value of all that is public."""
    for module in map(importlib.import_module, MODULES):
        for name, value in offered(module):
            top = name in TOP.__all__
            yield f"{ROOT if top else module.__name__}.{name}", value


def faults(documented: set[str]) -> list[str]:
    """What the API reference lacks, given the full names that it has."""
    found = []
    for name, value in public_names():
        if name not in documented:
            found.append(f"{name} is public and must appear in a page of docs/api")
        if (inspect.isclass(value) or inspect.isroutine(value)) and not value.__doc__:
            found.append(f"{name} is public and must have a docstring")
    return found


class FromCode(SphinxDirective):
    """A directive whose page is read anew when the code changes."""

    def depends_on(self, module: ModuleType) -> None:
        """Let the page depend on the files of a package or module."""
        file = Path(module.__file__ or "")
        for path in file.parent.glob("*.py") if file.stem == "__init__" else [file]:
            self.env.note_dependency(str(path))


class Package(FromCode):
    """The docstring of a package, then all that it offers."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Have autodoc write it."""
        module = importlib.import_module(self.arguments[0])
        self.depends_on(module)
        written, constants = texts(module), []
        lines = [f".. automodule:: {module.__name__}", "   :no-members:", ""]
        for name, value in offered(module):
            full = f"{ROOT if name in TOP.__all__ else module.__name__}.{name}"
            if inspect.isclass(value):
                lines += [f".. autoclass:: {full}", "   :members:", ""]
            elif inspect.isroutine(value):
                lines += [f".. autofunction:: {full}", ""]
            else:
                shown = json.dumps(value) if isinstance(value, (str, int, float)) else ""
                constants += [f".. py:data:: {name}", f"   :module: {full.rpartition('.')[0]}"]
                constants += [f"   :value: {shown}"] if shown else []
                constants += ["", *(f"   {line}" for line in written[name]), ""]
        container = nodes.container()
        text = StringList([*lines, *constants], source=self.arguments[0])
        self.state.nested_parse(text, self.content_offset, container, match_titles=True)
        return container.children


def first_sentence(text: str) -> str:
    """Of a docstring, in one line."""
    paragraph = " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z`])", paragraph)[0].rstrip(":")


class Symbols(FromCode):
    """Every public name by package, linked to its entry, with the first sentence about it."""

    def run(self) -> list[nodes.Node]:
        """Write the lists."""
        lines = []
        for module in map(importlib.import_module, MODULES):
            self.depends_on(module)
            title = module.__name__.rpartition(".")[2]
            about = first_sentence(module.__doc__ or "")
            lines += [f".. rubric:: {title}", "", f"{about}", ""]
            written = texts(module)
            for name, value in sorted(offered(module), key=lambda pair: pair[0].lower()):
                full = f"{ROOT if name in TOP.__all__ else module.__name__}.{name}"
                called = inspect.isclass(value) or inspect.isroutine(value)
                told = (value.__doc__ or "") if called else "\n".join(written[name])
                lines.append(f"- :py:obj:`{name} <{full}>`: {first_sentence(told)}")
            lines.append("")
        container = nodes.container()
        text = StringList(lines, source="symbols")
        self.state.nested_parse(text, self.content_offset, container)
        return container.children


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each fault; ``-W`` turns warnings into a failure."""
    documented = set(env.domains.python_domain.objects)
    for fault in faults(documented):
        logging.getLogger(__name__).warning(fault)


def places() -> dict[str, str]:
    """Where a name is documented, by each full name that it may be called."""
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name, value in offered(module):
            full = f"{ROOT if name in TOP.__all__ else module.__name__}.{name}"
            # a docstring may leave out where a name comes from
            found[f"{module.__name__}.{name}"] = found[name] = full
            if hasattr(value, "__name__"):
                found[f"{value.__module__}.{value.__name__}"] = full
    return found


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Node | None:
    """Find what is referred to by the module that defines it or the package that offers it."""
    found = places()
    owner, _, member = node.get("reftarget", "").rpartition(".")
    target = found.get(node.get("reftarget"))
    if target is None and owner in found:
        target = f"{found[owner]}.{member}"
    if target is None:
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Write when pages are read, check when all are, resolve when they are written."""
    app.add_directive("package", Package)
    app.add_directive("symbols", Symbols)
    app.connect("env-check-consistency", check)
    app.connect("missing-reference", resolve)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
