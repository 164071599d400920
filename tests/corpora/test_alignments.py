import json

import pytest

from xretrieval.corpora.alignments import Phone, read_alignments, write_alignments
from xretrieval.errors import UserError

PHONES = [Phone("sil", 0.0, 0.25), Phone("a", 0.25, 0.5)]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "phones.jsonl"
    write_alignments(path, [("one", PHONES), ("ʃ", PHONES[:1]), ("three", PHONES)])
    assert read_alignments(path, ["ʃ", "one"]) == {"one": PHONES, "ʃ": PHONES[:1]}
    assert [file.name for file in tmp_path.iterdir()] == ["phones.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: not JSON"),
        ("[]", "2: not of the form"),
        ('{"id": 5, "phones": []}', "2: not of the form"),
        ('{"id": "b", "phones": [], "more": 1}', "2: not of the form"),
        ('{"id": "a", "phones": []}', "2: 'a' is there a second time"),
        ('{"id": "b", "phones": []}', "2: field phones: empty"),
        ('{"id": "b", "phones": [["x", 0.0]]}', r"2: field phones: \['x', 0.0\] is not"),
        ('{"id": "b", "phones": [["", 0.0, 1.0]]}', "is not .phone, start, end."),
        ('{"id": "b", "phones": [["x", 0.0, NaN]]}', "is not .phone, start, end."),
        ('{"id": "b", "phones": [["x", 0.0, true]]}', "is not .phone, start, end."),
        ('{"id": "b", "phones": [["x", 0.1, 1.0]]}', "'x' begins at 0.1 s and what is before it ends at 0 s"),
        ('{"id": "b", "phones": [["x", 0, 0.4], ["y", 0.3, 0.5]]}', "'y' begins at 0.3 s and what is before it ends at 0.4 s"),
        ('{"id": "b", "phones": [["x", 0.0, 0.0]]}', "'x' ends at 0 s, before or when it begins"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "phones.jsonl"
    path.write_text(json.dumps({"id": "a", "phones": PHONES}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        read_alignments(path, ["a", "b"])


def test_missing_utterances_and_files_are_errors(tmp_path):
    path = tmp_path / "phones.jsonl"
    write_alignments(path, [("one", PHONES)])
    with pytest.raises(UserError, match=r"no phones of 'three' \(and of 1 more\)"):
        read_alignments(path, ["one", "two", "three"])
    with pytest.raises(UserError, match=r"there.jsonl: cannot be read \(No such file"):
        read_alignments(tmp_path / "there.jsonl", ["one"])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_alignments(path, ["one"])
    with pytest.raises(UserError, match="cannot be written"):
        write_alignments(tmp_path / "no" / "phones.jsonl", [])
