"""All that only a GPU can tell, in ten minutes: tests, benchmarks, the paper's settings, scores.

    python benchmarks/gpu.py --minutes 10 --out runs/gpu
    python benchmarks/gpu.py --tiny --out runs/gpu_trial

Parts, in this order; ``--parts`` chooses, and takes names of the benchmarks' scripts as well, in
whatever order:
    environment: card, driver, versions.
    tests: `pytest -m cuda`; meanwhile a scan of 512 × 512 × 240 is simulated for the other parts.
    benchmarks: the GPU's rows of the scripts beside this one, at practice size, each script with
        its own time limit.
    paper: the bundle's training at the paper's settings, and how long 25 epochs would take.
    cells: the study `btcv_large.yaml`, or ``--study``, on real scans, fold by fold, until the time
        is over. It needs them: ``--data``, a folder with a ``dataset.json``, or what
        `packed_scans.py` makes.

Nothing that fails or takes too long stops the rest. All output is in five files that are written
anew whenever there is a new line of them, so that a cut-off loses no table:
    report.md: every table, and what failed.
    tables.csv: the same tables, one value a line.
    cells.csv, cells.json: rows of the study's finished cells, as docs/results has them.
    log.txt: what the parts printed else, its last 400 kB.

``--tiny`` runs all of it on the CPU with tiny networks, to see that the scripts work; its figures
mean nothing. With ``--minutes`` below ten, parts that come last are given what is left; with
``--short``, scripts have fewer rounds, compile nothing and are given half a minute each.

Scripts run in forks of this process, which has imported what they need, so that they start at
once; where CUDA takes no forks, in processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch
from numpy import nanmean

import stipple_monai.simulation  # noqa: F401, which scripts in forks need not import again
from stipple_monai.errors import StudyError
from stipple_monai.files import read_csv
from stipple_monai.study import write_rows

HERE = Path(__file__).parent
ROOT = HERE.parent
PARTS = ("environment", "tests", "benchmarks", "paper", "cells")
LOG_BYTES = 400_000
# seconds each script may take, and its arguments; at practice size half of it is expected
BENCHMARKS: dict[str, tuple[float, list[str]]] = {
    "inference.py": (30, ["--device", "cuda", "--rounds", "4"]),
    "positioning_speed.py": (25, ["--device", "cuda", "--no-host"]),
    "throughput.py": (110, ["--preload", "--count", "5"]),
    "loading.py": (40, ["--workers", "1", "4", "8", "16", "--seconds", "2"]),
    "fusion.py": (60, ["--device", "cuda", "--rounds", "6"]),
    "placing.py": (20, ["--device", "cuda"]),
}
STUDY = ROOT / "bundles" / "pancreas_stipple" / "studies" / "btcv_large.yaml"
TINY_STUDY: dict[str, Any] = {
    "title": "A trial",
    "phantom": {
        **{"cases": 4, "size": 32, "seed": 0},
        **{"slices": [12, 14], "slice_spacing_mm": [10.0, 10.0]},
    },
    "overlays": ["phantom"],
    "options": {
        **{"channels": [4, 8], "slice_size": [32, 32], "slices_per_scan": 12, "batch_size": 6},
        **{"learning_rate": 0.02, "max_epochs": 1, "num_workers": 0},
    },
    "folds": 2,
    "run_folds": [0],
    "proportions": [0.5],
    "methods": ["baseline", "stipple_single"],
}
SHORT_LIMIT = 30.0
# what `--short` adds to a script's arguments
SHORT = {
    "inference.py": ["--once", "--rounds", "3"],
    "throughput.py": ["--no-compile"],
    "loading.py": ["--workers", "4", "8", "16", "--seconds", "1.5"],
    "fusion.py": ["--rounds", "3"],
}
# those that need no scan
SCANLESS = {"inference.py", "positioning_speed.py", "fusion.py", "placing.py"}
TESTS_LIMIT, PREPARE_LIMIT, PAPER_LIMIT = 100.0, 60.0, 40.0
# whether scripts run in forks, see `find_gpu`
FORKS = True
# all that was started, to be ended with this process
ALL: list[Running] = []
# seconds that are kept for writing and for ending what still runs
RESERVE = 8.0


@dataclass
class Report:
    """The four files.

    Args:
        out: their folder.
        device: ``"cuda"``, or ``"cpu"`` in a trial.
    """

    out: Path
    device: str
    texts: dict[str, str] = field(default_factory=dict)
    log: str = ""

    def put(self, section: str, text: str) -> None:
        """Set the text of a section and write all files."""
        if self.texts.get(section) != text:
            self.texts[section] = text
            self.write()

    def add_log(self, text: str) -> None:
        """Keep what was printed, and print it."""
        sys.stdout.write(text)
        sys.stdout.flush()
        self.log = (self.log + text)[-LOG_BYTES:]

    def write(self) -> None:
        """Write the files, each whole or not at all."""
        parts = "\n\n".join(f"## {name}\n\n{text.strip()}" for name, text in self.texts.items())
        _write(self.out / "report.md", f"# GPU run, {self.device}\n\n{parts}\n")
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["section", "table", "row", "column", "value"])
        for name, text in self.texts.items():
            writer.writerows([name, *line] for line in table_values(text))
        _write(self.out / "tables.csv", table.getvalue())
        _write(self.out / "log.txt", self.log)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def table_values(text: str) -> list[list[str]]:
    """Title, row, column and value of every field of the Markdown tables in a text."""
    values: list[list[str]] = []
    title = ""
    head: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ").strip()
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not head:
            head = cells
        elif not set(line) <= set("|-: "):
            values += [[title, cells[0], *pair] for pair in zip(head[1:], cells[1:], strict=False)]
    return values


def only_tables(text: str) -> str:
    """The lines of a script's output that belong to its tables: titles, tables, notes."""
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("### ")]
    return "\n".join(lines[starts[0] :]) if starts else ""


