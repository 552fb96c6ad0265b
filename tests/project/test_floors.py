"""The architecture, held by reading the imports: what stands on which floor, and how it looks."""

import ast
import inspect
import itertools
import sys
from pathlib import Path

import pytest

import stipple_monai

PACKAGE = Path(stipple_monai.__file__).parent
ROOT = "stipple_monai"

FLOORS = [
    ["correlation", "errors", "files", "paper", "parallel"],
    [
        "alignment",
        "fusion",
        "interpolation",
        "organ",
        "sampling",
        "selection",
        "statistics",
        "unet",
    ],
    [
        "histogram",
        "losses",
        "atlas_loss",
        "colours",
        "network",
        "stages",
        "provenance",
        "grid_writer",
        "page",
        "prior_file",
        "report.layers",
        "data.checks",
        "data.anatomy",
        "data.writing",
        "data.phantom",
        "data.datalist",
        "data.repeated",
        "data.body",
        "data.simulation",
        "data.folders",
        "data.naming",
        "data.grids",
        "data.alignment_check",
        "data.dicom_header",
    ],
    [
        "prior",
        "publishing",
        "sections",
        "data.series",
        "data.dicom_labels",
        "data.folds",
        "data.qa_report",
    ],
    [
        "positioning",
        "prior_set",
        "figures",
        "report.provenance",
        "report.viewer",
        "study_figures",
        "study_tables",
        "data.label_files",
    ],
    [
        "joint",
        "references",
        "transforms.array",
        "comparison",
        "study_report",
        "data.sources",
        "report.plots",
    ],
    ["inferer", "orientation", "pictures", "transforms.dictionary", "data.pairs"],
    [
        "handlers",
        "pool",
        "pseudo_quality",
        "scores",
        "volumes",
        "mean_teacher",
        "adversarial",
        "data.dataset_check",
        "data.ingest",
    ],
    ["self_training", "demo", "study_plan", "dicom_seg", "data_commands", "report.cases"],
    ["study", "segment", "report.priors", "report.results"],
    ["report.dataset", "report.training", "report.predictions"],
    ["report.run"],
    ["__main__"],
]
FLOOR = {f"{ROOT}.{name}": floor for floor, names in enumerate(FLOORS) for name in names}
# Half a floor: the lower modules of data, which the upper ones may use.
FLOOR[f"{ROOT}.data.phantom"] += 0.5
FLOOR[f"{ROOT}.data.datalist"] += 0.5
FLOOR[f"{ROOT}.data.simulation"] += 0.5
OPTIONAL = {
    "sections",
    "figures",
    "handlers",
    "comparison",
    "page",
    "pictures",
    "scores",
    "references",
    "stages",
    "mean_teacher",
    "adversarial",
    "self_training",
    "study",
    "study_figures",
    "study_report",
    "demo",
    "__main__",
}

NUMERICS = {"torch", "numpy", "scipy", "nibabel"}
MONAI_ON_FLOOR_1 = {("organ", "monai.data.MetaTensor")}
MOST_LINES = 350


def name_of(path):
    parts = [ROOT, *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = {name for name, path in SOURCES.items() if path.name == "__init__.py"}
MODULES = [name for name in SOURCES if name not in PACKAGES]
every_module = pytest.mark.parametrize("module", MODULES)


def tree(module):
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def imports(nodes, module):
    """Full names of what is imported, a relative import made absolute."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level]
                base = ".".join([*above, *([base] if base else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def source_of(name):
    """The module of the project that an imported name comes from; None for other packages."""
    while name.split(".")[0] == ROOT:
        if name in SOURCES:
            return name
        if "." not in name:
            break
        name = name.rpartition(".")[0]
    return None


def floor_of(name):
    """A package's floor is that of the highest module whose names it hands on."""
    if name not in PACKAGES:
        return FLOOR[name]
    return max(
        (floor_of(source_of(i)) for i in imports(ast.walk(tree(name)), name) if source_of(i)),
        default=-1,
    )


def faults(module, found):
    """The project's imports that do not go down."""
    return [i for i in found if source_of(i) and floor_of(source_of(i)) >= FLOOR[module]]


def test_every_module_has_a_floor_and_every_floor_its_modules():
    assert set(MODULES) - set(FLOOR) == set(), "name a floor for them in tests/test_floors.py"
    absent = {name.removeprefix(f"{ROOT}.") for name in set(FLOOR) - set(MODULES)}
    assert absent <= OPTIONAL


@every_module
def test_a_module_imports_only_from_lower_floors(module):
    assert faults(module, imports(ast.walk(tree(module)), module)) == []


@every_module
def test_the_project_is_not_imported_inside_functions_or_conditions(module):
    body = tree(module).body
    inner = [n for top in body for n in ast.walk(top) if n is not top]
    assert [i for i in imports(inner, module) if i.split(".")[0] == ROOT] == []


@every_module
def test_no_module_is_imported_by_a_name_that_hides_it(module):
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
    }
    assert not called & {"import_module", "__import__"}


