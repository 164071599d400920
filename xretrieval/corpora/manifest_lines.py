"""The lines of a manifest file, JSONL or TSV, one at a time: a manifest of ten thousand hours is never whole in memory."""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from xretrieval.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line that holds something: its number from 1, the byte it begins at, and its fields or what is wrong with it."""

    number: int
    offset: int
    row: dict | str


def lines(path: pathlib.Path, check_header: Callable[[list[str]], None]) -> Iterator[Line]:
    """Every line that is not empty.

    Args:
      path: a `.jsonl` or `.tsv` file.
      check_header: is given the names of a TSV's columns.

    Raises:
      UserError: the file cannot be read, is no such file, or not UTF-8.
    """
    if path.suffix not in (".jsonl", ".tsv"):
        raise UserError(
            f"{path}: a manifest ends in .jsonl (one JSON object a line) or .tsv (with a header row); rename or convert the file"
        )
    try:
        with open(path, "rb") as file:
            parse = _parser(path, file, check_header)
            offset = file.tell()
            for number, raw in enumerate(file, start=1 if path.suffix == ".jsonl" else 2):
                row = parse(raw, offset)
                if row is not None:
                    yield Line(number, offset, row)
                offset += len(raw)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a manifest") from error


def lines_at(path: pathlib.Path, offsets: Sequence[int]) -> Iterator[dict | str]:
    """The fields of the lines that begin at `offsets`, as `lines` gave them."""
    with open(path, "rb") as file:
        parse = _parser(path, file, lambda header: None)
        for offset in offsets:
            file.seek(offset)
            row = parse(file.readline(), offset)
            if row is None:
                raise UserError(f"{path}: changed while it was read; run the same command again")
            yield row


def _parser(path: pathlib.Path, file: BinaryIO, check_header: Callable[[list[str]], None]) -> Callable[[bytes, int], dict | str | None]:
    """What makes fields of a line; the file stands at its first line of content."""
    if file.read(3) != _BYTE_ORDER_MARK:
        file.seek(0)
    if path.suffix == ".jsonl":
        return lambda raw, offset: _json_row(_text(path, raw, offset))
    header = [cell.strip() for cell in _text(path, file.readline(), 0).split("\t")]
    check_header(header)
    return lambda raw, offset: _table_row(_text(path, raw, offset), header)


def _text(path: str | os.PathLike, raw: bytes, offset: int) -> str:
    try:
        return raw.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {offset + error.start}); save the manifest as UTF-8") from error


def _json_row(line: str) -> dict | str | None:
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno}); each line holds one whole object"
    return row if isinstance(row, dict) else 'not a JSON object; each line holds one, such as {"id": …, "audio": …}'


def _table_row(line: str, header: Iterable[str]) -> dict | str | None:
    cells, names = line.split("\t"), list(header)
    if cells == [""]:
        return None
    if len(cells) != len(names):
        return f"{len(cells)} cells where the header row has {len(names)}; separate them by tabs, and keep tabs out of the text"
    row = {name: cell if cell else None for name, cell in zip(names, cells, strict=True)}
    return row | {"text": row["text"] or ""}
