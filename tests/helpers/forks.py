"""Processes to be killed, as forks of this one: they have all imports, which take seconds."""

import os
import signal
import time
import traceback

import pytest


def needs_fork(test):
    """Mark a test that forks, and skip it where that cannot be."""
    can = hasattr(os, "fork")
    skipped = pytest.mark.skipif(not can, reason="needs fork, for a start without imports")
    return pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")(skipped(test))


def fork(call):
    """Start a call in a copy of this process, which ends with its result as status; its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        status = int(call() or 0)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def exit_status(child):
    """Wait for a fork to end; minus the signal's number if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_when(condition, child, *, limit_s=300, every_s=0.002):
    """Kill a fork with SIGKILL as soon as a condition holds, which must be before its end."""
    limit = time.monotonic() + limit_s
    while not condition() and time.monotonic() < limit:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(every_s)
    os.kill(child, signal.SIGKILL)
    assert time.monotonic() < limit
    assert exit_status(child) == -signal.SIGKILL
