"""Which phone is heard when: `phones.jsonl` files beside a manifest, one utterance a line.

    {"id": "de-17", "phones": [["sil", 0.0, 0.12], ["b", 0.12, 0.19], ["ɪ", 0.19, 0.31]]}

Seconds count from the utterance's beginning. Phones follow each other without a gap, from 0 to the utterance's end; what is no speech is the phone
`sil`. Other phones are whatever the aligner calls them, but one sound should have one name in all languages.
"""

import json
import math
import os
import pathlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

from xretrieval.errors import UserError

SILENCE = "sil"
_SLACK = 1e-4  # seconds between an end and the next start: aligners round


class Phone(NamedTuple):
    """A phone from `start` to `end`, in seconds."""

    name: str
    start: float
    end: float


def write_alignments(path: str | os.PathLike, alignments: Iterable[tuple[str, list[Phone]]]) -> None:
    """Writes (utterance id, its phones) a line, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                for id_, phones in alignments:
                    file.write(json.dumps({"id": id_, "phones": phones}, ensure_ascii=False) + "\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or give another folder") from error


def read_alignments(path: str | os.PathLike, ids: Collection[str]) -> dict[str, list[Phone]]:
    """The phones of these utterances, by id; the file is read a line at a time, and the others are not kept.

    Raises:
      UserError: the file cannot be read, a line is not as it must be, or an utterance is not in it or is twice.
    """
    wanted = set(ids)
    found: dict[str, list[Phone]] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                id_, rows = _row(line, where)
                if id_ in found:
                    raise UserError(f"{where}: {id_!r} is there a second time; leave one of the lines out")
                if id_ in wanted:
                    found[id_] = _phones(rows, where)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{path}: cannot be read ({reason}); give the alignments of the manifest's utterances") from error
    if missing := sorted(wanted - found.keys()):
        raise UserError(f"{path}: no phones of {missing[0]!r} (and of {len(missing) - 1} more); align every recording of the manifest")
    return found


def _row(line: str, where: str) -> tuple[str, list]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); write one utterance a line") from error
    if not (isinstance(row, dict) and row.keys() == {"id", "phones"} and isinstance(row["id"], str) and isinstance(row["phones"], list)):
        raise UserError(f'{where}: not of the form {{"id": "…", "phones": [["a", 0.0, 0.1], …]}}')
    return row["id"], row["phones"]


def _phones(rows: list, where: str) -> list[Phone]:
    phones: list[Phone] = []
    end = 0.0
    for row in rows:
        if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and row[0] and all(_is_number(x) for x in row[1:])):
            raise UserError(f"{where}: field phones: {row!r} is not [phone, start, end] with seconds as numbers")
        phone = Phone(row[0], float(row[1]), float(row[2]))
        if abs(phone.start - end) > _SLACK:
            raise UserError(
                f"{where}: field phones: {phone.name!r} begins at {phone.start:g} s and what is before it ends at {end:g} s; "
                f"write what is between phones as {SILENCE!r}"
            )
        if phone.end <= phone.start:
            raise UserError(f"{where}: field phones: {phone.name!r} ends at {phone.end:g} s, before or when it begins; leave it out")
        phones.append(phone)
        end = phone.end
    if not phones:
        raise UserError(f"{where}: field phones: empty; write an utterance without speech as one {SILENCE!r}")
    return phones


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
