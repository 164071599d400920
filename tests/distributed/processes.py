"""Several processes of `worker.py` on loopback: started, waited for with a time limit, and none left behind."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from small_run import ROOT

from launch.local import environment, free_port

# What is compiled is kept for the processes of a session that come after.
CACHE = tempfile.TemporaryDirectory(prefix="xretrieval_compiled_")
WORKER = pathlib.Path(__file__).parent / "worker.py"


class Ended(NamedTuple):
    """How a process ended: its exit code (None where it was stopped, and killed by the test), what it printed, seconds since its start."""

    code: int | None
    out: str
    err: str
    seconds: float


@contextlib.contextmanager
def started(count, task, folder, *settings, devices=1, variables=lambda process: {}):
    """Processes that work on a task; `variables` are those of the environment that one of them has beside the others'."""
    port, running = free_port(), []
    folder = pathlib.Path(folder)
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(str(ROOT / part) for part in (".", "tests", "tests/train"))
    try:
        for i in range(count):
            place = environment(i, count, port) if count > 1 else os.environ
            own = {
                "PYTHONPATH": path,
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_COMPILATION_CACHE_DIR": CACHE.name,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                **variables(i),
            }
            with open(logs / f"{i}.out", "w") as out, open(logs / f"{i}.err", "w") as err:
                command = [sys.executable, str(WORKER), task, str(folder), *settings]
                running.append(subprocess.Popen(command, cwd=ROOT, env={**place, **own}, stdout=out, stderr=err))
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def ended(running, folder, timeout=300):
    """Waits for all but those that are stopped by a signal."""
    begun, found = time.monotonic(), {}
    while len(found) < len(running):
        assert time.monotonic() - begun < timeout, "a process hangs"
        for i, process in enumerate(running):
            if i not in found and (process.poll() is not None or _stopped(process.pid)):
                found[i] = (process.returncode, time.monotonic() - begun)
        time.sleep(0.05)
    logs = pathlib.Path(folder) / "logs"
    return [Ended(found[i][0], (logs / f"{i}.out").read_text(), (logs / f"{i}.err").read_text(), found[i][1]) for i in range(len(running))]


def _stopped(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in "Tt"


def run(count, task, folder, *settings, timeout=300, **how):
    """Processes from start to end."""
    with started(count, task, folder, *settings, **how) as running:
        return ended(running, folder, timeout)


def codes(found):
    return [one.code for one in found]


def killed(code):
    return code == -signal.SIGKILL