class Running:
    """Something that runs beside, with a file of what it prints and a limit.

    Args:
        name: for messages.
        start: starts the process with the given file as its output, and gives its number and a
            function that tells its exit code, or ``None`` while it runs.
        limit: seconds.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[IO[bytes]], tuple[int, Callable[[], int | None]]],
        limit: float,
    ) -> None:
        self.name = name
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        self.started = time.monotonic()
        self.deadline = self.started + limit
        self.pid, self._code = start(self.output)
        self.code: int | None = None
        self.timed_out = False
        self._read = 0
        ALL.append(self)

    def poll(self) -> bool:
        """Whether it has ended; it is made to, past its limit."""
        if self.code is None:
            self.code = self._code()
        if self.code is None and time.monotonic() > self.deadline:
            self.timed_out = True
            self.kill()
        return self.code is not None

    def kill(self) -> None:
        """End it and what it started."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, sent)
            for _ in range(20):
                self.code = self._code()
                if self.code is not None and sent == signal.SIGTERM:
                    break
                time.sleep(0.05)
        self.code = -9 if self.code is None else self.code

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    def text(self) -> str:
        """All that it has printed."""
        return os.pread(self.output.fileno(), 1 << 24, 0).decode(errors="replace")

    def new_text(self) -> str:
        """What it has printed since the last time."""
        got = os.pread(self.output.fileno(), 1 << 24, self._read)
        self._read += len(got)
        return got.decode(errors="replace")

    def outcome(self) -> str:
        """One line."""
        if self.timed_out:
            return f"{self.name}: ended at its limit, after {self.seconds:.0f} s."
        if self.code:
            return f"{self.name}: failed ({self.code}) after {self.seconds:.0f} s."
        return f"{self.name}: {self.seconds:.0f} s."


def command(words: Sequence[str], environment: dict[str, str] | None = None) -> Callable[..., Any]:
    """For `Running`: a command of the shell."""

    def start(output: IO[bytes]) -> tuple[int, Callable[[], int | None]]:
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            process_group=0,
        )
        return process.pid, process.poll

    return start


