"""Checkpoints by Orbax behind one file: `checkpoints/<step>/`, written in the background, each committed by a manifest (`manifest.py`).

A save is named `<step>.saving` until all processes have written, every file is hashed and the manifest stands; then it takes its name. What
is deleted is `<step>.deleting` first, and a step that is found damaged and saved anew is kept as `<step>.damaged`.
"""

import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from xretrieval import distributed, stderr
from xretrieval.errors import UserError
from xretrieval.train import manifest as manifest_lib
from xretrieval.train import state as state_lib
from xretrieval.train.manifest import Damaged, Manifest
from xretrieval.train.state import TrainState

# Orbax' threads log a traceback each of what a failed save raises here.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
# And what the writes say, each with a traceback, that Orbax no longer waits for once one has failed.
stderr.pass_over("Event loop is closed")


def _root(workdir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(os.path.abspath(workdir)) / "checkpoints"


def _names(root: pathlib.Path) -> list[int]:
    """Steps whose folders are there, in order, whole or not."""
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit()) if root.exists() else []


def steps(workdir: str | os.PathLike) -> list[int]:
    """Committed steps, in order."""
    root = _root(workdir)
    return [step for step in _names(root) if (root / str(step) / manifest_lib.NAME).exists()]


def begun(workdir: str | os.PathLike) -> bool:
    """Whether there is a step, whole or not."""
    return bool(_names(_root(workdir)))


def restore(workdir: str | os.PathLike, step: int, abstract: TrainState) -> TrainState:
    """Restores a committed step into the shardings of `abstract`, on any number of devices, by one process.

    Raises:
      UserError: a file of the checkpoint is missing or changed, or the tower has another shape than the checkpoint's.
    """
    folder = _root(workdir) / str(step)
    try:
        manifest_lib.check(folder, manifest_lib.read(folder))
    except Damaged as error:
        others = [other for other in steps(workdir) if other != step]
        raise UserError(f"{error}; set export.step to another ({', '.join(map(str, others)) or 'there is none'})") from error
    return _load(folder, abstract)


