"""The pages say what is there: Python runs, commands parse, messages and options exist."""

import argparse
import ast
import configparser
import contextlib
import importlib.util
import itertools
import re
import shlex
import subprocess
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml
from helpers.forks import exit_status, fork, needs_fork
from monai.bundle import ConfigParser

import stipple_monai
from stipple_monai.__main__ import make_parser
from stipple_monai.bundle import BUNDLE
from stipple_monai.handlers import EpochSeed
from stipple_monai.simulation import write_phantom

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIGS = BUNDLE / "configs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md"), BUNDLE / "docs" / "README.md"])
WITH_PYTHON = [page for page in sorted(DOCS.glob("*.md")) if "```python" in page.read_text()]


def blocks(page, *languages):
    """Code of the fenced blocks in these languages, also of those that are indented."""
    fence = re.compile(r"^( *)```(\{?\w*\}?)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
    for indent, language, code in fence.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)


def named(path):
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def public_names():
    path = DOCS / "extensions" / "public_names.py"
    spec = importlib.util.spec_from_file_location("public_names", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def broken_site(tmp_path_factory):
    """What the build of a page with every fault says, and how it ends."""
    source = tmp_path_factory.mktemp("source")
    page = "# Title\n\n[gone](nowhere.md) [lost](#nowhere)\n\n{py:func}`stipple_monai.nothing`\n"
    (source / "index.md").write_text(page, encoding="utf-8")
    options = ["-W", "--keep-going", "-n", "-q", "-c", str(DOCS), "-b", "dummy"]
    build = pytest.importorskip("sphinx.cmd.build", reason="needs the extra docs")
    said = source / "said.txt"

    def run():
        with said.open("w", encoding="utf-8") as file, contextlib.redirect_stderr(file):
            return build.main([*options, str(source), str(source / "built")])

    return exit_status(fork(run)), said.read_text(encoding="utf-8")


@needs_fork
@pytest.mark.parametrize(
    "fault",
    [
        "cross-reference target not found: 'nowhere.md'",
        "target not found: 'nowhere'",
        "py:func reference target not found: stipple_monai.nothing",
        "stipple_monai.SpatialPrior is public and must appear in a page of docs/api",
    ],
)
def test_the_build_stops_at(broken_site, fault):
    status, said = broken_site
    assert status == 1
    assert fault in said


def test_public_names_without_place_or_docstring(public_names, monkeypatch):
    names = {name for name, _ in public_names.public_names()}
    top = {n for n in stipple_monai.__all__ if not n.endswith(public_names.ALIASES)}
    assert names >= {f"stipple_monai.{name}" for name in top}
    assert public_names.faults(names) == []
    (fault,) = public_names.faults(names - {"stipple_monai.handlers.EpochSeed"})
    assert fault.startswith("stipple_monai.handlers.EpochSeed is public and must appear")
    monkeypatch.setattr(EpochSeed, "__doc__", None)
    (fault,) = public_names.faults(names)
    assert fault == "stipple_monai.handlers.EpochSeed is public and must have a docstring"


def test_the_first_sentence_of_a_docstring(public_names):
    for text, expected in (
        ("One.\n\nTwo.", "One."),
        ("One\nline. And `more`.", "One line."),
        ("Of 0.5 mm: `B C`.", "Of 0.5 mm"),
    ):
        assert public_names.first_sentence(text) == expected


@pytest.mark.parametrize("page", WITH_PYTHON, ids=named)
def test_python_runs_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_phantom(tmp_path / "data", cases=3, size=32, slices=(12, 12), progress=False)
    names = {}
    for code in blocks(page, "python"):
        exec(compile(code, named(page), "exec"), names)
    assert names


def commands(page):
    for code in blocks(page, "", "sh", "console"):
        for line in code.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)