def script(name: str, arguments: Sequence[str], threads: int | None = None) -> Callable[..., Any]:
    """For `Running`: a script beside this one, in a fork of this process if it may be."""
    if not FORKS:
        environment = {"PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1"}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        return command([sys.executable, str(HERE / name), *arguments], environment)

    def start(output: IO[bytes]) -> tuple[int, Callable[[], int | None]]:
        process = multiprocessing.get_context("fork").Process(
            target=_run_script, args=(name, list(arguments), output.fileno(), threads)
        )
        process.start()
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(process.pid, process.pid)
        return process.pid, lambda: process.exitcode

    return start


def _run_script(name: str, arguments: list[str], output: int, threads: int | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = [name, *arguments]
    sys.path.insert(0, str(HERE))
    if threads:
        torch.set_num_threads(threads)
    runpy.run_path(str(HERE / name), run_name="__main__")


def _python_path() -> str:
    """What is imported from here is imported there, too."""
    return os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])


def find_gpu() -> bool:
    """Whether a GPU computes, in a fork or else in a process of its own."""
    global FORKS
    process = multiprocessing.get_context("fork").Process(target=_compute)
    process.start()
    process.join(60)
    FORKS = process.exitcode == 0
    if FORKS:
        return True
    process.kill()
    words = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda').sum().item()"]
    return subprocess.run(words, check=False, timeout=60, capture_output=True).returncode == 0


def _compute() -> None:
    torch.ones(1, device="cuda").sum().item()


def wait(running: Running, report: Report, show: Callable[[Running], None] | None = None) -> None:
    """Until it has ended; tables are in the report as soon as they are printed."""
    ended = False
    while not ended:
        ended = running.poll()
        text = running.new_text()
        if text:
            report.add_log(text)
            if show is not None:
                show(running)
        if not ended:
            time.sleep(0.1)
    report.add_log(f"=== {running.outcome()}\n")
    report.write()