def _load(folder: pathlib.Path, abstract: TrainState) -> TrainState:
    try:
        return TrainState(**ocp.load(folder, abstract._asdict()))
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: the checkpoint is of another model ({reason}); use its config.gin or another workdir") from error


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a save took: bytes on disk, seconds until it was committed, and those of them in which training stood still."""

    step: int
    bytes: int
    seconds: float
    blocked: float


class Checkpoints:
    """The checkpoints of a run: restores the newest that is whole, and saves in the background, one at a time.

    Args:
      workdir: of the run.
      identity: of the run; a step with another one belongs to another run.
      keep: how many steps stay. Older ones are deleted once a newer one is committed, and only what a manifest names.

    Attributes:
      saved: of the saves since it was last emptied.
    """

    def __init__(self, workdir: str | os.PathLike, identity: str = "", keep: int = 2):
        self.root, self.identity, self.keep = _root(workdir), identity, keep
        self.saved: list[Saved] = []
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._damaged: set[int] = set()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Waits for the save under way: of a state that was good, whatever went wrong since."""
        try:
            self.wait()
        except UserError as failed:
            if error is None:
                raise
            print(failed, file=sys.stderr)

    def restore_newest(self, abstract: TrainState) -> tuple[TrainState, Manifest] | None:
        """The newest step that is whole, into the shardings of `abstract`; None where none was ever committed.

        A step that is not whole is said, and the one before it taken.

        Raises:
          UserError: there are steps and none is whole, or they are of another model.
        """
        first = jax.process_index() == 0
        if first:
            self._tidy()
        found = _together("steps", lambda: _names(self.root))[0]
        for step in reversed(found):
            manifest, problem = self._check(step)
            if manifest is not None:
                return _load(self.root / str(step), abstract), manifest
            self._damaged.add(step)
            rest = [other for other in found if other < step]
            if first:
                print(f"{problem}: step {step} is not taken" + (f", step {rest[-1]} is tried" if rest else ""), file=sys.stderr)
        if found:
            raise UserError(
                f"{self.root}: none of its steps ({', '.join(map(str, found))}) is whole; bring back a copy, or start again in another workdir"
            )
        return None

    def _check(self, step: int) -> tuple[Manifest | None, str]:
        """The manifest of a step that is whole, or None and what is wrong with it; every process looks at its part, and all come to one answer."""
        folder, manifest, problem = self.root / str(step), None, ""
        try:
            manifest = manifest_lib.read(folder)
            if (manifest.step, manifest.identity) != (step, self.identity):
                raise Damaged(f"{folder / manifest_lib.NAME} is of step {manifest.step} of another run")
            manifest_lib.check(folder, manifest, jax.process_index(), jax.process_count())
        except Damaged as error:
            problem = str(error)
        problem = next(filter(None, distributed.gather("damage", problem)), "")
        return (None, problem) if problem else (manifest, "")

    def _tidy(self) -> None:
        """Removes what was under way when a run was killed. The names are ours alone."""
        for path in self.root.iterdir() if self.root.exists() else ():
            if re.fullmatch(r"\d+\.saving(\.orbax-checkpoint-tmp.*)?", path.name):
                shutil.rmtree(path)
            elif re.fullmatch(r"\d+\.deleting", path.name):
                manifest_lib.remove(path)

    def save(self, step: int, state: TrainState, skipped: int = 0, unmeasured: bool = False) -> None:
        """Saves a state as of `step` finished steps; returns when it is copied to the host. The rest is for the manifest.

        Training may then go on and give the state's buffers away. A save that is still under way is waited for.

        Raises:
          UserError: the save before this one failed, or this one cannot begin.
        """
        asked = time.monotonic()
        self.wait()
        begun = time.monotonic()
        folder = self.root / f"{step}.saving"
        finite = state_lib.finite(state)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            response = ocp.save_async(folder, state._asdict())
        except (ValueError, OSError) as error:
            raise _failed(folder, error) from error
        blocked = time.monotonic() - asked
        abstract = jax.eval_shape(lambda: state)

        def finish() -> None:
            try:
                response.result()
                state_lib.check_finite(abstract, finite)
                manifest = self._commit(folder, step, skipped, unmeasured)
                self.saved.append(Saved(step, manifest.bytes, time.monotonic() - begun, blocked))
            except BaseException as error:
                self._error = _failed(self.root / str(step), error)

        self._thread = threading.Thread(target=finish, name=f"save of step {step}", daemon=True)
        self._thread.start()

    def _commit(self, folder: pathlib.Path, step: int, skipped: int, unmeasured: bool) -> Manifest:
        """Commits what Orbax has written, and deletes old steps. Every process hashes a part of the files."""
        first = jax.process_index() == 0
        names = _together("files", lambda: manifest_lib.files_of(folder) if first else [])[0]
        mine = names[jax.process_index() :: jax.process_count()]
        parts = _together("hashes", lambda: manifest_lib.hashes(folder, mine, to_disk=True))
        files = {name: (size, digest) for part in parts for name, (size, digest) in part.items()}
        manifest = Manifest(step, self.identity, skipped, unmeasured, files)
        _together("commit", lambda: self._take_name(folder, manifest) if first else None)
        return manifest

    def _take_name(self, folder: pathlib.Path, manifest: Manifest) -> None:
        """The folder of a save becomes that of its step."""
        manifest_lib.write(folder, manifest)
        final = self.root / str(manifest.step)
        if final.exists():
            final.rename(next(path for path in _asides(final) if not path.exists()))
        folder.rename(final)
        manifest_lib.sync_folder(self.root)
        self._damaged.discard(manifest.step)
        self._prune(manifest.step)

    def _prune(self, newest: int) -> None:
        """Deletes all but `keep` steps up to the newest, which has just been committed. A folder that is not this run's own is not touched."""
        for step in [step for step in _names(self.root) if step <= newest and self._own(step)][: -self.keep]:
            aside = self.root / f"{step}.deleting"
            (self.root / str(step)).rename(aside)
            manifest_lib.remove(aside)

    def _own(self, step: int) -> bool:
        """Whether it counts as a checkpoint of this run."""
        try:
            return step not in self._damaged and manifest_lib.read(self.root / str(step)).identity == self.identity
        except Damaged:
            return False

    def measured(self, step: int) -> None:
        """Notes that the validation of a committed step has been done."""
        if jax.process_index() == 0:
            folder = self.root / str(step)
            manifest_lib.write(folder, dataclasses.replace(manifest_lib.read(folder), unmeasured=False))

    def check(self) -> None:
        """UserError where the save in the background has failed."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
          UserError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()


def _together(name: str, work: Callable[[], Any]) -> list[Any]:
    """What `work` gives on every process, as JSON has it, in their order; what the system refuses one of them is raised on all."""
    try:
        done = {"given": work()}
    except OSError as error:
        done = {"error": str(error)}
    answers = [json.loads(answer) for answer in distributed.gather(name, json.dumps(done))]
    for answer in answers:
        if "error" in answer:
            raise OSError(answer["error"])
    return [answer["given"] for answer in answers]


def _asides(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Names for a damaged step that is saved anew."""
    yield path.with_name(f"{path.name}.damaged")
    number = 2
    while True:
        yield path.with_name(f"{path.name}.damaged.{number}")
        number += 1


def _failed(folder: pathlib.Path, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, UserError):
        return UserError(f"{folder}: not saved, for {reason}; earlier checkpoints are kept")
    return UserError(f"{folder}: cannot be saved ({reason}); free space, then run again: earlier checkpoints are kept")
