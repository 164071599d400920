"""Which lines of a manifest are recordings: their places in a file, so that a worker reads its own and nobody holds the manifest."""

import contextlib
import hashlib
import os
import pathlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xretrieval.corpora.manifest import Utterance, duplicate, manifest_path, read_at, scan
from xretrieval.errors import UserError
from xretrieval.progress import track

_PLACES = "lines.npy"


class Recordings(NamedTuple):
    """The recordings of a manifest.

    Attributes:
      manifest: its absolute path.
      digest: sha256 of its bytes.
      total: lines with sound; a line of text alone is for the text tokenizer.
    """

    manifest: str
    digest: str
    total: int


def find_recordings(manifest: str | os.PathLike, out_dir: str | os.PathLike) -> Recordings:
    """Reads a manifest once, checks every line, and writes the places of its recordings to `out_dir`/lines.npy (int64).

    Raises:
      UserError: a line is not an utterance, two have one id, or none has sound.
    """
    path = manifest_path(manifest)
    places, ids, numbers = array("q"), array("Q"), array("q")
    problems: list[str] = []
    for line, found in track(scan(path), None, f"reading {path.name}", unit="lines"):
        if isinstance(found, str):
            problems.append(f"{path}:{line.number}: {found}")
        else:
            ids.append(int.from_bytes(hashlib.blake2b(found.id.encode(), digest_size=8).digest(), "little"))
            numbers.append(line.number)
            if found.audio:
                places.append(line.offset)
    problems += _duplicates(path, np.frombuffer(ids, np.uint64), np.frombuffer(numbers, np.int64)) if len(ids) else []
    if problems:
        more = f" (and {len(problems) - 1} more such lines: xretrieval data check lists them)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    if not places:
        raise UserError(f"{path}: the manifest is empty; it needs one line a recording, with `audio`")
    target = pathlib.Path(out_dir) / _PLACES
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{target}.tmp", "wb") as file:
            np.save(file, np.frombuffer(places, np.int64), allow_pickle=False)
        os.replace(f"{target}.tmp", target)
    except OSError as error:
        raise UserError(f"{out_dir}: cannot be written ({error.strerror}); give another folder") from error
    with open(path, "rb") as file:
        return Recordings(os.path.abspath(path), hashlib.file_digest(file, "sha256").hexdigest(), len(places))


def _duplicates(path: pathlib.Path, ids_N: np.ndarray, numbers_N: np.ndarray) -> list[str]:
    """Messages for lines of an id that an earlier line has; hashes find the few lines that are then compared."""
    order = np.argsort(ids_N, kind="stable")
    same = ids_N[order][1:] == ids_N[order][:-1]
    suspects = set(numbers_N[order][np.r_[same, False] | np.r_[False, same]].tolist())
    first: dict[str, int] = {}
    problems = []
    for line, found in scan(path) if suspects else ():
        if line.number in suspects and isinstance(found, Utterance) and first.setdefault(found.id, line.number) != line.number:
            problems.append(f"{path}:{line.number}: {duplicate(found.id, first[found.id])}")
    return problems


def shard_of(manifest: str, out_dir: str | os.PathLike, index: int, total: int) -> list[Utterance]:
    """Every `total`-th recording from the `index`-th on."""
    places_N = np.load(pathlib.Path(out_dir) / _PLACES, mmap_mode="r", allow_pickle=False)
    return read_at(manifest, places_N[index::total].tolist())


def stamp(recordings: Sequence[Utterance]) -> str:
    """A hash of the size and date of sound files; of a URI, or a file that is not there, of its name alone."""
    digest = hashlib.sha256()
    for utterance in recordings:
        digest.update(f"{utterance.audio} ".encode())
        with contextlib.suppress(OSError):
            found = os.stat(utterance.recording)
            digest.update(f"{found.st_size} {found.st_mtime_ns} ".encode())
    return digest.hexdigest()
