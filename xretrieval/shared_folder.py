"""Whether a folder is one that all processes of a run share, and does what checkpoints need of it; and that no other run has it."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator

from xretrieval import distributed
from xretrieval.errors import UserError

_WITHIN = 5.0  # seconds until others see what was written or removed: a network file system may answer from what it knew 3 s ago


def check(workdir: str | os.PathLike) -> str:
    """Every process writes a file there, and process 0 renames a folder with a folder in it, as a checkpoint is committed.

    Process 0 must see what each has written, and each what process 0 has; and that it is gone, once it is removed. Each process calls it, and comes
    to its end whatever goes wrong, or the others would wait for it.

    Returns:
      What was found.

    Raises:
      UserError: it cannot be written or renamed in; not all is seen here; or what was removed still is.
    """
    root, me = pathlib.Path(workdir), distributed.me()
    token = distributed.gather("token", os.urandom(8).hex())[0]
    mine, before, after = (root / f".doctor-{token}{end}" for end in (f"-{me}", ".saving", ".saved"))
    unwritten = _refused(lambda: _write(mine, token))
    unrenamed = _refused(lambda: _rename(before, after, token)) if me == 0 and not unwritten else ""
    said = [json.loads(text) for text in distributed.gather("refused", json.dumps([unwritten, unrenamed]))]
    # Not everybody's for each: of thousands of processes that would be millions of files.
    looked_at = range(len(said)) if me == 0 else [0]
    wanted = {distributed.name_of(i): root / f".doctor-{token}-{i}" for i in looked_at if not said[i][0]}
    if not any(said[0]):
        wanted[f"{distributed.name_of(0)}, in a folder that it renamed,"] = after / "part" / "file"
    unseen = _until_none(lambda: [name for name, path in wanted.items() if _read(path) != token])
    distributed.barrier("looked")
    _refused(mine.unlink)
    if me == 0:
        for folder in (before, after):
            shutil.rmtree(folder, ignore_errors=True)
    distributed.barrier("removed")
    left = _until_none(lambda: [name for name, path in wanted.items() if _read(path) is not None])
    if unwritten:
        raise UserError(f"{workdir}: cannot be written ({unwritten}); give another workdir")
    if unrenamed:
        raise UserError(
            f"{workdir}: a folder with a folder in it cannot be renamed ({unrenamed}), which is how a checkpoint is committed; of Cloud Storage take a "
            f"bucket with hierarchical namespace, else a file system that renames folders"
        )
    if unseen:
        raise UserError(f"{workdir}: what {_list(unseen)} wrote is not seen here; give a folder that all hosts share")
    if left:
        raise UserError(
            f"{workdir}: what {_list(left)} removed is still seen here after {_WITHIN:g} s; mount it without a cache (gcsfuse: "
            f"--metadata-cache-ttl-secs=0, NFS: actimeo=1)"
        )
    return f"{workdir}: what is written and removed is seen; folders can be renamed"


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _rename(before: pathlib.Path, after: pathlib.Path, text: str) -> None:
    _write(before / "part" / "file", text)
    before.rename(after)


def _read(path: pathlib.Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None


def _refused(action: Callable[[], None]) -> str:
    """Why the system refuses to do this, or nothing."""
    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _until_none(names: Callable[[], list[str]]) -> list[str]:
    """What is named until nothing is, or the time is over."""
    deadline = time.monotonic() + _WITHIN
    while (found := names()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _list(names: list[str]) -> str:
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")


@contextlib.contextmanager
def taken(workdir: str | os.PathLike) -> Iterator[None]:
    """The workdir as one run's alone: process 0 holds a lock in it, which the system lets go of when it ends, however it does.

    Raises:
      UserError: another run has it, or it cannot be written.
    """
    if not distributed.first():
        yield
        return
    try:
        os.makedirs(workdir, exist_ok=True)
        file = open(pathlib.Path(workdir) / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror}); give another workdir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{workdir}: another run trains into it; wait for its end, or give another workdir") from error
        except OSError:  # a file system that has no locks
            pass
        yield
