"""Workers end with the command that began them, however that ended."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest

from stipple_monai.study import workers
from stipple_monai.study.workers import _end_with, submit_jobs

CODE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import os, sys
from stipple_monai.study.workers import _end_with
print("ready", flush=True)
_end_with(int(sys.argv[1]))
''', str(os.getpid())], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_ends_when_the_command_was_killed():
    parent = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert alive(worker)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 20
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.2)
    assert not alive(worker)


class Jobs:
    """submitit's executor, whose jobs never end."""

    def __init__(self, folder, cluster):
        self.cluster, self.cancelled = cluster, []

    def update_parameters(self, **parameters):
        pass

    def submit(self, *job):
        number = job[-1]
        if number == 2:
            raise KeyboardInterrupt
        cancel = partial(self.cancelled.append, number)
        return SimpleNamespace(done=lambda: False, cancel=cancel)


def test_an_interrupt_cancels_the_jobs_that_run(tmp_path, monkeypatch):
    made = []

    def executor(**options):
        made.append(Jobs(**options))
        return made[0]

    monkeypatch.setattr(workers, "has_submitit", True)
    monkeypatch.setattr(workers, "submitit", SimpleNamespace(AutoExecutor=executor))
    with pytest.raises(KeyboardInterrupt):
        submit_jobs(print, [(0,), (1,), (2,), (3,)], tmp_path, 3, None)
    assert (made[0].cluster, made[0].cancelled) == ("local", [0, 1])


def test_a_worker_whose_command_is_gone_ends(monkeypatch):
    ended = []

    def end(status):
        ended.append(status)
        raise SystemExit

    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit):
        _end_with(child.pid)
    assert ended == [1]
