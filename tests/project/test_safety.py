"""Nothing that a file says is run as code: no pickles and no `eval`, in package and configs."""

import ast
from pathlib import Path

import pytest
import yaml

import stipple_monai
from stipple_monai.bundle import BUNDLE

SOURCES = sorted(Path(stipple_monai.__file__).parent.rglob("*.py"))
CONFIGS = sorted((BUNDLE / "configs").glob("*.yaml"))
BANNED = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"}
BANNED |= {"joblib.load", "os.system", "shelve.open"}
# each of them reads pickles unless it is told not to
SAFE = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
SAFE["numpy.load"] = SAFE["np.load"]


def faults(source):
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in BANNED or (name in SAFE and SAFE[name] not in said(node)):
            found.append(name)
    return found


def said(call):
    return {(k.arg, ast.unparse(k.value)) for k in call.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_code_is_read_from_files(path):
    assert faults(path.read_text(encoding="utf-8")) == []


def test_the_rule_sees_what_breaks_it():
    for bad in (
        *("eval(x)", "pickle.load(f)", "torch.load(p)", "torch.load(p, weights_only=False)"),
        *("np.load(p)", "numpy.load(p, allow_pickle=True)"),
    ):
        assert faults(bad), bad
    assert faults("torch.load(p, weights_only=True)") == []
    assert faults("network.eval()") == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load_nothing_but_weights(path):
    text = yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")))
    for word in (
        "torch.load",
        "pickle",
        "eval(",
        "exec(",
        "weights_only",
        "os.system",
        "__import__",
    ):
        assert word not in text
