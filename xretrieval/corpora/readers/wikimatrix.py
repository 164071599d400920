"""WikiMatrix (Schwenk et al. 2019, arXiv 1907.05791): sentences of Wikipedia in two languages, mined by the margin of their embeddings.

`WikiMatrix.de-en.tsv.gz`: margin score, German sentence, English sentence, the highest score first; the two codes in alphabetical order.
"""

import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from xretrieval.corpora.manifest import Utterance, meaning
from xretrieval.corpora.readers.findings import Findings
from xretrieval.corpora.readers.tables import rows_without_header
from xretrieval.errors import UserError
from xretrieval.languages import Language, language, table

# "A good choice for most pairs" of its README (facebookresearch/LASER).
THRESHOLD = 1.04
ENGLISH = "en_us"
_NAME = re.compile(r"WikiMatrix\.([a-z_]+)-([a-z_]+)\.tsv(\.gz)?")


def read(
    source: str | os.PathLike,
    findings: Findings,
    languages: Sequence[str] = (),
    into: str = "en",
    threshold: float = THRESHOLD,
) -> Iterator[Utterance]:
    """Pairs of texts, all of the split train.

    Args:
      source: a folder of `WikiMatrix.*.tsv.gz`, or of the same unpacked.
      findings: is told of lines that are not a score and two sentences, and how many are below the threshold.
      languages: of the texts; none: all that there is a file of with `into`.
      into: the language of their translations.
      threshold: of the margin score.

    Yields:
      Utterances without audio. `sentence_id` is a hash of the English side, or of the text where neither side is English.

    Raises:
      UserError: WikiMatrix has no file of a pair, or it is not in the folder.
    """
    folder = pathlib.Path(os.path.abspath(source))
    target = language(into)
    asked = [language(name) for name in languages] or _present(folder, target)
    for row in asked:
        yield from _pairs(_file(folder, row, target), row, target, threshold, findings)


def _present(folder: pathlib.Path, target: Language) -> list[Language]:
    """Languages that the folder has a file of with `target`."""
    found = {frozenset(match.groups()[:2]) for name in (os.listdir(folder) if folder.is_dir() else ()) if (match := _NAME.fullmatch(name))}
    rows = [row for row in table().values() if row != target and frozenset((row.wikimatrix, target.wikimatrix)) in found]
    if not rows:
        raise UserError(f"{folder}: holds no WikiMatrix file with {target.name}; copy one there, such as WikiMatrix.de-en.tsv.gz")
    return rows


def _file(folder: pathlib.Path, row: Language, target: Language) -> pathlib.Path:
    for one in (row, target):
        if one.wikimatrix is None:
            raise UserError(
                f"WikiMatrix has no file of {one.name}; leave {one.code} out, and give its text pairs as moses files or a manifest"
            )
    if row == target:
        raise UserError(f"WikiMatrix pairs two languages; {row.code} is given as both")
    for one, other in ((row, target), (target, row)):
        if other.code == ENGLISH and not one.wikimatrix_english:
            raise UserError(f"WikiMatrix has no file of {one.name} with English, only with other languages; leave {one.code} out")
    name = "WikiMatrix.{}-{}.tsv".format(*sorted((row.wikimatrix or "", target.wikimatrix or "")))
    found = next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
    if found is None:
        raise UserError(f"{folder}: holds no {name}.gz; copy it there from WikiMatrix's release")
    return found


def _pairs(path: pathlib.Path, row: Language, target: Language, threshold: float, findings: Findings) -> Iterator[Utterance]:
    first = (row.wikimatrix or "") < (target.wikimatrix or "")
    pair = path.name.split(".")[1]
    for place, (score, left, right) in rows_without_header(path, findings, 3):
        margin = _number(score)
        if margin is None:
            findings.skip("the margin score is not a number", place, score)
            continue
        if margin < threshold:
            findings.leave_out(f"below the margin score {threshold:g}")
            continue
        text, translation = (left.strip(), right.strip()) if first else (right.strip(), left.strip())
        if not text or not translation:
            findings.skip("a side is empty", place, text or translation)
            continue
        yield Utterance(
            id=f"wikimatrix.{pair}.{place.rsplit(':', 1)[1]}" + ("" if first else ".reversed"),
            sentence_id=meaning(translation if target.code == ENGLISH else text),
            text=text,
            language=row.code,
            translation=translation,
            translation_language=target.code,
            split="train",
        )


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
