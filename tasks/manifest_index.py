"""What a manifest holds, by language: counts for mixture rates, kept beside it, and the places of its lines."""

import contextlib
import functools
import hashlib
import os
import pathlib
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from xretrieval.corpora.manifest import Utterance, manifest_path, read_at, scan
from xretrieval.errors import UserError, read_json, write_json

_LINES_A_READ = 1000


class Counts(NamedTuple):
    """Lines of a manifest.

    Attributes:
      sha256: of the manifest.
      with_text, with_english: recordings with a transcript, and of these those with an English translation, by language.
      pairs: texts with a translation, by both languages, as `de_de.en_us`.
    """

    sha256: str
    with_text: dict[str, int]
    with_english: dict[str, int]
    pairs: dict[str, int]


def has_manifest(directory: str, split: str) -> bool:
    return any(os.path.isfile(os.path.join(directory, split + suffix)) for suffix in (".jsonl", ".tsv"))


def counts(manifest: str) -> Counts:
    """The counts of a manifest, from the file beside it where that is of this manifest.

    Raises:
      UserError: a line is not an utterance.
    """
    path = manifest_path(manifest)
    stamp, beside = _stamp(path), pathlib.Path(f"{path}.counts.json")
    if beside.exists():
        known = read_json(beside)
        if known.pop("stamp") == list(stamp):
            return Counts(**known)
    found = _scanned(str(path), stamp)[0]
    with contextlib.suppress(OSError):  # a folder of somebody else's: counted again next time
        write_json(beside, {"stamp": stamp, **found._asdict()})
    return found


def sentences_of(manifest: str, languages: str) -> Iterator[Utterance]:
    """The recordings with text of a language (`de_de`), or the texts with their translation of two (`de_de.en_us`), in their order."""
    path = manifest_path(manifest)
    places = _scanned(str(path), _stamp(path))[1].get(languages, ())
    for start in range(0, len(places), _LINES_A_READ):
        yield from read_at(path, places[start : start + _LINES_A_READ])


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=2)
def _scanned(path: str, stamp: tuple[int, int]) -> tuple[Counts, dict[str, array]]:
    """One pass over a manifest: its counts, and the bytes that the lines of each language, and each two, begin at."""
    places: dict[str, array] = {}
    with_english: dict[str, int] = {}
    for line, found in scan(path):
        if isinstance(found, str):
            raise UserError(f"{path}:{line.number}: {found}")
        if found.audio and found.text:
            places.setdefault(found.language, array("q")).append(line.offset)
            with_english[found.language] = with_english.get(found.language, 0) + bool(found.english)
        if found.text and found.translation:
            places.setdefault(f"{found.language}.{found.translation_language}", array("q")).append(line.offset)
    sizes = {languages: len(offsets) for languages, offsets in sorted(places.items())}
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Counts(
        digest,
        {languages: size for languages, size in sizes.items() if "." not in languages},
        with_english,
        {languages: size for languages, size in sizes.items() if "." in languages},
    ), places
