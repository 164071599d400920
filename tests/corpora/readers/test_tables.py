import csv
import gzip
import io
import random
import tracemalloc

import pandas as pd
import pytest

from xretrieval.corpora.readers.findings import Findings
from xretrieval.corpora.readers.tables import rows, rows_without_header, unquoted
from xretrieval.errors import UserError


def _rows(tmp_path, content, columns=("a", "b"), optional=(), escaped=False, name="x.tsv"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    findings = Findings()
    return [cells for _, cells in rows(path, findings, columns, optional, escaped)], findings


def test_columns_are_found_by_name_and_text_is_left_as_it_is(tmp_path):
    content = '\ufeffb\tother\ta\r\n"Er\t\tsagte "ja"\r\n\r\nU\u2028\x85\x0bx\t\te\u0301\r\n'
    found, findings = _rows(tmp_path, content, optional=("c",))
    assert found == [['sagte "ja"', '"Er', ""], ["e\u0301", "U\u2028\x85\x0bx", ""]]
    assert not findings.skipped


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.tsv:1: no column b; its columns are a, c"):
        _rows(tmp_path, "a\tc\n1\t2\n")
    with pytest.raises(UserError, match="no column a, b"):
        _rows(tmp_path, "")


@pytest.mark.parametrize(
    "line, cells",
    [
        ("x\\\ty\tz", ["x\ty", "z"]),
        ("x\\\\\ty", ["x\\", "y"]),
        ("x\ty\\\nz", ["x", "y\nz"]),
        ('\\"x\\"\ty', ['"x"', "y"]),
        ("C:\\d\ty", ["C:\\d", "y"]),  # a backslash of the text: newer tables escape nothing
        ("x\\\ty", ["x\\", "y"]),  # the same at the end of a cell: as an escape it would leave one cell too few
        ("x\ty\\", ["x", "y\\"]),
    ],
)
def test_escapes(tmp_path, line, cells):
    found, findings = _rows(tmp_path, f"a\tb\n{line}\nlast\tone\n", escaped=True)
    assert found == [cells, ["last", "one"]]
    assert not findings.skipped


def test_what_pandas_writes_is_read_back(tmp_path):
    draw = random.Random(0)
    texts = ["".join(draw.choices('ab\\\t\n"ü ', k=draw.randrange(12))) for _ in range(2_000)]
    table = pd.DataFrame({"a": texts, "b": texts[::-1]})
    written = io.StringIO()
    table.to_csv(written, sep="\t", index=False, escapechar="\\", quoting=csv.QUOTE_NONE, lineterminator="\n")
    found, findings = _rows(tmp_path, written.getvalue(), escaped=True)
    assert not findings.skipped
    assert found == table.to_numpy().tolist()


def test_bad_lines_are_listed_and_the_others_kept(tmp_path):
    found, findings = _rows(tmp_path, b"a\tb\n1\t2\n3\n4\t5\t6\n\xff\t7\n8\t9\n10\\\n", escaped=True)
    assert found == [["1", "2"], ["8", "9"]]
    assert findings.skipped == {"the line has not 2 cells": 3, "the line is not UTF-8": 1}
    assert [place.split("x.tsv:")[1] for place in findings.places["the line has not 2 cells"]] == ["3: 3", "4: 4\t5\t6", "7: 10\\"]


def test_an_open_escape_takes_no_good_line_with_it(tmp_path):
    found, findings = _rows(tmp_path, "a\tb\n1\t2\n3\\\n\n4\t5\n6\\\n7\t8\\\n9\t0\n", escaped=True)
    assert found == [["1", "2"], ["4", "5"], ["7", "8\\"], ["9", "0"]]
    assert findings.skipped == {"the line has not 2 cells": 2}


def test_packed_tables(tmp_path):
    path = tmp_path / "x.tsv.gz"
    path.write_bytes(gzip.compress("1\tä\n".encode() * 50_000))
    assert len(list(rows_without_header(path, Findings(), 2))) == 50_000
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"x\.tsv\.gz: damaged .*copy it again"):
        list(rows_without_header(path, Findings(), 2))
    path.write_bytes(b"plain")
    with pytest.raises(UserError, match=r"x\.tsv\.gz: damaged"):
        list(rows_without_header(path, Findings(), 2))
    with pytest.raises(UserError, match=r"absent\.tsv: cannot be read"):
        list(rows_without_header(tmp_path / "absent.tsv", Findings(), 2))


def test_a_table_is_never_whole_in_memory(tmp_path):
    path = tmp_path / "x.tsv.gz"
    path.write_bytes(gzip.compress(b"1\t" + b"some words " * 10 + b"\n", 1) * 50_000)
    tracemalloc.start()
    try:
        count = sum(1 for _ in rows_without_header(path, Findings(), 2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 50_000
    assert peak < 2**20  # of 5.6 MB


@pytest.mark.parametrize(
    "cell, text",
    [
        ('"""Good-bye,"" said the boy."', '"Good-bye," said the boy.'),
        ('"Das Prinzip heißt ""teile""."', 'Das Prinzip heißt "teile".'),
        ('"では"と彼は', '"では"と彼は'),
        ('"A whole quotation."', '"A whole quotation."'),
        ('"Ja" und "Nein"', '"Ja" und "Nein"'),
        ('"', '"'),
        ('""', '""'),
        ("", ""),
    ],
)
def test_quotes_of_table_programs(cell, text):
    assert unquoted(cell) == text
