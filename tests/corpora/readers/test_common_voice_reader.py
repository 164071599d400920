import pytest

from xretrieval.corpora.manifest import meaning
from xretrieval.corpora.readers import common_voice
from xretrieval.corpora.readers.findings import Findings
from xretrieval.errors import UserError

# Header rows of releases 4, 6.1, 7 to 16, and 17 on.
HEADERS = [
    "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent",
    "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent\tlocale\tsegment",
    "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment",
    "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment",
]


def write_table(path, header, *rows, end="\n"):
    """Rows are dictionaries of the cells that matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = header.split("\t")
    lines = [header, *("\t".join(row.get(name, "") for name in names) for row in rows)]
    path.write_bytes("".join(line + end for line in lines).encode())


def write_clips(folder, *names):
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / "clips" / name).write_bytes(b"sound")


def row(path, sentence, speaker="s1"):
    return {"path": path, "sentence": sentence, "client_id": speaker}


def read(source, *arguments, **more):
    findings = Findings()
    return list(common_voice.read(source, findings, *arguments, **more)), findings


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_release(tmp_path, header, end):
    folder = tmp_path / "cv-corpus-17.0-2024-03-15" / "de"
    write_table(folder / "train.tsv", header, row("common_voice_de_1.mp3", 'Er sagte "ja".'), row("2", "e\u0301", "s2"), end=end)
    write_table(folder / "dev.tsv", header, row("common_voice_de_3.mp3", "Zwei", "s3"), end=end)
    write_table(folder / "test.tsv", header, end=end)
    write_clips(folder, "common_voice_de_1.mp3", "2.mp3", "common_voice_de_3.wav")
    found, findings = read(tmp_path, ["de"])
    assert [(u.id, u.text, u.speaker, u.split, u.language) for u in found] == [
        ("common_voice.de.common_voice_de_1", 'Er sagte "ja".', "s1", "train", "de_de"),
        ("common_voice.de.2", "e\u0301", "s2", "train", "de_de"),
        ("common_voice.de.common_voice_de_3", "Zwei", "s3", "validation", "de_de"),
    ]
    assert [u.audio for u in found] == [
        str(folder / "clips" / name) for name in ("common_voice_de_1.mp3", "2.mp3", "common_voice_de_3.wav")
    ]
    assert found[1].sentence_id == meaning("é")  # composed or not, the text is the same
    assert not findings.skipped
    assert not findings.doubts


def test_nothing_is_dropped_without_a_word(tmp_path):
    folder = tmp_path / "cy"
    write_table(
        folder / "train.tsv",
        HEADERS[3],
        row("1.mp3", "un"),
        row("1.mp3", "un"),
        row("absent.mp3", "dau"),
        row("/etc/passwd", "tri"),
        row("../2.mp3", "pedwar"),
        row("2.mp3", " "),
        row("3.mp3", '"""Ie,"" meddai."', "s2"),
    )
    with open(folder / "train.tsv", "ab") as file:
        file.write(b"too\tfew\n")
    write_table(folder / "dev.tsv", HEADERS[0], row("4.mp3", "pump", "s2"))
    write_clips(folder, *(f"{i}.mp3" for i in range(1, 5)))
    (folder / "2.mp3").write_bytes(b"outside")
    found, findings = read(tmp_path, (), ("train", "validation"))
    assert [u.text for u in found] == ["un", "", '"Ie," meddai.', "pump"]
    assert findings.skipped == {
        "the clip is already in this split": 1,
        "the clip is not there": 3,
        "the line has not 13 cells": 1,
    }
    assert findings.doubts == {
        "the sentence is empty: the clip can be found, but not trained on": 1,
        "a speaker is in the splits train and validation": 1,
    }
    assert findings.places["the line has not 13 cells"] == [f"{folder / 'train.tsv'}:9: too\tfew"]
    assert findings.places["a speaker is in the splits train and validation"] == [f"{folder / 'dev.tsv'}:2: s2"]
    assert found[1].sentence_id == found[1].id  # not the meaning of every other empty sentence


def test_escapes_are_undone(tmp_path):
    folder = tmp_path / "cy"
    write_table(folder / "train.tsv", HEADERS[0], row("1.mp3", "un\\\tdau \\\\ tri"), row("2.mp3", "C:\\pedwar"))
    write_clips(folder, "1.mp3", "2.mp3")
    found, findings = read(tmp_path, ["cy"], ("train",))
    assert [u.text for u in found] == ["un\tdau \\ tri", "C:\\pedwar"]
    assert not findings.skipped


def test_validated_holds_the_other_splits(tmp_path):
    folder = tmp_path / "cy"
    for name in ("train.tsv", "validated.tsv"):
        write_table(folder / name, HEADERS[0], row("1.mp3", "un"))
    write_clips(folder, "1.mp3")
    found, _ = read(tmp_path, ["cy"], ("train", "validated"))
    assert [(u.split, u.id) for u in found] == [("train", "common_voice.cy.1"), ("validated", "common_voice.cy.validated.1")]


def test_folders_of_languages(tmp_path):
    for name in ("zh-CN", "zh-TW", "sv-SE", "fy-NL", "en"):
        write_table(tmp_path / name / "train.tsv", HEADERS[0], row("1.mp3", "x"))
        write_clips(tmp_path / name, "1.mp3")
    found, findings = read(tmp_path, (), ("train",))
    assert [u.language for u in found] == ["en_us", "sv_se", "cmn_hans_cn", "cmn_hans_cn"]
    assert len({u.id for u in found}) == 4
    assert findings.doubts == {"the folder is of a language that is not of FLEURS: not read": 1}
    assert [u.id for u in read(tmp_path, ["swedish", "zh-TW"], ("train",))[0]] == ["common_voice.sv-SE.1", "common_voice.zh-TW.1"]
    assert [u.language for u in read(tmp_path / "sv-SE", ["sv"], ("train",))[0]] == ["sv_se"]
    with pytest.raises(UserError, match="zh-CN and zh-TW are both Mandarin Chinese; ask for one by its folder's name"):
        read(tmp_path, ["zh"], ("train",))
    with pytest.raises(UserError, match=r"no train\.tsv for German \(a folder such as de\); there are en, fy-NL, sv-SE, zh-CN, zh-TW"):
        read(tmp_path, ["de"], ("train",))
    with pytest.raises(UserError, match=r"holds no dev\.tsv in a folder of a language"):
        read(tmp_path, (), ("validation",))
    with pytest.raises(UserError, match=r"sv-SE/test\.tsv: cannot be read"):
        read(tmp_path, ["sv"], ("train", "test"))
    with pytest.raises(UserError, match="split dev: Common Voice has train, validation, test, validated"):
        read(tmp_path, ["sv"], ("dev",))
    write_table(tmp_path / "cv-corpus-4" / "en" / "train.tsv", HEADERS[0])
    with pytest.raises(UserError, match="are both Common Voice in en; give the folder of one release"):
        read(tmp_path, ["sv"], ("train",))