@dataclass
class Run:
    """One run of the parts.

    Args:
        report: where tables go.
        deadline: of `time.monotonic`, when everything must have ended.
        tiny: see the module.
        scratch: folder for what is made on the way.
        data: of the cells; a trial has a simulated set, else they are left out without it.
        parallel: cells at a time.
        short: see the module.
        study: of the cells.
    """

    report: Report
    deadline: float
    tiny: bool
    scratch: Path
    data: Path | None
    parallel: int
    short: bool = False
    study: Path = STUDY

    def left(self, limit: float) -> float:
        """Seconds that something with a limit has; a trial may run on a busy machine."""
        limit = 5 * limit if self.tiny else limit
        return min(limit, self.deadline - RESERVE - time.monotonic())

    def go(self, parts: Sequence[str]) -> None:
        """Run parts one after the other, whatever becomes of each."""
        preparing = None
        on_scan = {"benchmarks", "paper", *BENCHMARKS}
        if on_scan & set(parts):
            options = ["--tiny"] if self.tiny else []
            words = ["--root", str(self.root), *options]
            preparing = Running("scan", script("gpu_scan.py", words, 2), self.left(PREPARE_LIMIT))
        for part in parts:
            if preparing is not None and part in on_scan - SCANLESS:
                wait(preparing, self.report)
                preparing = None
            started = time.monotonic()
            self.report.add_log(f"=== {part}, {self.left(1e9):.0f} s left\n")
            try:
                self.benchmark(part) if part in BENCHMARKS else getattr(self, part)()
            except Exception as error:
                self.report.put(part, f"{self.report.texts.get(part, '')}\n\nFailed: {error!r}")
            self.report.add_log(f"=== {part}: {time.monotonic() - started:.0f} s\n")
        self.report.write()

    @property
    def root(self) -> Path:
        """Folder of the simulated scan and its prior."""
        return self.scratch / "scan"

    def one_script(self, section: str, name: str, arguments: Sequence[str], limit: float) -> None:
        """Run a script and show its tables in a section of the report."""
        seconds = self.left(limit)
        if seconds < 5:
            self.report.put(section, f"{name}: no time was left.")
            return
        running = Running(name, script(name, arguments), seconds)

        def show(running: Running, outcome: str = "") -> None:
            self.report.put(section, f"{only_tables(running.text())}\n\n{outcome}")

        wait(running, self.report, show)
        outcome = running.outcome()
        if running.code:
            tail = "\n".join(running.text().splitlines()[-12:])
            outcome = f"{outcome}\n\n```\n{tail}\n```"
        show(running, outcome)

    def environment(self) -> None:
        """Part 1."""
        arguments = ["--tiny"] if self.tiny else []
        self.one_script("environment", "gpu_environment.py", arguments, 30)

    def tests(self) -> None:
        """Part 2."""
        words = [
            sys.executable,
            *["-m", "pytest", "-m", "cuda", "-q", "-ra", "-p", "no:cacheprovider"],
        ]
        marked = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if _has_cuda(p)]
        if self.tiny:
            marked = [p for p in marked if p.name == "test_fusion.py"]
        words += ["--continue-on-collection-errors", *map(str, marked)]
        if _has_module("pytest_timeout"):
            words += ["--timeout=100"]
        if _has_module("xdist") and not self.tiny:
            words += ["-n", str(min(8, max(2, (os.cpu_count() or 2) // 2)))]
        seconds = self.left(TESTS_LIMIT)
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()}
        running = Running("pytest -m cuda", command(words, environment), seconds)

        def show(running: Running) -> None:
            lines = running.text().splitlines()
            kept = [x for x in lines if x.startswith(("FAILED", "ERROR", "E  ", "SKIPPED"))]
            last = lines[-1:] if lines else []
            self.report.put("tests", "```\n" + "\n".join([*kept[-80:], *last]) + "\n```")

        wait(running, self.report, show)
        self.report.put("tests", f"{self.report.texts.get('tests', '')}\n\n{running.outcome()}")

    def benchmarks(self) -> None:
        """Part 3."""
        for name in BENCHMARKS:
            self.benchmark(name)

    def benchmark(self, name: str) -> None:
        """One script of part 3."""
        limit, arguments = BENCHMARKS[name]
        limit = min(limit, SHORT_LIMIT) if self.short else limit
        words = [*arguments, *(SHORT.get(name, []) if self.short else [])]
        if self.tiny:
            words = [w for w in words if w not in ("--device", "cuda")] + ["--tiny"]
        if name not in SCANLESS:
            words += ["--root", str(self.root)]
        self.one_script(f"benchmarks, {name}", name, words, limit)

    def paper(self) -> None:
        """Part 4."""
        words = ["--root", str(self.root), "--steps", "60" if self.short else "120"]
        words += ["--tiny"] if self.tiny else []
        self.one_script("paper", "paper_settings.py", words, PAPER_LIMIT)

    def cells(self) -> None:
        """Part 5."""
        study = self.study
        data = ["--datalist", str(self.data / "dataset.json")] if self.data else []
        if self.tiny:
            study, data = self.scratch / "tiny.yaml", []
            study.parent.mkdir(parents=True, exist_ok=True)
            study.write_text(json.dumps(TINY_STUDY), encoding="utf-8")
        elif not data:
            raise FileNotFoundError("Cells need real scans: give --data, a folder of them.")
        folder = self.scratch / "cells"
        words = [sys.executable, "-m", "stipple_monai", "study", str(study), *data]
        words += ["--out", str(folder), "--workers", str(self.parallel)]
        environment = {"PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1"}
        running = Running("study", command(words, environment), self.left(1e9))
        while not running.poll():
            self._show_cells(folder, "")
            time.sleep(2)
        logs = [read_end(path) for path in sorted(folder.glob("jobs/*_log.*"))]
        self.report.add_log("\n".join([running.text(), *logs, f"=== {running.outcome()}", ""]))
        self._show_cells(folder, running.outcome())

    def _show_cells(self, folder: Path, outcome: str) -> None:
        path = self.report.out / "cells.csv"
        try:
            write_rows(folder, path)
        except (StudyError, OSError):
            self.report.put("cells", f"No cell is finished.\n\n{outcome}")
            return
        dice: dict[tuple[str, str, str], dict[str, list[float]]] = {}
        for row in read_csv(path):
            cell = dice.setdefault((row["labelled"], row["fold"], row["seed"]), {})
            cell.setdefault(row["method"], []).append(float(row["dice"] or "nan"))
        methods = list(dict.fromkeys(method for cell in dice.values() for method in cell))
        lines = ["### Dice by cell\n", f"| cell | {' | '.join(methods)} |"]
        lines.append(f"|---|{'---:|' * len(methods)}")
        for (labelled, fold, seed), cell in sorted(dice.items()):
            means = [f"{nanmean(cell[m]):.3f}" if m in cell else "" for m in methods]
            lines.append(f"| {labelled} labelled, fold {fold}, seed {seed} | {' | '.join(means)} |")
        self.report.put("cells", "\n".join([*lines, "", outcome]))


def read_end(path: Path) -> str:
    """A title, and the last lines of a file."""
    return f"--- {path.name}\n{path.read_text(encoding='utf-8', errors='replace')[-2000:]}"


def _has_cuda(path: Path) -> bool:
    return "mark.cuda" in path.read_text(encoding="utf-8")


def _has_module(name: str) -> bool:
    return find_spec(name) is not None


def main() -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--parts", default=",".join(PARTS), help="names or numbers, by commas")
    parser.add_argument("--data", type=Path, help="scans of the cells: a folder")
    parser.add_argument("--study", type=Path, default=STUDY, help="of the cells: a YAML file")
    parser.add_argument("--parallel", type=int, default=4, help="cells at a time")
    parser.add_argument("--short", action="store_true", help="fewer rounds, nothing compiled")
    parser.add_argument("--tiny", action="store_true", help="try the scripts on a CPU")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    named = [p.strip() for p in arguments.parts.split(",") if p.strip()]
    parts = [PARTS[int(p) - 1] if p.isdigit() and 0 < int(p) <= len(PARTS) else p for p in named]
    unknown = [p for p in parts if p not in (*PARTS, *BENCHMARKS)]
    if unknown:
        parser.error(
            f"--parts must be among {', '.join((*PARTS, *BENCHMARKS))}, got {', '.join(unknown)}"
        )
    # an end from outside ends what runs, too, by the `finally` below
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments.out.mkdir(parents=True, exist_ok=True)
    # a fork must find CUDA untouched: torch then asks the driver's library, not the driver
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    report = Report(arguments.out.resolve(), "cpu, a trial" if arguments.tiny else "cuda")
    report.add_log(f"Imported, {time.strftime('%H:%M:%S')}\n")
    if not arguments.tiny and not find_gpu():
        print("There is no CUDA device that computes; --tiny tries the scripts on a CPU.")
        return 1
    report.add_log(f"Scripts run in {'forks' if FORKS else 'processes of their own'}.\n")
    scratch = Path(tempfile.mkdtemp(prefix="stipple_gpu_"))
    run = Run(
        report,
        deadline,
        arguments.tiny,
        scratch,
        arguments.data.resolve() if arguments.data else None,
        arguments.parallel,
        arguments.short,
        arguments.study.resolve(),
    )
    try:
        run.go(parts if set(parts) & set(BENCHMARKS) else [p for p in PARTS if p in parts])
    finally:
        for running in ALL:
            if not running.poll():
                running.kill()
        shutil.rmtree(scratch, ignore_errors=True)
    report.add_log(f"Done in {60 * arguments.minutes - (deadline - time.monotonic()):.0f} s.\n")
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
