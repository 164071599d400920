"""WikiMatrix and moses pairs, and the account that a manifest gets."""

import gzip
import json
import zipfile

import pytest

from xretrieval import main
from xretrieval.corpora.manifest import meaning, read_manifest
from xretrieval.corpora.readers import moses, wikimatrix, writing
from xretrieval.corpora.readers.findings import Findings
from xretrieval.errors import UserError

WIKIMATRIX = [
    '1.2\tEin "Satz\tA "sentence',
    "1.03\tzu tief\ttoo low",
    "1.05\t\tno text",
    "x\tkeine Zahl\tno number",
    "1.1\tzu\tviele\tcells",
    "nan\tkein Maß\tno score",
    "1.04\tGenau\tExactly",
]


def gz(path, lines):
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))


def read(reader, source, **more):
    findings = Findings()
    return list(reader.read(source, findings, **more)), findings


@pytest.fixture
def folder(tmp_path):
    gz(tmp_path / "WikiMatrix.de-en.tsv.gz", WIKIMATRIX)
    gz(tmp_path / "WikiMatrix.en-fr.tsv.gz", ["1.3\tGood day\tBonjour"])
    gz(tmp_path / "WikiMatrix.de-fr.tsv.gz", ["1.3\tGuten Tag\tBonjour"])
    return tmp_path


def test_wikimatrix_either_way_round(folder):
    found, findings = read(wikimatrix, folder, languages=["de"])
    assert [(u.text, u.translation, u.translation_language) for u in found] == [
        ('Ein "Satz', 'A "sentence', "en_us"),
        ("Genau", "Exactly", "en_us"),
    ]
    assert [u.id for u in found] == ["wikimatrix.de-en.1", "wikimatrix.de-en.7"]
    assert found[0].sentence_id == meaning('A "sentence')
    assert findings.skipped == {"a side is empty": 1, "the margin score is not a number": 2, "the line has not 3 cells": 1}
    assert findings.left_out == {"below the margin score 1.04": 1}
    french, _ = read(wikimatrix, folder, languages=["fr"])
    assert [(u.text, u.language, u.translation) for u in french] == [("Bonjour", "fr_fr", "Good day")]
    other, _ = read(wikimatrix, folder, languages=["en"], into="fr")
    assert [(u.text, u.translation, u.translation_language) for u in other] == [("Good day", "Bonjour", "fr_fr")]
    pair, _ = read(wikimatrix, folder, languages=["fr"], into="de")
    assert [(u.text, u.translation) for u in pair] == [("Bonjour", "Guten Tag")]


def test_wikimatrix_takes_all_that_is_there_and_a_threshold(folder):
    assert {u.language for u in read(wikimatrix, folder)[0]} == {"de_de", "fr_fr"}
    assert len(read(wikimatrix, folder, languages=["de"], threshold=1.0)[0]) == 3


def test_wikimatrix_unpacked_or_damaged(tmp_path):
    (tmp_path / "WikiMatrix.de-en.tsv").write_text("".join(line + "\n" for line in WIKIMATRIX))
    assert [u.id for u in read(wikimatrix, tmp_path)[0]] == ["wikimatrix.de-en.1", "wikimatrix.de-en.7"]
    gz(tmp_path / "WikiMatrix.de-en.tsv.gz", WIKIMATRIX * 100)
    packed = (tmp_path / "WikiMatrix.de-en.tsv.gz").read_bytes()
    for content in (packed[:-20], packed[:-6] + b"?" + packed[-5:], b"1.2\tEin\tA\n"):
        (tmp_path / "WikiMatrix.de-en.tsv.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"WikiMatrix\.de-en\.tsv\.gz: damaged"):
            read(wikimatrix, tmp_path)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"languages": ["mn"]}, "WikiMatrix has no file of Mongolian; leave mn_mn out"),
        ({"languages": ["lv"]}, "no file of Latvian"),
        ({"languages": ["cy"]}, "no file of Welsh"),
        ({"languages": ["hy"]}, "no file of Armenian with English, only with other languages"),
        ({"languages": ["sv"]}, r"holds no WikiMatrix\.en-sv\.tsv\.gz"),
        ({"languages": ["en"]}, "en_us is given as both"),
        ({"into": "ja"}, "holds no WikiMatrix file with Japanese"),
    ],
)
def test_pairs_that_wikimatrix_lacks(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        read(wikimatrix, folder, **arguments)


MOSES = {"de": ["Guten Tag", "", "Und \u2028 hier"], "en": ["Good day", "empty", "And here"]}


@pytest.mark.parametrize("form", ["plain", "gz", "zip"])
def test_moses_pairs_by_line(tmp_path, form):
    contents = {f"Books.de-en.{code}": "".join(line + "\r\n" for line in lines).encode() for code, lines in MOSES.items()}
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "de-en.txt.zip", "w") as archive:
            for name, content in {**contents, "README": b"x", "Books.de-en.xml": b"y"}.items():
                archive.writestr(name, content)
    for name, content in contents.items() if form != "zip" else ():
        (tmp_path / (name + ".gz" if form == "gz" else name)).write_bytes(gzip.compress(content) if form == "gz" else content)
    for arguments, wanted in (
        ({}, [("Guten Tag", "Good day", "en_us"), ("Und \u2028 hier", "And here", "en_us")]),
        ({"languages": ["en"], "into": "de"}, [("Good day", "Guten Tag", "de_de"), ("And here", "Und \u2028 hier", "de_de")]),
    ):
        found, findings = read(moses, tmp_path, **arguments)
        assert [(u.text, u.translation, u.translation_language) for u in found] == wanted
        assert found[0].sentence_id == meaning("Good day")
        assert findings.skipped == {"a side is empty": 1}
    with pytest.raises(UserError, match="no pair of files of fr_fr with en_us"):
        read(moses, tmp_path, languages=["fr"])


