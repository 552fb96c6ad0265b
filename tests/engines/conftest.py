"""Scans, and a training of the method that a module of tests is about."""

import pytest
from helpers.method_runs import TRAINING, make_scans, run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def trained(request, root):
    """The folder of the scans, in which the overlays of the module's `METHOD` were trained."""
    run(request.module.METHOD, root, **TRAINING)
    return root
