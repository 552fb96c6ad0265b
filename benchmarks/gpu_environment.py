"""What a GPU run ran on: card, driver, versions, processor, and two simple speeds of the card."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from importlib import metadata

import torch
from timing import print_markdown, print_notes

PACKAGES = ("torch", "triton", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel")
QUERY = "name,driver_version,memory.total,clocks.max.sm,power.limit"


def versions() -> list[list[str]]:
    """Rows of installed packages."""
    rows = []
    for name in PACKAGES:
        try:
            rows.append([name, metadata.version(name)])
        except metadata.PackageNotFoundError:
            rows.append([name, "–"])
    return rows


def card() -> list[list[str]]:
    """Rows about the card and what it does at most."""
    if not torch.cuda.is_available():
        return [["GPU", "none"]]
    properties = torch.cuda.get_device_properties(0)
    rows = [
        ["GPU", properties.name],
        ["memory", f"{properties.total_memory / 2**30:.1f} GiB"],
        ["multiprocessors", str(properties.multi_processor_count)],
        ["CUDA of torch", str(torch.version.cuda)],
        ["cuDNN", str(torch.backends.cudnn.version())],
    ]
    try:
        asked = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
        rows.append([f"nvidia-smi ({QUERY})", found.stdout.strip().replace("|", "/")])
    except (OSError, subprocess.TimeoutExpired) as error:
        rows.append(["nvidia-smi", repr(error)])
    return rows


def speed(run: object, count: int = 10) -> float:
    """Seconds of one call on the GPU."""
    assert callable(run)
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def speeds() -> list[list[str]]:
    """Rows of a matrix product and of a copy."""
    if not torch.cuda.is_available():
        return []
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = speed(lambda: a @ b)
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = speed(lambda: target.copy_(source))
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    upload = speed(lambda: target[: 2**28].copy_(host, non_blocking=True))
    return [
        [f"product of {n} × {n} in bfloat16", f"{2 * n**3 / product / 1e12:.0f} TFLOP/s"],
        ["copy on the card, read and written", f"{2 * 2**30 / copy / 1e12:.2f} TB/s"],
        ["copy to the card, pinned", f"{2**28 / upload / 1e9:.1f} GB/s"],
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="no speeds")
    arguments = parser.parse_args()
    print("\n### Environment\n")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    rows = [
        *card(),
        ["cores", str(os.cpu_count())],
        ["main memory", f"{memory:.0f} GiB"],
        ["system", platform.platform()],
        ["Python", platform.python_version()],
        *versions(),
    ]
    print_markdown(["", "found"], [*rows, *([] if arguments.tiny else speeds())])
    print_notes([])


if __name__ == "__main__":
    main()
