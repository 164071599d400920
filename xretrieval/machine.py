"""What a figure was measured on."""

import os
import pathlib
import platform


def describe() -> str:
    """Cores, processor and Python, e.g. "2 cores, AMD EPYC 7B12 (family 23, model 49), Python 3.11.7".

    A virtual machine often calls its processor "AMD EPYC" and no more: family and model tell generations apart that differ by half in speed.
    """
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    return f"{len(os.sched_getaffinity(0))} cores, {_processor(text)}, Python {platform.python_version()}"


def _processor(cpuinfo: str) -> str:
    """The first one of /proc/cpuinfo; where that names none, the architecture."""
    fields = (line.partition(":") for line in cpuinfo.split("\n\n")[0].splitlines())
    found = {name.strip(): value.strip() for name, _, value in fields}
    name = found.get("model name", platform.machine())
    return f"{name} (family {found['cpu family']}, model {found['model']})" if {"cpu family", "model"} <= found.keys() else name
