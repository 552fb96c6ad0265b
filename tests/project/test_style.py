"""What ruff, mypy and import-linter cannot say of the package's code."""

import ast
import functools
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stipple_monai
from stipple_monai.commands import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "stipple_monai"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name in SOURCES if not name.endswith("__init__.py")]
PACKAGES = [name for name in SOURCES if name.endswith("/__init__.py")]

MOST_LINES, MOST_LINES_OF_A_COMMAND, MOST_LINES_OF_A_FUNCTION = 350, 150, 40
DICOM = {"pydicom", "highdicom", "itk"}
OPTIONAL = {"ingest": DICOM, "results": DICOM, "data": {"itk"}}
OPTIONAL |= {"study": {"submitit"}, "__main__": {"shtab"}, "memory": {"resource"}}
# what the packages of the mathematics take from MONAI
MATHEMATICS = {
    "calibration",
    "losses",
    "networks",
    "positioning",
    "priors",
    "pseudo_labels",
    "spatial",
}
FROM_MONAI = {
    "monai.data.MetaTensor",
    "monai.losses.DiceLoss",
}


@functools.cache
def tree(module):
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def package_of(module):
    return module.partition("/")[0].removesuffix(".py")


def imports(nodes):
    """Module and name of what is imported; the name is empty where a module is."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def faults(nodes, package):
    """Imports of another package's that are not of names that it offers."""
    for source, name in imports(nodes):
        root, _, inside = source.partition(".")
        if root == "stipple_monai" and inside.partition(".")[0] != package:
            whole = not inside and (PACKAGE / f"{name}.py").is_file()
            offered = inside and "." not in inside and name and not name.startswith("_")
            if not offered and not whole:
                yield f"{source}.{name}"


@pytest.mark.parametrize("module", MODULES)
def test_what_a_package_uses_of_another_comes_from_that_package(module):
    assert list(faults(ast.walk(tree(module)), package_of(module))) == []


def test_the_rule_sees_what_breaks_it():
    for statement in (
        "import stipple_monai.priors",
        "from stipple_monai import SpatialPrior",
        "from stipple_monai import priors",
        "from stipple_monai.priors.prior import SpatialPrior",
        "from stipple_monai.priors import _name",
    ):
        assert list(faults(ast.parse(statement).body, "data")), statement
    for statement in ("import torch", "from stipple_monai.priors import SpatialPrior"):
        assert not list(faults(ast.parse(statement).body, "data")), statement


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_only_hand_their_names_on(package):
    name = f"stipple_monai.{package_of(package)}"
    for node in tree(package).body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        listed = isinstance(node, ast.Assign) and [t.id for t in node.targets] == ["__all__"]
        own = isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{name}.")
        assert text or listed or own, ast.unparse(node)


@pytest.mark.parametrize("module", [m for m in MODULES if package_of(m) in MATHEMATICS])
def test_the_mathematics_sees_little_of_monai(module):
    found = {f"{source}.{name}" for source, name in imports(ast.walk(tree(module)))}
    assert {name for name in found if name.startswith("monai")} <= FROM_MONAI


@pytest.mark.parametrize("module", MODULES)
def test_what_may_be_absent_is_asked_for_where_it_is_used(module):
    called = {
        node.args[0].value.partition(".")[0]
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "optional_import"
    }
    assert called <= OPTIONAL.get(package_of(module), set())


@pytest.mark.parametrize("module", list(SOURCES))
def test_modules_are_short_and_called_by_what_they_hold(module):
    most = MOST_LINES_OF_A_COMMAND if package_of(module) == "commands" else MOST_LINES
    assert len(SOURCES[module].read_text(encoding="utf-8").splitlines()) <= most
    assert SOURCES[module].stem not in {"utils", "util", "helpers", "common", "misc"}


def lines_of(function):
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function):
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module):
    functions = (n for n in ast.walk(tree(module)) if isinstance(n, ast.FunctionDef))
    assert [f.name for f in functions if lines_of(f) > MOST_LINES_OF_A_FUNCTION] == []


def test_every_command_is_parsed_and_can_be_run():
    modules = {Path(name).stem for name in MODULES if package_of(name) == "commands"}
    listed = [command.__name__.rpartition(".")[2] for command in COMMANDS]
    assert sorted(listed) == sorted(modules - {"groups", "options"})
    for command in COMMANDS:
        assert callable(command.add_parser)
        assert callable(command.run)


def described(name):
    """Whether a public constant has a text below it where it is defined."""
    for module in MODULES:
        for node, following in itertools.pairwise(tree(module).body):
            if isinstance(node, ast.Assign) and name in {
                getattr(t, "id", "") for t in node.targets
            }:
                return isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
    return False


def test_public_names_are_there_and_constants_have_a_text():
    for name in stipple_monai.__all__:
        value = getattr(stipple_monai, name)
        assert callable(value) or described(name), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        (
            "spatial/sampling.py",
            "import stipple_monai.priors",
            "from packages below it",
        ),
        ("priors/histogram.py", "import matplotlib", "The mathematics sees arrays alone"),
        ("new.py", "import torch", "from packages below it"),
    ],
)
def test_import_linter_refuses(tmp_path, module, statement, contract):
    pytest.importorskip("importlinter")
    shutil.copytree(PACKAGE, tmp_path / "stipple_monai", ignore=shutil.ignore_patterns("__pyc*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "stipple_monai" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{statement}\n")
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as main; main()",
    ]
    done = subprocess.run(
        [*command, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search(f"{contract}.* BROKEN", done.stdout), done.stdout
