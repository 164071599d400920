import json

import numpy as np
import pytest
import soundfile
from rich.console import Console

from xretrieval.corpora.check import check_manifest, print_report
from xretrieval.errors import UserError


def write_sound(path, seconds, rate=8_000):
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate)), rate)


def write_manifest(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(tmp_path):
    write_sound(tmp_path / "long.wav", seconds=36.0)
    write_sound(tmp_path / "short.flac", seconds=1.8)
    return tmp_path


def utterance(name, **fields):
    return {"id": name, "audio": "long.wav", "start": 1.0, "duration": 9.0, "text": "guten Tag", "language": "de"} | fields


def test_a_good_manifest_is_counted_by_language_and_split(corpus):
    rows = [
        utterance("a", split="train"),
        utterance("b", split="train", start=10, duration=26, sampling_rate=8000),
        utterance("c", split="test", text="ein anderer Satz", audio="short.flac", start=None, duration=None),
        utterance("d", split="train", language="fr_fr"),
        {"id": "e", "text": "only text", "language": "en", "split": "train"},
    ]
    report = check_manifest(write_manifest(corpus / "m.jsonl", rows))
    assert report.problems == []
    assert report.warnings == []
    assert report.utterances == 5
    tallies = {key: (tally.utterances, tally.seconds) for key, tally in report.tallies.items()}
    assert tallies == {
        ("de_de", "test"): (1, 1.8),
        ("de_de", "train"): (2, 35.0),
        ("en_us", "train"): (1, 0.0),
        ("fr_fr", "train"): (1, 9.0),
    }


def test_a_text_that_is_in_train_and_in_test_is_a_warning(corpus):
    rows = [utterance("a", split="train"), utterance("b", split="test", text=" GUTEN  Tag")]
    (warning,) = check_manifest(write_manifest(corpus / "m.jsonl", rows)).warnings
    assert "split test shares 1 values" in warning


def test_each_problem_is_reported_with_its_line(corpus):
    (corpus / "damaged.wav").write_bytes((corpus / "long.wav").read_bytes()[:3_000])
    rows = [
        utterance("a"),  # 1: good
        "{not json",  # 2
        utterance("b", language="klingon"),  # 3
        {"id": "c", "language": "de"},  # 4
        utterance("a"),  # 5
        utterance("d", audio="nowhere.wav"),  # 6
        utterance("e", audio="damaged.wav", start=0, duration=0.1),  # 7
        utterance("f", sampling_rate=16000),  # 8
        utterance("g", start=30.0, duration=7.0),  # 9
        utterance("h", duration="long"),  # 10
        utterance("i", text="", start=0.0),  # 11: a warning
        "",  # 12: blank
        utterance("j", duration=0.01),  # 13
        utterance("k", speeker="x"),  # 14
    ]
    report = check_manifest(write_manifest(corpus / "m.jsonl", rows))
    expected = {
        2: "not JSON",
        3: "klingon",
        4: "field text: missing",
        5: "'a' is already the id of line 1",
        6: "nowhere.wav: cannot be read (No such file or directory)",
        7: "damaged.wav: damaged: cut off",
        8: "field sampling_rate: 16000 Hz, but .* has 8000 Hz",
        9: "from 30 s to 37 s reaches beyond the end of the file, 36.000 s",
        10: "field duration: 'long' is not a number",
        13: "0.010 s of sound, at least 0.05 s",
        14: "unknown field 'speeker' .nearest: 'speaker'",
    }
    assert len(report.problems) == len(expected)
    for (line, reason), problem in zip(expected.items(), report.problems, strict=True):
        assert problem.startswith(f"{corpus / 'm.jsonl'}:{line}: ")
        with pytest.raises(UserError, match=reason.replace("(", "[(]").replace(")", "[)]")):
            raise UserError(problem)
    assert [w.split(": ")[0] for w in report.warnings] == [f"{corpus / 'm.jsonl'}:11"]
    assert report.utterances == 2


def test_without_probing_only_missing_files_are_found(corpus):
    (corpus / "damaged.wav").write_bytes(b"RIFF")
    rows = [utterance("a"), utterance("b", audio="damaged.wav", duration=None), utterance("c", audio="nowhere.wav")]
    report = check_manifest(write_manifest(corpus / "m.jsonl", rows), probe_audio=False)
    assert [problem.split(": ")[-1] for problem in report.problems] == ["no such file; correct the field audio, or copy the file there"]
    tally = report.tallies["de_de", "m"]
    assert (tally.utterances, tally.seconds, tally.unknown_length) == (2, 9.0, 1)


def test_sentences_shared_with_training_are_a_warning(corpus):
    rows = [
        utterance(f"{split}{i}", sentence_id=f"s{i}", split=split) for split in ("train", "test") for i in range(1 + (split == "train"))
    ]
    report = check_manifest(write_manifest(corpus / "m.jsonl", rows))
    assert report.problems == []
    assert len(report.warnings) == 1
    assert "split test shares 1 values of sentence_id with train, such as 's0'" in report.warnings[0]


def test_an_empty_and_a_missing_manifest(tmp_path):
    report = check_manifest(write_manifest(tmp_path / "m.jsonl", []))
    assert len(report.problems) == 1
    assert "m.jsonl: the manifest is empty" in report.problems[0]
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        check_manifest(tmp_path / "nowhere.jsonl")


def test_the_printed_report_keeps_each_problem_on_one_line(corpus):
    rows = [utterance("a"), utterance("b" * 150, audio="nowhere-[bold].wav"), utterance("c", text="")]
    report = check_manifest(write_manifest(corpus / "m.jsonl", rows))
    console = Console(width=60, record=True)
    print_report(report, console)
    lines = console.export_text().splitlines()
    assert lines[0] == report.problems[0]
    assert lines[1] == report.warnings[0]
    assert lines[-1] == "1 problems, 1 warnings, 2 utterances without a problem"
    assert "nowhere-[bold].wav" in lines[0]
