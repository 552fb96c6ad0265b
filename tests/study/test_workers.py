"""Workers end with the command that began them, however that ended."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

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

    def __init__(self, folder, cluster, local_python):
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


def seen_gpus(path):
    path.write_text(repr(os.environ.get("CUDA_VISIBLE_DEVICES")), encoding="utf-8")


@pytest.mark.parametrize("seen", [None, "GPU-0a1b"])
def test_a_local_job_sees_the_gpus_that_its_command_sees(tmp_path, monkeypatch, seen):
    pytest.importorskip("submitit")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert submit_jobs(seen_gpus, [(tmp_path / "seen",)], tmp_path / "jobs", 1, None) == []
    assert (tmp_path / "seen").read_text(encoding="utf-8") == repr(seen)


def test_gpus_take_turns_unless_a_queue_gives_them_out(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(workers, "_end_with", lambda parent: None)
    threads = torch.get_num_threads()
    for number in range(3):
        workers._in_process(threads, os.getpid(), number, print)
    assert taken == [0, 1, 0]
    workers._in_process(threads, 0, 1, print)
    assert taken == [0, 1, 0]


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
