import csv

import pandas as pd
import pytest
from test_common_voice_reader import HEADERS, row, write_clips, write_table

from xretrieval.corpora.manifest import meaning, read_manifest
from xretrieval.corpora.readers import covost2, writing
from xretrieval.corpora.readers.findings import Findings
from xretrieval.errors import UserError

COLUMNS = "path\ttranslation\tsplit\tclient_id"


def translated(path, translation, split):
    return {"path": path, "translation": translation, "split": split}


def read(source, *arguments, **more):
    findings = Findings()
    return list(covost2.read(source, findings, *arguments, **more)), findings


def published(folder, name, split):
    """The split as get_covost_splits.py makes it: what pandas reads, joined, filtered."""

    def table(path):
        return pd.read_csv(path, sep="\t", header=0, encoding="utf-8", escapechar="\\", quoting=csv.QUOTE_NONE, na_filter=False)

    joined = table(folder / "validated.tsv")[["path", "sentence", "client_id"]].merge(
        table(folder.parent / name)[["path", "translation", "split"]], how="inner", on="path"
    )
    kept = joined[joined["split"].isin([split, f"{split}_covost"] if split == "train" else [split])]
    return list(kept[["path", "sentence", "translation", "client_id"]].itertuples(index=False, name=None))


@pytest.fixture
def corpus(tmp_path):
    """German as on disk: `covost_v2.de_en.tsv` beside Common Voice's folder `de`."""
    folder = tmp_path / "de"
    write_table(
        folder / "validated.tsv",
        HEADERS[0],
        row("c_1.mp3", 'Er sagte "ja', "s1"),
        row("c_2.mp3", "Tab\\\tund \\\\Strich", "s1"),
        row("c_3.mp3", "Caf\u00e9", "s2"),
        row("c_4.mp3", "Cafe\u0301", "s3"),
        row("c_5.mp3", "Nur hier", "s4"),
        row("c_6.mp3", "NA", "s5"),
        row("c_7.mp3", "Weiter", "s6"),
        row("c_8.mp3", "Draußen", "s7"),
    )
    write_table(
        tmp_path / "covost_v2.de_en.tsv",
        COLUMNS,
        translated("c_8.mp3", "Outside", "dev_covost"),
        translated("c_4.mp3", "Coffee", "dev"),
        translated("c_1.mp3", 'He said \\"yes', "train"),
        translated("c_3.mp3", "Coffee", "train_covost"),
        translated("c_2.mp3", "null", "train"),
        translated("c_6.mp3", "", "test"),
        translated("c_7.mp3", "Further", "test"),
    )
    write_clips(folder, *(f"c_{i}.mp3" for i in range(1, 9)))
    return tmp_path


@pytest.mark.parametrize("split, name", [("train", "train"), ("dev", "validation"), ("test", "test")])
def test_splits_are_the_published_ones(corpus, split, name):
    found, findings = read(corpus, ["de"], (name,))
    ours = [(u.audio.rsplit("/", 1)[1], u.text, u.translation or "", u.speaker) for u in found]
    assert ours
    assert ours == published(corpus / "de", "covost_v2.de_en.tsv", split)
    assert {(u.language, u.split) for u in found} == {("de_de", name)}
    assert not findings.skipped
    assert findings.left_out["marked dev_covost: in no split of CoVoST 2"] == 1


def test_fields(corpus):
    found, findings = read(corpus)
    by_id = {u.id: u for u in found}
    assert list(by_id) == [f"covost2.de_en.c_{i}" for i in (1, 2, 3, 4, 6, 7)]
    first = by_id["covost2.de_en.c_1"]
    assert (first.english, first.translation_language, first.audio) == ('He said "yes', "en_us", str(corpus / "de" / "clips" / "c_1.mp3"))
    assert by_id["covost2.de_en.c_2"].text == "Tab\tund \\Strich"
    # One meaning: the English is the same, and so is the German once composed.
    assert by_id["covost2.de_en.c_3"].sentence_id == by_id["covost2.de_en.c_4"].sentence_id == meaning("Coffee")
    empty = by_id["covost2.de_en.c_6"]
    assert (empty.text, empty.translation, empty.translation_language, empty.sentence_id) == ("NA", None, None, meaning("NA"))
    assert findings.doubts == {"the translation is empty: the clip has a transcript alone": 1}
    assert findings.places["the translation is empty: the clip has a transcript alone"] == [f"{corpus / 'covost_v2.de_en.tsv'}:7: c_6.mp3"]


def test_a_sentence_with_two_translations_keeps_one_id(corpus):
    write_table(corpus / "covost_v2.de_en.tsv", COLUMNS, translated("c_3.mp3", "Coffee", "train"), translated("c_4.mp3", "A café", "train"))
    first, second = read(corpus)[0]
    assert first.translation != second.translation
    assert first.sentence_id == second.sentence_id


