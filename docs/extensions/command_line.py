"""The directive ``command-line``: what each command's ``--help`` says, from the parsers."""

from __future__ import annotations

import argparse
import os
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from stipple_monai.__main__ import make_parser
from stipple_monai.commands import GROUPS

COLUMNS = "88"


class CommandLine(Directive):
    """A section for each command, and before them the list of all."""

    def run(self) -> list[nodes.Node]:
        """Give the sections."""
        os.environ["COLUMNS"] = COLUMNS
        parser = make_parser("stipple")
        found: list[nodes.Node] = [_literal(parser.format_help())]
        for title, group in GROUPS.items():
            section = nodes.section(ids=[f"commands-{title}"])
            section += nodes.title(text=title.capitalize())
            for command in group:
                name = command.__name__.rpartition(".")[2].replace("_", "-")
                part = nodes.section(ids=[f"command-{name}"])
                part += [nodes.title(text=name), _literal(subparser(parser, name).format_help())]
                section += part
            found.append(section)
        return found


def subparser(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices[name]


def _literal(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="text")


def setup(app: Sphinx) -> dict[str, Any]:
    """Offer the directive."""
    app.add_directive("command-line", CommandLine)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
