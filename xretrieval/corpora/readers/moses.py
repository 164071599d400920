"""Pairs of texts in the moses form of OPUS: two files of as many lines, `NAME.de-en.de` and `NAME.de-en.en`, plain, `.gz`, or in a zip."""

import contextlib
import itertools
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from xretrieval.corpora.manifest import Utterance, meaning
from xretrieval.corpora.readers.findings import Findings
from xretrieval.corpora.readers.tables import decoded, opened
from xretrieval.errors import UserError
from xretrieval.languages import Language, language

ENGLISH = "en_us"
_NAME = re.compile(r"(?P<corpus>.+)\.(?P<a>[A-Za-z_]+)-(?P<b>[A-Za-z_]+)\.(?P<side>[A-Za-z_]+)(\.gz)?")


class _Side(NamedTuple):
    """One of the two files: its zip, where it is in one, and its name."""

    archive: pathlib.Path | None
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}" if self.archive else self.name


def read(source: str | os.PathLike, findings: Findings, languages: Sequence[str] = (), into: str = "en") -> Iterator[Utterance]:
    """Pairs of texts, all of the split train.

    Args:
      source: a folder of such files or of zips of them, or one zip.
      findings: is told of lines that are empty or not UTF-8 on a side.
      languages: of the texts; none: all that there are files of with `into`. A file is found by its two codes, in either order.
      into: the language of their translations.

    Yields:
      Utterances without audio. `sentence_id` is a hash of the English side, or of the text where neither side is English.

    Raises:
      UserError: there are no such files, or two of a pair differ in their numbers of lines.
    """
    target = language(into)
    pairs = _pairs(pathlib.Path(os.path.abspath(source)), target)
    asked = [language(name).code for name in languages]
    absent = set(asked) - {row.code for _, row, _, _ in pairs}
    if absent or not pairs:
        raise UserError(
            f"{source}: no pair of files of {', '.join(sorted(absent)) or 'any language'} with {target.code}, such as X.de-en.de, X.de-en.en"
        )
    for name, row, text, translation in pairs:
        if not asked or row.code in asked:
            yield from _utterances(name, row, target, text, translation, findings)


def _pairs(source: pathlib.Path, target: Language) -> list[tuple[str, Language, _Side, _Side]]:
    """Name, language, text and translation of every pair with `target`."""
    sides: dict[tuple[str, str], _Side] = {}
    for side in _sides(source):
        match = _NAME.fullmatch(os.path.basename(side.name))
        if match and match["side"] in (match["a"], match["b"]):
            sides.setdefault((f"{match['corpus']}.{match['a']}-{match['b']}", match["side"]), side)
    found = []
    for (name, code), side in sorted(sides.items()):
        a, b = name.rsplit(".", 1)[1].split("-")
        other = sides.get((name, b if code == a else a))
        row, partner = _known(code), _known(b if code == a else a)
        if other and row and partner == target and row != target:
            found.append((name, row, side, other))
    return found


def _sides(source: pathlib.Path) -> Iterator[_Side]:
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        if path.suffix == ".zip":
            with _reading(path), zipfile.ZipFile(path) as archive:
                yield from [_Side(path, name) for name in archive.namelist()]
        elif path.is_file():
            yield _Side(None, os.fspath(path))


def _known(code: str) -> Language | None:
    try:
        return language(code)
    except UserError:
        return None


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    # RuntimeError is zipfile's for what is encrypted, or packed in a way that it lacks.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: damaged, or not packed as usual ({error}); copy it again, whole") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); give a folder, or a zip of moses files") from error


@contextlib.contextmanager
def _open(side: _Side) -> Iterator[IO[bytes]]:
    if side.archive is None:
        with opened(side.name) as file:
            yield file
    else:
        with _reading(side.archive), zipfile.ZipFile(side.archive) as archive, archive.open(side.name) as file:
            yield file


def _utterances(name: str, row: Language, target: Language, text: _Side, translation: _Side, findings: Findings) -> Iterator[Utterance]:
    with _open(text) as left_file, _open(translation) as right_file:
        lines = itertools.zip_longest(decoded(left_file, str(text), findings), decoded(right_file, str(translation), findings))
        for number, (left, right) in enumerate(lines, start=1):
            if left is None or right is None:
                longer, shorter = (translation, text) if left is None else (text, translation)
                raise UserError(f"{longer}: has more lines than {shorter}, {number - 1}: they are no pair; copy both again")
            if left[1] is None or right[1] is None:
                continue
            texts = left[1].strip(), right[1].strip()
            if not all(texts):
                findings.skip("a side is empty", f"{text}:{number}", texts[0] or texts[1])
                continue
            yield Utterance(
                id=f"{name}.{row.code}.{number}",
                sentence_id=meaning(texts[1] if target.code == ENGLISH else texts[0]),
                text=texts[0],
                language=row.code,
                translation=texts[1],
                translation_language=target.code,
                split="train",
            )
