"""Manifests: one utterance a line, JSONL or TSV. What a corpus is to every later stage."""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from xretrieval.corpora.manifest_lines import Line, lines, lines_at
from xretrieval.errors import UserError
from xretrieval.languages import language

SPLITS = ("train", "validation", "test", "test_held_out_voices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording, or one text where `audio` is None.

    Attributes:
      id: unique in its manifest.
      sentence_id: equal for every recording and language of one meaning; where the manifest has none, equal for equal texts.
      audio: absolute path or URI of the sound file, or None. Written relative to the manifest where it lies beside or below it.
      start: where the utterance begins in the file, in seconds; None is 0.
      duration: in seconds; None is up to the end of the file.
      sampling_rate: of the file, in Hz, where known.
      text: what is said, as written in `language`; empty where it is not known.
      language: FLEURS code, e.g. `de_de`. A manifest may write any form that `xretrieval.languages` knows.
      translation: the same meaning in another language, or None.
      translation_language: FLEURS code of `translation`, or None.
      speaker: name of the speaker, or empty.
      split: one of `SPLITS`, or the user's own name; the manifest's file name where the field is missing.
    """

    id: str
    sentence_id: str
    audio: str | None = None
    start: float | None = None
    duration: float | None = None
    sampling_rate: int | None = None
    text: str
    language: str
    translation: str | None = None
    translation_language: str | None = None
    speaker: str = ""
    split: str

    @property
    def english(self) -> str | None:
        """The translation, where it is English."""
        return self.translation if self.translation_language == "en_us" else None

    @property
    def recording(self) -> str:
        """`audio`, of an utterance that must have one; UserError where it has none."""
        if self.audio is None:
            raise UserError(f"{self.id}: has no audio; give its manifest line a sound file, or leave the line out")
        return self.audio


FIELDS = tuple(field.name for field in dataclasses.fields(Utterance))
_REQUIRED = ("id", "language", "text")
_STRINGS = ("id", "sentence_id", "audio", "text", "language", "translation", "translation_language", "speaker", "split")
_NUMBERS = ("start", "duration", "sampling_rate")


def manifest_path(path: str | os.PathLike) -> pathlib.Path:
    """The manifest that `path` names: itself, or with `.jsonl` or `.tsv` behind it."""
    given = pathlib.Path(path)
    named = [given, *(given.with_name(given.name + suffix) for suffix in (".jsonl", ".tsv"))]
    found = next((candidate for candidate in named if candidate.is_file()), None)
    if found is None and given.suffix not in ("", ".jsonl", ".tsv"):
        return given  # to be refused for what it ends in
    if found is None:
        raise UserError(f"{path}: no such manifest, nor with .jsonl or .tsv behind it; give the path of one")
    return found


def read_manifest(path: str | os.PathLike) -> list[Utterance]:
    """Reads a whole manifest.

    Args:
      path: see `manifest_path`; a `.jsonl` file (one object a line) or a `.tsv` file (a header row with the names of the fields; an empty cell is null;
        no quoting).

    Raises:
      UserError: the file cannot be read, or a line is not a valid utterance: file, line, field and reason.
    """
    utterances, problems = check_manifest(path)
    if problems:
        more = f" (and {len(problems) - 1} more such lines: xretrieval data check lists them)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    return utterances


def check_manifest(path: str | os.PathLike) -> tuple[list[Utterance], list[str]]:
    """As `read_manifest`, but returns the good utterances beside a message for each bad line."""
    utterances: list[Utterance] = []
    problems: list[str] = []
    line_of_id: dict[str, int] = {}
    for line, found in scan(path):
        if isinstance(found, Utterance):
            first = line_of_id.setdefault(found.id, line.number)
            if first == line.number:
                utterances.append(found)
                continue
            found = duplicate(found.id, first)
        problems.append(f"{manifest_path(path)}:{line.number}: {found}")
    return utterances, problems


def write_manifest(path: str | os.PathLike, utterances: Iterable[Utterance]) -> None:
    """Writes a JSONL manifest, whole or not at all.

    Absolute audio paths in or below the manifest's folder become relative to it, so that the folder can be moved.

    Raises:
      UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    folder = os.path.abspath(path.parent)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                for utterance in utterances:
                    row = vars(utterance) | {"audio": _portable(utterance.audio, folder)}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or give another folder") from error


def _portable(audio: str | None, folder: str) -> str | None:
    if audio is None or not os.path.isabs(audio) or os.path.commonpath([audio, folder]) != folder:
        return audio
    return os.path.relpath(audio, folder)


def scan(path: str | os.PathLike) -> Iterator[tuple[Line, Utterance | str]]:
    """Every line with its utterance, or with what is wrong with it, one at a time. Two lines of one id are not noticed.

    Raises:
      UserError: the manifest itself cannot be read.
    """
    path = manifest_path(path)
    folder = os.path.abspath(path.parent)
    for line in lines(path, functools.partial(_check_header, path)):
        yield line, _parsed(line.row, folder, path.stem)


def read_at(path: str | os.PathLike, offsets: Sequence[int]) -> list[Utterance]:
    """The utterances whose lines begin at `offsets`, as `scan` gave them.

    Raises:
      UserError: the manifest was changed meanwhile.
    """
    path = manifest_path(path)
    found = [_parsed(row, os.path.abspath(path.parent), path.stem) for row in lines_at(path, offsets)]
    if not all(isinstance(utterance, Utterance) for utterance in found):
        raise UserError(f"{path}: changed while it was read; run the same command again")
    return found  # type: ignore[return-value]


def _parsed(row: dict | str, folder: str, default_split: str) -> Utterance | str:
    if isinstance(row, str):
        return row
    try:
        return _utterance(row, folder, default_split)
    except (ValueError, UserError) as error:
        return str(error)


def duplicate(id_: str, first: int) -> str:
    """What is wrong with a line whose id is that of line `first`."""
    return f"field id: {id_!r} is already the id of line {first}; give each utterance its own"


def _check_header(path: pathlib.Path, header: Sequence[str]) -> None:
    for name in header:
        _check_field(name, f"{path}:1: ")
    for name in _REQUIRED:
        if name not in header:
            raise UserError(f"{path}:1: the header row lacks the column {name!r}; a manifest needs at least {', '.join(_REQUIRED)}")


def _check_field(name: str, where: str = "") -> None:
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.0)[0]
        raise UserError(f"{where}unknown field {name!r} (nearest: {near!r}); rename or remove it. Fields: {', '.join(FIELDS)}")


