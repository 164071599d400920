import hashlib
import json
import os

import pytest

from xretrieval.corpora.manifest import Utterance, check_manifest, read_manifest, write_manifest
from xretrieval.errors import UserError

GOOD = {"id": "a", "audio": "a.wav", "text": "Guten Tag", "language": "de"}


def _write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_round_trip(tmp_path):
    utterances = [
        Utterance(
            id="a",
            sentence_id="1",
            audio=str(tmp_path / "audio" / "a.flac"),
            start=0.5,
            duration=1.25,
            sampling_rate=8000,
            text="Grüße\u2028„x“\t, 你好",
            language="de_de",
            translation="Greetings",
            translation_language="en_us",
            speaker="s",
            split="train",
        ),
        Utterance(id="b", sentence_id="1", text="text only", language="en_us", split="train"),
        Utterance(id="c", sentence_id="2", audio="gs://bucket/c.flac", text="", language="en_us", split="train"),
        Utterance(id="d", sentence_id="3", audio="/elsewhere/d.flac", text="", language="en_us", split="train"),
    ]
    path = tmp_path / "train.jsonl"
    write_manifest(path, utterances)
    assert read_manifest(path) == utterances
    assert [json.loads(line)["audio"] for line in path.read_text(encoding="utf-8").strip().split("\n")] == [
        "audio/a.flac",
        None,
        "gs://bucket/c.flac",
        "/elsewhere/d.flac",
    ]
    assert os.listdir(tmp_path) == ["train.jsonl"]


def test_a_moved_folder_still_finds_its_audio(tmp_path):
    (tmp_path / "one").mkdir()
    write_manifest(
        tmp_path / "one" / "test.jsonl",
        [Utterance(id="a", sentence_id="a", audio=str(tmp_path / "one" / "a.wav"), text="", language="de_de", split="test")],
    )
    (tmp_path / "one").rename(tmp_path / "two")
    assert read_manifest(tmp_path / "two" / "test.jsonl")[0].audio == str(tmp_path / "two" / "a.wav")


def test_relative_manifest_path_gives_absolute_audio(tmp_path, monkeypatch):
    _write(tmp_path / "test.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    assert read_manifest("test.jsonl")[0].audio == str(tmp_path / "a.wav")


def test_defaults(tmp_path):
    meaning = "text-" + hashlib.sha256(b"guten tag").hexdigest()[:16]
    assert read_manifest(_write(tmp_path / "prompts.jsonl", GOOD, "")) == [
        Utterance(id="a", sentence_id=meaning, audio=str(tmp_path / "a.wav"), text="Guten Tag", language="de_de", split="prompts")
    ]


def test_a_manifest_is_found_without_its_suffix(tmp_path):
    found = read_manifest(_write(tmp_path / "prompts.jsonl", GOOD, ""))
    assert read_manifest(tmp_path / "prompts") == found
    (tmp_path / "own.tsv").write_text("id\tlanguage\ttext\na\tde\tja\n")
    assert [u.text for u in read_manifest(tmp_path / "own")] == ["ja"]
    with pytest.raises(UserError, match="neither: no such manifest"):
        read_manifest(tmp_path / "neither")


def test_tsv(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text(
        '\ufeffid\taudio\ttext\tlanguage\tstart\tsampling_rate\r\na\tx/a.wav\tEr sagte "ja"\tde-DE\t\t8000\r\nb\tb.wav\t\tfr\t1.5\t\r\n',
        encoding="utf-8",
    )
    first, second = read_manifest(path)
    assert (first.text, first.language, first.start, first.sampling_rate, first.audio) == (
        'Er sagte "ja"',
        "de_de",
        None,
        8000,
        str(tmp_path / "x/a.wav"),
    )
    assert (second.text, second.language, second.start, second.sampling_rate, second.split) == ("", "fr_fr", 1.5, None, "own")


@pytest.mark.parametrize(
    "row, message",
    [
        ("{not json", "not JSON"),
        ("[1]", "not a JSON object"),
        ({**GOOD, "sentance_id": "1"}, "unknown field 'sentance_id' .nearest: 'sentence_id'"),
        ({"id": "b", "audio": "a.wav", "language": "de"}, "field text: missing"),
        ({**GOOD, "id": 7}, "field id: 7 is not a string"),
        ({**GOOD, "id": ""}, "field id: empty"),
        ({**GOOD, "language": "dee"}, "unknown language 'dee'; the nearest known one is de_de"),
        ({**GOOD, "start": -1}, "field start: -1 is out of range"),
        ({**GOOD, "duration": 0}, "field duration: 0 is out of range"),
        ({**GOOD, "duration": "long"}, "field duration: 'long' is not a number"),
        ({**GOOD, "duration": True}, "field duration: True is not a number"),
        ({**GOOD, "duration": float("nan")}, "field duration: nan is out of range"),
        ({**GOOD, "sampling_rate": 8000.5}, "field sampling_rate: 8000.5 is not a whole number"),
        ({**GOOD, "translation": "Hello"}, "translation and translation_language"),
        ({"id": "b", "text": "", "language": "de"}, "fields audio and text: both missing"),
    ],
)
def test_a_bad_line_names_file_line_field_and_reason(tmp_path, row, message):
    path = _write(tmp_path / "own.jsonl", {**GOOD, "id": "first"}, row)
    with pytest.raises(UserError, match=rf"own\.jsonl:2: .*{message}"):
        read_manifest(path)


def test_check_lists_every_bad_line_and_keeps_the_good_ones(tmp_path):
    path = _write(tmp_path / "own.jsonl", GOOD, "{", {**GOOD, "text": None}, GOOD, {**GOOD, "id": "b"})
    utterances, problems = check_manifest(path)
    assert [u.id for u in utterances] == ["a", "b"]
    assert [problem.split(":")[1] for problem in problems] == ["2", "3", "4"]
    assert "already the id of line 1" in problems[2]
    with pytest.raises(UserError, match="and 2 more such lines"):
        read_manifest(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"id\ttext\n", "lacks the column 'language'"),
        (b"id\ttext\tlang\n", "unknown field 'lang'"),
        (b"id\ttext\tlanguage\na\tb\n", "own.tsv:2: 2 cells where the header row has 3"),
        (b"id\ttext\tlanguage\na\t\xff\tde\n", "not UTF-8"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    (tmp_path / "own.tsv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / "own.tsv")


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="missing.jsonl: no such manifest"):
        read_manifest(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="ends in .jsonl"):
        read_manifest(tmp_path / "own.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_manifest(tmp_path / "file" / "own.jsonl", [])


def test_a_failed_write_leaves_the_old_manifest(tmp_path):
    path = _write(tmp_path / "own.jsonl", GOOD)
    before = path.read_bytes()

    def interrupted():
        yield read_manifest(path)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, interrupted())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["own.jsonl"]
