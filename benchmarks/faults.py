"""What goes wrong while training, made to go wrong: how often it was injected, and how often the run did what it should.

`make bench NAME=faults`. A sweep is a function that gives rows; each is in a file `faults_*.py`.
"""

import pathlib
import tempfile
from collections.abc import Callable

from benchmarks import faults_flips, faults_kill, faults_nan, rows

KILLS, PLACES = 100, 20


def count(name: str, good: int, of: int, what: str) -> dict:
    """A row that holds where all are good."""
    print(f"{name}: {good} of {of} {what}", flush=True)
    return rows.row(name, good, of, what, 1.0, more_is_better=True)


def kill(folder: pathlib.Path) -> list[dict]:
    """SIGKILL around saves."""
    found = faults_kill.sweep(folder, KILLS)
    print(f"SIGKILL: {found.in_a_save} of {found.kills} while a save was under way", flush=True)
    return [
        count("SIGKILL from the beginning of a save on", found.resumed, found.kills, "resumed from a committed step"),
        count("the end of a run that was killed again and again", found.bitwise, found.ends, "bitwise the run that was not"),
    ]


def flips(folder: pathlib.Path) -> list[dict]:
    """Flipped bits."""
    found = faults_flips.sweep(folder, PLACES)
    return [
        count(f"a bit flipped in one of {found.files} files of a checkpoint", found.found, found.flips, "found, and the step before taken")
    ]


def nan(folder: pathlib.Path) -> list[dict]:
    """Numbers that are not finite."""
    found = faults_nan.sweep(folder)
    return [
        count("NaN or infinity in parameters, gradients, data", found.stopped, found.injected, "stopped with a line"),
        rows.row("checkpoints that hold one", found.checkpoints_not_finite, 1, "one would be too many", 0.0),
    ]


SWEEPS: dict[str, Callable[[pathlib.Path], list[dict]]] = {"kill": kill, "flips": flips, "nan": nan}


def run() -> list[dict]:
    found = []
    for name, sweep in SWEEPS.items():
        with tempfile.TemporaryDirectory(prefix=f"faults_{name}_") as folder:
            found += sweep(pathlib.Path(folder))
    return found


if __name__ == "__main__":
    rows.main(run)
