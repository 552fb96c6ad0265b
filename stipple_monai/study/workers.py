"""Jobs in processes of their own, on this computer or in Slurm's queue, through submitit."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

submitit, has_submitit = optional_import("submitit")


def _end_with(parent: int) -> None:
    """End this process when the study's has ended, however that did: nobody else would."""
    while True:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1)


def _in_process(
    threads: int, parent: int, number: int, work: Callable[..., Path | None], *job: Any
) -> Path | None:
    if parent:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        if torch.cuda.is_available():
            torch.cuda.set_device(number % torch.cuda.device_count())
    torch.set_num_threads(threads)
    return work(*job)


def _python() -> str:
    """The command of a local job, which sees the GPUs of this process: submitit would hide them."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = ["-u", "CUDA_VISIBLE_DEVICES"] if seen is None else [f"CUDA_VISIBLE_DEVICES={seen}"]
    return shlex.join(["env", *gpus, sys.executable])


def submit_jobs(
    work: Callable[..., Path | None],
    arguments: Sequence[tuple[Any, ...]],
    logs: Path,
    workers: int,
    slurm: Mapping[str, Any] | None,
) -> list[Path]:
    """Run jobs, so many at a time; the files with the errors of those that failed.

    Args:
        work: a function of the arguments of a job, that returns such a file or None.
        arguments: of each job.
        logs: submitit's folder.
        workers: jobs at a time.
        slurm: parameters of ``submitit.AutoExecutor``; without, they run on this computer, and
            its GPUs take turns.

    Raises:
        ImportError: submitit is not installed.
    """
    if not has_submitit:
        raise ImportError(
            "`workers` and `slurm` need submitit: pip install 'stipple-monai[study]'."
        )
    where = {"cluster": "slurm"} if slurm else {"cluster": "local", "local_python": _python()}
    executor = submitit.AutoExecutor(folder=logs, **where)
    executor.update_parameters(**{"timeout_min": 60 * 24 * 7, **(slurm or {})})
    threads = torch.get_num_threads() if slurm else max(1, (os.cpu_count() or 1) // workers)
    # in Slurm's queue jobs outlive the command that put them there
    watched = 0 if slurm else os.getpid()
    waiting, failed = list(enumerate(arguments)), []
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                number, job = waiting.pop(0)
                running.append(executor.submit(_in_process, threads, watched, number, work, *job))
            done = [job for job in running if job.done()]
            for job in done:
                running.remove(job)
                failed.append(job.paths.stderr if job.exception() else job.result())
                left = len(waiting) + len(running)
                print(f"job {job.job_id} ended, {left} left", flush=True)
            time.sleep(0 if done else 1)
    finally:
        # after an interrupt; nobody else would end them
        for job in running:
            job.cancel()
    return [error for error in failed if error]