def test_commands_parse():
    found = 0
    for page in PAGES:
        for words in commands(page):
            if words[1:3] == ["-m", "stipple_monai"] and words[3:4] != ["--help"]:
                make_parser().parse_args(words[3:])
                found += 1
            elif words[:1] == ["stipple"]:
                make_parser().parse_args(words[1:])
    assert found > 10


def subparsers():
    parser = make_parser()
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def test_commands_in_running_text_have_the_options_that_they_are_said_to_have():
    """`stipple train --calibrate`, without all that the command needs."""
    found, known = 0, subparsers()
    for page in PAGES:
        text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text("utf-8"), flags=re.M | re.S)
        for command, rest in re.findall(r"`stipple ([a-z-]+)([^`]*)`", text):
            assert command in known, f"{named(page)}: stipple {command}"
            for option in re.findall(r"(--[a-z][a-z-]*)", rest):
                options = known[command]._option_string_actions
                assert option in options, f"{named(page)}: stipple {command} {option}"
            found += 1
    assert found > 10


def test_every_page_is_on_the_start_page():
    links = re.findall(r"\]\(([^)#]+)", (DOCS / "index.md").read_text(encoding="utf-8"))
    missing = {page.name for page in DOCS.glob("*.md")} - set(links)
    # index itself and the pages that are tables of contents alone
    assert missing == {"index.md", "guide.md", "background.md", "project.md"}
    assert "api/symbols.md" in links


def test_bundle_commands_name_configs_that_exist():
    found = 0
    for page in PAGES:
        for words in commands(page):
            for name in re.findall(r"([a-z_0-9]+\.yaml)", " ".join(words)):
                if "configs/" in " ".join(words):
                    assert (CONFIGS / name).is_file(), f"{named(page)}: {name}"
                    found += 1
    assert found > 10


def overlays():
    for code in blocks(DOCS / "recipes.md", "yaml"):
        yield yaml.safe_load(code)


@pytest.mark.parametrize("overlay", list(overlays()), ids=lambda overlay: next(iter(overlay)))
def test_overlays_of_the_recipes_have_no_dead_key(overlay):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("train", "patch_3d")])
    assert set(overlay) <= set(parser.config)
    parser.update(overlay)
    for name in overlay:
        assert parser.get_parsed_content(name) is not None


def messages():
    """All text of the package's strings, `…` where a value is put in."""
    for path in (ROOT / "stipple_monai").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(getattr(v, "value", "…") if isinstance(v, ast.Constant) else "…"
                              for v in node.values)  # fmt: skip
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_of_the_troubleshooting_are_in_the_code():
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^`` (.+?) ``$", text, re.MULTILINE)
    assert len(quoted) > 20
    there = "\n".join(messages())
    for message in quoted:
        for part in message.split("…"):
            assert part.strip() in there, message


def test_links_to_the_outside_are_whole():
    found = 0
    for page in PAGES:
        for link in re.findall(r"\]\((\w+:[^)\s]*)\)", page.read_text(encoding="utf-8")):
            parts = urlparse(link)
            assert parts.scheme == "https", f"{named(page)}: {link}"
            assert "." in parts.netloc, f"{named(page)}: {link}"
            found += 1
    assert found > 5


def test_every_page_is_in_the_table_of_contents():
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    fences = re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
    listed = [line for fence in fences for line in fence.splitlines() if line and line[0] != ":"]
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or any(Path(page.stem).match(entry) for entry in listed), page


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version"} <= set(citation)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert citation["version"] == setup["metadata"]["version"]
    assert citation["license"] == setup["metadata"]["license"]
    doi = citation["preferred-citation"]["doi"]
    pages = [ROOT / "README.md", DOCS / "citation.md"]
    assert all(doi in page.read_text(encoding="utf-8") for page in pages)


def test_make_help_lists_every_target():
    # also where the tests themselves are run by make
    command = ["make", "--no-print-directory", "help"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = set(itertools.chain.from_iterable(line.split() for line in phony))
    assert {line.split()[0] for line in made.stdout.splitlines()} == targets - {"help"} | {"help"}
