"""One thread for each process, marks by fixtures, and the order of files."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import yaml
from helpers.real_data import absent

# a test that uses one of these waits for a training, or for a whole run of a trained network
TRAINED = {"runs", "published", "trained", "bundle", "evaluated", "whole", "finished", "done"}
# files with most to do: a worker begins with each of these, in this order, and small ones fill up
FIRST = ("study/test_run", "bundles/test_pancreas", "project/test_examples", "self_training")


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    """Import what the tests share, and torch with it, but where tests are only handed out.

    Not before: pytest-cov begins here in a worker, and would miss what is run by an import.
    """
    config = session.config
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out:
        if yaml.__with_libyaml__:
            # reads configs ten times as fast, for MONAI as well, which takes its name when imported
            yaml.SafeLoader = yaml.CSafeLoader
        config.pluginmanager.import_plugin("helpers.shared")


def pytest_collection_finish(session):
    """No longer look for garbage among what was imported and collected: it stays to the end."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    """Mark what trains, skip what has no real data, and let workers begin with the long files."""
    for item in items:
        if missing := absent(item):
            reason = f"not in ../shared/data: {', '.join(missing)}"
            item.add_marker(pytest.mark.skip(reason=reason))
        if TRAINED.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.training)
    if hasattr(config, "workerinput"):
        items.sort(key=turn)


def turn(item):
    """Place of a test's file in `FIRST`, or after them all."""
    return next((i for i, name in enumerate(FIRST) if name in str(item.path)), len(FIRST))
