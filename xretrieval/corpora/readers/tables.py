"""Tables of corpora, one line at a time: tab-separated, never quoted, whatever the text holds."""

import contextlib
import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

from xretrieval.corpora.readers.findings import Findings
from xretrieval.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A cell, where a backslash takes its meaning from the character behind it.
_CELL = re.compile(r"((?:[^\t\\]|\\.)*)(\t|\Z)", re.DOTALL)
# A line that ends within an escape.
_OPEN = re.compile(r"(?<!\\)(\\\\)*\\\Z")
# What pandas escapes in a table without quotes; any other backslash is one that the text has.
_ESCAPED = re.compile(r'\\([\\\t\n\r"])')


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A file for reading bytes, unpacked where its name ends in .gz.

    Raises:
      UserError: it cannot be read, or is damaged; also of what is read inside the `with`.
    """
    try:
        file: IO[bytes] = gzip.open(path) if os.fspath(path).endswith(".gz") else open(path, "rb")  # type: ignore[assignment]  # noqa: SIM115
        with file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again, whole") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the folder that holds it") from error


def decoded(file: IO[bytes], path: str | os.PathLike, findings: Findings) -> Iterator[tuple[int, str | None]]:
    """Number, from 1, and text of every line, without its end; None, and a finding, where it is not UTF-8.

    Lines end at line feeds alone: other characters that Unicode counts as ends of lines are text.
    """
    for number, raw in enumerate(file, start=1):
        if number == 1:
            raw = raw.removeprefix(_BYTE_ORDER_MARK)
        try:
            yield number, raw.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            findings.skip("the line is not UTF-8", f"{path}:{number}", repr(raw[:80]))
            yield number, None


def rows(
    path: str | os.PathLike, findings: Findings, columns: Sequence[str], optional: Sequence[str] = (), escaped: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """The cells of chosen columns, of a table with a header row; other columns may be there, in any order.

    Args:
      path: of the table; `.gz` is unpacked.
      findings: is told of lines that cannot be read.
      columns: what each row has to have.
      optional: columns whose cells are empty where the table lacks them.
      escaped: the table was written by pandas without quotes, with a backslash in front of what would end a cell. A line that makes no
        sense so is read as it stands (Common Voice escapes no more since 2026).

    Yields:
      file:line, and the cells in the order of `columns`, then `optional`.

    Raises:
      UserError: the file cannot be read, or a column is missing.
    """
    with opened(path) as file:
        lines = decoded(file, path, findings)
        header = [name.strip() for name in (next(lines, (1, ""))[1] or "").split("\t")]
        missing = [name for name in columns if name not in header]
        if missing:
            raise UserError(f"{path}:1: no column {', '.join(missing)}; its columns are {', '.join(header)}")
        at = [header.index(name) if name in header else -1 for name in (*columns, *optional)]
        for number, cells in _split(lines, path, findings, len(header), escaped):
            yield f"{path}:{number}", [cells[i] if i >= 0 else "" for i in at]


def rows_without_header(path: str | os.PathLike, findings: Findings, width: int) -> Iterator[tuple[str, list[str]]]:
    """As `rows`, of a table whose columns have no names: all `width` cells of each line."""
    with opened(path) as file:
        for number, cells in _split(decoded(file, path, findings), path, findings, width, escaped=False):
            yield f"{path}:{number}", cells


def _split(
    lines: Iterator[tuple[int, str | None]], path: str | os.PathLike, findings: Findings, width: int, escaped: bool
) -> Iterator[tuple[int, list[str]]]:
    """Lines as `width` cells each, with the number of the first; others are findings."""
    for group in _records(lines) if escaped else ([(number, line)] for number, line in lines if line):
        if len(group) > 1:
            cells = _unescaped("\n".join(line for _, line in group))
            if len(cells) == width:
                yield group[0][0], cells
                continue
        for number, line in group:
            cells = _unescaped(line) if escaped and "\\" in line else []
            if len(cells) != width:
                cells = line.split("\t")
            if len(cells) == width:
                yield number, cells
            elif line:
                findings.skip(f"the line has not {width} cells", f"{path}:{number}", line[:200])


def _records(lines: Iterator[tuple[int, str | None]]) -> Iterator[list[tuple[int, str]]]:
    """Lines that are one where a backslash escapes the line feed between them; empty ones are left out."""
    group: list[tuple[int, str]] = []
    for number, line in lines:
        if line or (group and line is not None):
            group.append((number, line))
        if group and (line is None or not (group[-1][1].endswith("\\") and _OPEN.search(group[-1][1]))):
            yield group
            group = []
    if group:
        yield group


def _unescaped(line: str) -> list[str]:
    """Cells of an escaped line; none where it ends within an escape."""
    cells, at = [], 0
    while match := _CELL.match(line, at):
        cells.append(_ESCAPED.sub(r"\1", match[1]))
        if not match[2]:
            return cells
        at = match.end()
    return []


def unquoted(cell: str) -> str:
    """A cell that a table program quoted, as it was: its outer quotes off, and each doubled one single.

    Common Voice took sentences over from such tables (`\"\"\"Good-bye,\"\" said the boy.\"`). Only a cell that can be nothing else is
    changed: it begins and ends with a quote, and those inside are doubled, all of them and at least one.
    """
    inside = cell[1:-1]
    if len(cell) < 4 or cell[0] != '"' or cell[-1] != '"' or '""' not in inside or '"' in inside.replace('""', ""):
        return cell
    return inside.replace('""', '"')
