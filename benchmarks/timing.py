"""Interleaved timing: how long one way of doing something takes as a share of another.

Words used here:
    candidate: a named callable without arguments; one that takes less than some milliseconds
        should repeat its work itself.
    round: every candidate once. Rounds run forwards and backwards in turn, so that what a machine
        does beside (other work, a clock that falls with heat) meets all candidates alike.
    ratio: a candidate's time over the baseline's *of the same round*; the table gives the median
        over the rounds and, in brackets, the least and greatest.

Ratios travel between machines, seconds do not: read the ratios.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import datetime
import functools
import gc
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")

PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel", "scikit-image")

Clock = Literal["wall", "cpu", "children"]


def _children_time() -> float:
    used = os.times()
    return used.children_user + used.children_system


_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time, "children": _children_time}


@dataclass(frozen=True)
class Row:
    """One candidate's times.

    Attributes:
        name: of the candidate.
        seconds: median over the rounds.
        ratio: median over the rounds of its seconds over the baseline's.
        low: least ratio of a round.
        high: greatest ratio of a round.
        rounds: how many there were.
        clock: which, see `compare`.
    """

    name: str
    seconds: float
    ratio: float
    low: float
    high: float
    rounds: int
    clock: Clock = "wall"


def compare(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    baseline: str,
    clock: Clock = "wall",
    warm_up: bool = True,
) -> list[Row]:
    """Time candidates side by side.

    Args:
        candidates: by name; what they return is dropped. Work queued on a GPU is waited for.
        rounds: how many times each is timed.
        baseline: the candidate that the ratios refer to.
        clock: ``"wall"``; ``"cpu"``, the processor time of this process, which other work on the
            machine changes less; or ``"children"``, the same of the processes that it started
            and waited for. Neither of the two sees a GPU.
        warm_up: run each once before; not where they have run already and take minutes.

    Returns:
        A row for each candidate, in their order.

    Raises:
        ValueError: ``baseline`` is no candidate, or ``rounds`` is below 1.
    """
    if baseline not in candidates:
        raise ValueError(f"`baseline` must be one of {list(candidates)}, got {baseline!r}.")
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1, got {rounds}.")
    if warm_up:
        for run in candidates.values():
            run()
    order = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            seconds[name].append(time_once(candidates[name], clock=clock))
        order.reverse()
    return [row_from(name, seconds[name], seconds[baseline], clock=clock) for name in candidates]


def time_once(run: Callable[[], Any], *, clock: Clock = "wall") -> float:
    """Seconds of one call, the garbage of earlier ones collected before."""
    now = _CLOCKS[clock]
    _collect()
    _wait_for_gpu()
    start = now()
    run()
    _wait_for_gpu()
    return now() - start


def row_from(
    name: str, seconds: Sequence[float], baseline: Sequence[float], *, clock: Clock = "wall"
) -> Row:
    """A row from the seconds of each round, of the candidate and of the baseline."""
    ratios = [a / b for a, b in zip(seconds, baseline, strict=True)]
    return Row(
        name=name,
        seconds=statistics.median(seconds),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        rounds=len(ratios),
        clock=clock,
    )


def peak_memory(run: Callable[[], Any]) -> float:
    """MiB by which the resident memory of this process grows at most while ``run`` runs.

    The kernel's own high-water mark, set back before the call (``/proc/self/clear_refs``, Linux
    only): nothing is sampled and no peak is missed. Memory that the process kept from earlier work
    hides growth, so garbage is collected and free heap is given back first; call ``run`` once
    before where its first call loads libraries. Child processes and a GPU are not counted.

    Returns:
        MiB; NaN where the kernel does not tell.
    """
    try:
        _give_back_free_memory()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status_kib("VmRSS")
    except OSError:
        return math.nan
    run()
    return max(0.0, _status_kib("VmHWM") - before) / 1024


def resident_memory(build: Callable[[], T]) -> tuple[T, float]:
    """What ``build`` returns, and the MiB by which the process is larger while that is kept.

    Returns:
        The object and MiB; NaN where the kernel does not tell.
    """
    try:
        _give_back_free_memory()
        before = _status_kib("VmRSS")
    except OSError:
        return build(), math.nan
    built = build()
    _give_back_free_memory()
    return built, (_status_kib("VmRSS") - before) / 1024


def peak_gpu_memory(run: Callable[[], Any]) -> float:
    """MiB by which the tensors on the GPU grow at most while ``run`` runs; NaN without a GPU."""
    if not torch.cuda.is_available():
        return math.nan
    _collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def machine() -> str:
    """The machine, the versions, the date and what else the machine did, in one line."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    devices = [_processor()]
    if torch.cuda.is_available():
        devices.append(torch.cuda.get_device_name())
    load = f"load: {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return ", ".join(
        [
            *devices,
            f"threads: {torch.get_num_threads()}",
            load,
            f"Python {platform.python_version()}",
            *versions,
            datetime.date.today().isoformat(),
        ]
    )


def print_table(
    title: str,
    rows: Sequence[Row],
    *,
    notes: str | Sequence[str] = (),
    columns: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Print rows as a Markdown table, with the machine and the notes below.

    Args:
        title: what was timed, with sizes.
        rows: from `compare`.
        notes: sentences, such as which figures are extrapolated.
        columns: more columns, by heading: values by the row's name. Numbers are rounded.
    """
    columns = columns or {}
    clock = "" if not rows or rows[0].clock == "wall" else " (CPU time)"
    print(f"\n### {title}\n")
    print_markdown(
        ["", f"time{clock}", "ratio", *columns],
        [
            [
                row.name,
                readable_time(row.seconds),
                f"{row.ratio:.3f}"
                + (f" ({row.low:.3f} … {row.high:.3f})" if row.rounds > 1 else ""),
                *(_readable(values.get(row.name)) for values in columns.values()),
            ]
            for row in rows
        ],
    )
    count = rows[0].rounds if rows else 0
    rounds = f"Median of {count} interleaved rounds (least … greatest)." if count > 1 else ""
    print_notes([rounds, *([notes] if isinstance(notes, str) else notes)])


def print_markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table, numbers to the right."""
    print(f"| {' | '.join(head)} |")
    print(f"|---|{'---:|' * (len(head) - 1)}")
    for line in body:
        print(f"| {' | '.join(line)} |")


def print_notes(notes: Sequence[str]) -> None:
    """Print notes and the machine below a table."""
    print("\n" + " ".join(note for note in [*notes, machine() + "."] if note) + "\n", flush=True)


def readable_time(seconds: float) -> str:
    """Seconds in the unit that gives a number of at least 1."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{_readable(seconds / scale)} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _readable(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@functools.cache
def _freeze() -> None:
    """What was imported is looked at no more: most of a small measurement went to that."""
    gc.collect()
    gc.freeze()


def _collect() -> None:
    _freeze()
    gc.collect()


def _give_back_free_memory() -> None:
    _collect()
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _status_kib(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"model name\s*: (.+)", text)
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores)"