@pytest.mark.parametrize("module", [m for m in MODULES if FLOOR.get(m, 9) < 2])
def test_the_lowest_floors_see_numerics_alone(module):
    short = module.removeprefix(f"{ROOT}.")
    for name in imports(ast.walk(tree(module)), module):
        top = name.split(".")[0]
        assert (
            top in NUMERICS
            or top == ROOT
            or top in sys.stdlib_module_names
            or (short, name) in MONAI_ON_FLOOR_1
        ), name


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_only_hand_names_on(package):
    for node in tree(package).body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        listed = isinstance(node, ast.Assign) and [t.id for t in node.targets] == ["__all__"]
        handed_on = isinstance(node, ast.ImportFrom) and all(
            source_of(i) for i in imports([node], package)
        )
        assert text or listed or handed_on, ast.unparse(node)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_modules_are_short_and_say_what_they_are(module):
    lines = SOURCES[module].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    assert ast.get_docstring(tree(module))
    assert module.rpartition(".")[2] not in {"utils", "util", "helpers", "common", "misc"}


def test_the_rules_see_what_breaks_them(tmp_path):
    """An import up, sideways or out of a package counts, in each way to write it."""
    for statement in (
        "from stipple_monai.positioning.single import locate_organ",
        "import stipple_monai.positioning.single as p",
        "from stipple_monai import positioning",
        "from stipple_monai import SpatialPrior",
        "from . import inferer",
        "from .sections import Section",
        "from stipple_monai.transforms import PriorAlign",
        "from stipple_monai.transforms.array import PriorAlign",
    ):
        found = imports(ast.parse(statement).body, f"{ROOT}.prior")
        assert faults(f"{ROOT}.prior", found) == found, statement
    allowed = ast.parse("import torch\nfrom .organ import world_point\nfrom . import errors").body
    assert faults(f"{ROOT}.prior", imports(allowed, f"{ROOT}.prior")) == []
    upward = imports(ast.parse("from .phantom import x").body, f"{ROOT}.data.anatomy")
    assert faults(f"{ROOT}.data.anatomy", upward)
    assert faults(f"{ROOT}.data.datalist", upward)


# What the public names look like.


def public(name):
    return getattr(stipple_monai, name)


def defined_docstring(name):
    """The text below the assignment of a public constant."""
    for module in MODULES:
        body = tree(module).body
        for node, following in itertools.pairwise(body):
            if (
                isinstance(node, ast.Assign)
                and [getattr(t, "id", "") for t in node.targets] == [name]
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                return following.value.value
    return None


def test_public_names_are_there_once_and_in_order():
    names = stipple_monai.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(stipple_monai, name) for name in names)


@pytest.mark.parametrize("name", stipple_monai.__all__)
def test_public_names_have_a_docstring_of_their_own(name):
    value = public(name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        assert defined_docstring(name)
        return
    assert value.__doc__
    if inspect.isclass(value):
        assert value.__doc__ not in {base.__doc__ for base in value.__mro__[1:]}


def typed(function):
    """Parameters without annotation, and the missing return annotation."""
    signature = inspect.signature(function)
    empty = inspect.Parameter.empty
    missing = [
        p.name
        for p in signature.parameters.values()
        if p.annotation is empty and p.name not in {"self", "cls"}
    ]
    return missing + ["return"] * (signature.return_annotation is empty)


def methods(cls):
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        function = function.fget if isinstance(function, property) else function
        # what collections.namedtuple generates is of another module
        own = inspect.isfunction(function) and function.__module__ == cls.__module__
        if own and (not name.startswith("_") or name.endswith("__")):
            yield name, function


@pytest.mark.parametrize("name", stipple_monai.__all__)
def test_public_functions_and_classes_are_typed(name):
    value = public(name)
    if inspect.isclass(value):
        for method, function in methods(value):
            assert typed(function) == [], method
    elif inspect.isroutine(value):
        assert typed(value) == []


@pytest.mark.parametrize("name", stipple_monai.__all__)
def test_public_methods_have_a_docstring(name):
    value = public(name)
    if inspect.isclass(value):
        without = [m for m, f in methods(value) if not f.__doc__ and not m.startswith("__")]
        assert without == []
        if "__call__" in vars(value):
            assert vars(value)["__call__"].__doc__