def test_files_of_other_lengths_are_no_pair(tmp_path):
    (tmp_path / "X.de-en.de").write_text("eins\nzwei\n")
    (tmp_path / "X.de-en.en").write_text("one\n")
    with pytest.raises(UserError, match=r"X\.de-en\.de: has more lines than .*X\.de-en\.en, 1: they are no pair"):
        read(moses, tmp_path)


def test_a_zip_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "de-en.txt.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for code, lines in MOSES.items():
            archive.writestr(f"Books.de-en.{code}", "\n".join(lines))
    whole = path.read_bytes()
    text, flags = whole.index(b"Guten Tag"), whole.index(b"PK\x01\x02") + 8
    encrypted = whole[:flags] + b"\x01" + whole[flags + 1 :]
    packed_otherwise = whole[: flags + 2] + b"\x62" + whole[flags + 3 :]
    for content in (whole[:-30], whole[:text] + b"?" + whole[text + 1 :], encrypted, packed_otherwise):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"de-en\.txt\.zip: damaged"):
            read(moses, tmp_path)


def test_a_manifest_has_an_account_beside_it(folder, tmp_path, capsys):
    out = tmp_path / "manifests/train.jsonl"
    assert main.main(["data", "manifest", "wikimatrix", str(folder), "--languages", "de", "--split", "train", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 utterances, 2 with a translation" in said
    assert "below the margin score 1.04" in said
    assert f"wrote {out}" in said
    assert [u.text for u in read_manifest(out)] == ['Ein "Satz', "Genau"]
    summary = json.loads(out.with_suffix(".summary.json").read_text())
    assert summary["utterances"] == {"de_de train": 2}
    listed = [json.loads(line) for line in out.with_suffix(".findings.jsonl").read_text().splitlines()]
    assert sum(summary["skipped"].values()) == len(listed) == 4
    assert all(entry["place"].startswith(str(folder / "WikiMatrix.de-en.tsv.gz")) for entry in listed)


def test_without_findings_there_is_no_file_of_them(folder, tmp_path):
    summary = writing.write("wikimatrix", folder, tmp_path / "train.jsonl", languages=["fr"])
    assert summary.listed is None
    assert not (tmp_path / "train.findings.jsonl").exists()


def test_what_a_corpus_has_no_use_for_is_refused_and_nothing_is_left_behind(folder, tmp_path):
    out = tmp_path / "train.jsonl"
    for corpus, arguments, message in (
        ("wikimatrix", {"text": "transcription"}, "wikimatrix has no use for text"),
        (
            "wikimatrix",
            {"languages": ["de"], "threshold": 5.0},
            "no utterance of wikimatrix was found: 2 x the margin score is not a number",
        ),
        ("wikimatrx", {}, "there are covost2|there are common_voice"),
    ):
        with pytest.raises(UserError, match=message):
            writing.write(corpus, folder, out, **arguments)
    with pytest.raises(UserError, match=r"let its name end in \.jsonl"):
        writing.write("wikimatrix", folder, tmp_path / "train.tsv")
    assert not list(tmp_path.glob("train*"))
