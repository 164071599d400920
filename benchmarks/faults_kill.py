"""SIGKILL around the saves of a tiny run, again and again, until it has finished: what it ends with is bitwise what it would have been."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
STEPS, EVERY = 60, 2
LATEST = 0.3  # seconds after the first sign of a save; one takes about 0.1


@dataclasses.dataclass
class Found:
    """How often the run was killed, how often while it saved, how often it then went on, and in how many of its ends it was what it should be."""

    kills: int = 0
    in_a_save: int = 0
    resumed: int = 0
    ends: int = 0
    bitwise: int = 0


def start(folder: pathlib.Path, cache: pathlib.Path) -> subprocess.Popen:
    """One life of the run. What it compiles is kept, so that it starts in some seconds."""
    keep = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache), **keep}
    command = [sys.executable, "-m", "benchmarks.tiny_run", str(folder), f"num_steps={STEPS}", f"checkpoint_every={EVERY}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen) -> str:
    """The digest of the last checkpoint of a life that is left alone."""
    out, error = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}: {error}")
    return out.splitlines()[-1]


def losses(folder: pathlib.Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every step in the metrics."""
    lines = map(json.loads, (folder / "train/metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines if "loss" in line]


def saves_under_way(folder: pathlib.Path) -> list[str]:
    """Folders of saves that have begun and are not committed."""
    checkpoints = folder / "train/checkpoints"
    return [name for name in os.listdir(checkpoints) if "saving" in name] if checkpoints.exists() else []


def sweep(folder: pathlib.Path, kills: int, seed: int = 0) -> Found:
    """Kills the run `kills` times, each at a random moment from the beginning of a save on.

    Raises:
      RuntimeError: a life ended with an error.
    """
    chance, found, cache = random.Random(seed), Found(), folder / "cache"
    whole = end(start(folder / "whole", cache)), losses(folder / "whole")

    def check() -> None:
        found.ends += 1
        found.bitwise += (digest, losses(folder / "killed")) == whole
        shutil.rmtree(folder / "killed/train")

    while found.kills < kills:
        again = found.kills > found.resumed
        process = start(folder / "killed", cache)
        before = set(saves_under_way(folder / "killed"))  # of the life before; this one removes them
        while process.poll() is None and not set(saves_under_way(folder / "killed")) - before:
            before &= set(saves_under_way(folder / "killed"))
            time.sleep(0.001)
        time.sleep(chance.uniform(0, LATEST))
        if process.poll() is not None:
            digest = end(process)
            check()
        found.resumed += again  # it came to a new save, or to its end
        if process.returncode is not None:
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        found.kills += 1
        found.in_a_save += bool(saves_under_way(folder / "killed"))
    digest = end(start(folder / "killed", cache))
    check()
    found.resumed += 1
    return found
