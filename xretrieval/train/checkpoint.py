"""Orbax checkpoints behind one file: `checkpoints/<step>/`, each committed by a manifest of content hashes.

Orbax catches flipped bytes in its data files but not in all of its metadata, so every file is hashed before Orbax opens a step.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

import jax
from orbax.checkpoint import v1 as ocp

from xretrieval import stderr
from xretrieval.errors import UserError, read_json, write_json
from xretrieval.train.state import TrainState

MANIFEST = "xretrieval_manifest.json"


def _root(workdir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(os.path.abspath(workdir)) / "checkpoints"


def _hashes(step_dir: pathlib.Path) -> dict[str, str]:
    files = sorted(p for p in step_dir.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(step_dir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def steps(workdir: str | os.PathLike) -> list[int]:
    """Committed steps, in order. A folder without a manifest is a save that was interrupted; it does not count."""
    root = _root(workdir)
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and (p / MANIFEST).exists()) if root.exists() else []


def save(workdir: str | os.PathLike, step: int, state: TrainState, keep: int = 2) -> None:
    """Saves a state as of `step` finished steps, commits it, and drops all but the newest `keep`."""
    step_dir = _root(workdir) / str(step)
    if (step_dir / MANIFEST).exists():
        return
    step_dir.parent.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0 and step_dir.exists():
        shutil.rmtree(step_dir)
    try:
        with _threads_silent():
            ocp.save(step_dir, state._asdict())
    except (ValueError, OSError) as error:  # so Orbax says that a file cannot be written, by which of its files it is
        reason = str(error).splitlines()[0]
        raise UserError(f"{step_dir}: cannot be saved ({reason}); free space, then run again: earlier checkpoints are kept") from error
    if jax.process_index() == 0:
        write_json(step_dir / MANIFEST, {"step": step, "sha256": _hashes(step_dir)})
        for old in steps(workdir)[:-keep]:
            shutil.rmtree(_root(workdir) / str(old))


@contextlib.contextmanager
def _threads_silent() -> Iterator[None]:
    """Nothing on stderr: Orbax' threads, some of them in C++, print a traceback each of what a failed save raises here, and go on after it."""
    with stderr.redirected():
        try:
            yield
        except BaseException:
            time.sleep(0.5)
            raise


def restore(workdir: str | os.PathLike, step: int, abstract: TrainState) -> TrainState:
    """Restores a committed step into the shardings of `abstract`, on any number of devices.

    Raises:
      UserError: a file of the checkpoint is missing or changed, or the tower has another shape than the checkpoint's.
    """
    step_dir = _root(workdir) / str(step)
    expected = read_json(step_dir / MANIFEST)["sha256"]
    found = {name: digest for name, digest in _hashes(step_dir).items() if name != f"{MANIFEST}.tmp"}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(f"{step_dir / name}: not the file that was saved; delete {step_dir} to resume from the step before")
    try:
        restored = ocp.load(step_dir, abstract._asdict())
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{step_dir}: the checkpoint is of another model ({reason}); use its config.gin or another workdir") from error
    return TrainState(**restored)
