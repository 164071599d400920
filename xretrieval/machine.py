"""What a figure was measured on."""

import os
import pathlib
import platform


def describe() -> str:
    """Cores, processor and Python, e.g. "2 cores, AMD EPYC 7B12, Python 3.11.7"."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores, {model}, Python {platform.python_version()}"
