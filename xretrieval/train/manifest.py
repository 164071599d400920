"""The manifest of a checkpoint: every file's size and hash, so that damage is found before anything is read from it.

Orbax catches flipped bytes in its data files but not in all of its metadata. The manifest is written last, whole or not at all: a folder
without one was never committed.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

NAME = "xretrieval_manifest.json"
_FORMAT = 1
_THREADS = 4  # a hash does not hold the interpreter, and one thread of it is slower than a disk


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint holds.

    Attributes:
      step: finished steps.
      identity: of the run that it belongs to (`identity.fingerprint`).
      skipped: steps up to it whose update was not finite, and left out.
      unmeasured: whether its validation was due and is still to come: the run was asked to stop.
      files: path in the folder -> (bytes, sha256).
    """

    step: int
    identity: str
    skipped: int
    unmeasured: bool
    files: dict[str, tuple[int, str]]

    def encode(self) -> bytes:
        """The one text of this content; it holds its own hash, so that a byte that changed in it is found as well."""
        content = {"format": _FORMAT, **dataclasses.asdict(self)}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return (json.dumps({**content, "manifest": digest}, sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def decode(cls, text: bytes) -> "Manifest":
        """What `encode` gave; ValueError for anything else."""
        try:
            content = json.loads(text)
            files = {name: (int(size), str(digest)) for name, (size, digest) in content["files"].items()}
            found = cls(content["step"], content["identity"], content["skipped"], content["unmeasured"], files)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("no manifest") from error
        if found.encode() != text:
            raise ValueError("a manifest that has changed")
        return found

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(size for size, _ in self.files.values())


class Damaged(Exception):
    """A checkpoint that is not as it was saved; the message names the file."""


def read(folder: pathlib.Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
      Damaged: it is not there, or not as it was written.
    """
    path = folder / NAME
    try:
        return Manifest.decode(path.read_bytes())
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} is damaged") from error


def write(folder: pathlib.Path, manifest: Manifest) -> None:
    """Commits a checkpoint: after this, and after a crash of the machine as well, it is there with all its files."""
    temporary = folder / f"{NAME}.tmp"
    with open(temporary, "wb") as file:
        file.write(manifest.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / NAME)
    sync_folder(folder)


def files_of(folder: pathlib.Path) -> list[str]:
    """What lies in a checkpoint's folder beside its manifest, as paths in it, sorted."""
    found = (pathlib.Path(root, name).relative_to(folder).as_posix() for root, _, names in os.walk(folder) for name in names)
    return sorted(name for name in found if name != NAME)


def hashes(folder: pathlib.Path, names: Iterable[str], to_disk: bool = False) -> dict[str, tuple[int, str]]:
    """(bytes, sha256) of files, read piece by piece; with `to_disk`, each is brought there first."""

    def one(name: str) -> tuple[int, str]:
        with open(folder / name, "rb") as file:
            if to_disk:
                os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()

    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def check(folder: pathlib.Path, manifest: Manifest, part: int = 0, parts: int = 1) -> None:
    """Holds every file's size, and the content of a part of the files, against the manifest.

    Raises:
      Damaged: a file is missing, is not one that was saved, or has changed.
    """
    found = files_of(folder)
    if missing := sorted(manifest.files.keys() - set(found)):
        raise Damaged(f"{folder / missing[0]} is missing")
    if foreign := sorted(set(found) - manifest.files.keys()):
        raise Damaged(f"{folder / foreign[0]} is none of the files that were saved")
    try:
        for name in found:
            if (size := (folder / name).stat().st_size) != manifest.files[name][0]:
                raise Damaged(f"{folder / name} has {size:,} bytes where {manifest.files[name][0]:,} were saved")
        for name, (_, digest) in hashes(folder, found[part::parts]).items():
            if digest != manifest.files[name][1]:
                raise Damaged(f"{folder / name} has changed since it was saved")
    except OSError as error:
        raise Damaged(f"{error.filename or folder} cannot be read ({error.strerror})") from error


def remove(folder: pathlib.Path) -> None:
    """Deletes a checkpoint: the files that its manifest names, and no others; folders that are empty then, and the manifest last."""
    with contextlib.suppress(Damaged):
        for name in read(folder).files:
            (folder / name).unlink(missing_ok=True)
        (folder / NAME).unlink()
    for root, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # something of another's is in it
            os.rmdir(root)


def sync_folder(folder: pathlib.Path) -> None:
    """Brings names that were given in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