def test_nothing_is_dropped_without_a_word(corpus):
    with open(corpus / "covost_v2.de_en.tsv", "ab") as file:
        file.write(b"c_1.mp3\tHe said yes\ttrain\t\nc_9.mp3\tNobody\ttrain\t\nc_5.mp3\n")
        file.write(b"c_5.mp3\tOnly here\ttest\t\n")
    with open(corpus / "de" / "validated.tsv", "ab") as file:
        file.write(b"s2\tc_7.mp3\tNochmal\t\t\t\t\t\n")
        file.write(b"s2\tc_10.mp3\tUngefragt\t\t\t\t\t\n")
    (corpus / "de" / "clips" / "c_2.mp3").unlink()
    # The speaker of two training clips says a test sentence too.
    text = (corpus / "de" / "validated.tsv").read_text().replace("s4\tc_5", "s1\tc_5")
    (corpus / "de" / "validated.tsv").write_text(text)
    found, findings = read(corpus, ["de"], ("train",))
    assert [u.id for u in found] == ["covost2.de_en.c_1", "covost2.de_en.c_3"]
    assert findings.skipped == {
        "the clip is already in the table": 1,
        "the clip is not there": 1,
        "the clip is already in validated.tsv": 1,
        "validated.tsv has no such clip": 1,
        "the line has not 4 cells": 1,
    }
    assert findings.left_out == {
        "marked dev_covost: in no split of CoVoST 2": 1,
        "of the split validation": 1,
        "of the split test": 3,
    }
    # Seen although only the training split was asked for.
    assert findings.doubts == {"a speaker is in the splits test and train": 1}
    lines = len((corpus / "covost_v2.de_en.tsv").read_text().splitlines()) - 1
    of_the_table = sum(findings.skipped.values()) - findings.skipped["the clip is already in validated.tsv"]
    assert lines == len(found) + of_the_table + sum(findings.left_out.values())


def test_the_account_of_a_manifest(corpus):
    summary = writing.write("covost2", corpus, corpus / "all.jsonl")
    assert [u.id for u in read_manifest(corpus / "all.jsonl")] == [u.id for u in read(corpus)[0]]
    assert summary.utterances == {("de_de", "train"): 3, ("de_de", "validation"): 1, ("de_de", "test"): 2}
    assert summary.translations == 5  # of six: one is empty
    # Beside the manifest, so that the folder can be moved.
    assert '"audio": "de/clips/c_1.mp3"' in (corpus / "all.jsonl").read_text()


def test_from_english(tmp_path):
    write_table(tmp_path / "en" / "validated.tsv", HEADERS[0], row("c_1.mp3", "Good day"))
    write_clips(tmp_path / "en", "c_1.mp3")
    for code, text in (("de", "Guten Tag"), ("sv-SE", "God dag")):
        write_table(tmp_path / "en" / f"covost_v2.en_{code}.tsv", COLUMNS, translated("c_1.mp3", text, "train"))
    (german,), _ = read(tmp_path, (), into="de")
    (swedish,), _ = read(tmp_path, ["english"], into="sv")
    assert (german.id, german.text, german.language) == ("covost2.en_de.c_1", "Good day", "en_us")
    assert (german.translation, german.translation_language, german.english) == ("Guten Tag", "de_de", None)
    assert (swedish.id, swedish.translation) == ("covost2.en_sv-SE.c_1", "God dag")
    assert german.sentence_id == swedish.sentence_id == meaning("Good day")


def test_what_is_not_there_is_named(corpus):
    with pytest.raises(UserError, match=r"holds no covost_v2\.fr_en\.tsv; copy it there"):
        read(corpus, ["fr"])
    with pytest.raises(UserError, match="CoVoST 2 has no Polish into English; it has"):
        read(corpus, ["pl"])
    with pytest.raises(UserError, match="CoVoST 2 has no English into French; it has nothing into French"):
        read(corpus, ["en"], into="fr")
    with pytest.raises(UserError, match="CoVoST 2 has no German into Turkish; it has English into Turkish"):
        read(corpus, ["de"], into="tr")
    with pytest.raises(UserError, match=r"holds no covost_v2\.\*_tr\.tsv"):
        read(corpus, into="tr")
    with pytest.raises(UserError, match="split dev: CoVoST 2 has train, validation, test"):
        read(corpus, ["de"], ("dev",))
    write_table(corpus / "covost_v2.de_en.tsv", "path\ttranslation", {"path": "c_1.mp3", "translation": "x"})
    with pytest.raises(UserError, match=r"covost_v2\.de_en\.tsv:1: no column split"):
        read(corpus, ["de"])
    (corpus / "de" / "validated.tsv").unlink()
    with pytest.raises(UserError, match=r"no validated\.tsv for German"):
        read(corpus, ["de"])