def _utterance(row: dict, folder: str, default_split: str) -> Utterance:
    for name in row:
        _check_field(name)
    for name in _REQUIRED:
        if row.get(name) is None:
            raise ValueError(f"field {name}: missing; every utterance needs {', '.join(_REQUIRED)}")
    values = {name: value for name, value in row.items() if value is not None}
    for name in _STRINGS:
        if name in values and not isinstance(values[name], str):
            raise ValueError(f"field {name}: {values[name]!r} is not a string; put it in quotes")
    for name in _NUMBERS:
        if name in values:
            values[name] = _number(name, values[name])
    for name in ("id", "sentence_id", "audio", "language", "split"):
        if values.get(name) == "":
            raise ValueError(f"field {name}: empty; give a value" + ("" if name in _REQUIRED else ", or null"))
    if ("translation" in values) != ("translation_language" in values):
        raise ValueError("fields translation and translation_language: give both or neither")
    for name in ("language", "translation_language"):
        if name in values:
            values[name] = language(values[name]).code
    if not values["text"].strip():
        values["text"] = ""
    if "audio" not in values and not values["text"]:
        raise ValueError("fields audio and text: both missing; an utterance has a sound file, a text, or both")
    if "audio" in values and "://" not in values["audio"]:
        values["audio"] = os.path.normpath(os.path.join(folder, values["audio"]))
    return Utterance(**{"sentence_id": meaning(values["text"]) or values["id"], "split": default_split} | values)


def meaning(text: str) -> str:
    """What stands in for `sentence_id` where a corpus has none: a hash of the text, so that equal texts are never negatives of each other.

    Case, white space and the forms that Unicode (NFKC) holds to be the same make no difference. Empty for an empty text.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return f"text-{hashlib.sha256(text.encode()).hexdigest()[:16]}" if text else ""


def _number(name: str, value: object) -> float | int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(
            f"field {name}: {value!r} is not a number; write {'Hz' if name == 'sampling_rate' else 'seconds'} as a number"
        ) from None
    least = 0 if name == "start" else math.ulp(0.0)
    if not (least <= number < math.inf):
        raise ValueError(f"field {name}: {value!r} is out of range; it must be {'0 or more' if name == 'start' else 'more than 0'}")
    if name != "sampling_rate":
        return number
    if number != int(number):
        raise ValueError(f"field {name}: {value!r} is not a whole number of Hz")
    return int(number)
