import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import soundfile

from xretrieval.corpora.manifest import read_manifest
from xretrieval.demo import corpus, voices
from xretrieval.errors import UserError

ARGUMENTS = {
    "seen_languages": "de,en,cmn_hans_cn",
    "unseen_languages": "pl,cs",
    "train_sentences": 12,
    "validation_sentences": 3,
    "test_sentences": 6,
    "seed": 3,
}
MANIFESTS = {"train", "validation", "test", "test_held_out_voices", "text_unseen_train"}


def _bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}


def _manifests(folder):
    return {name: read_manifest(folder / f"{name}.jsonl") for name in MANIFESTS}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    corpus.generate(str(folder), **ARGUMENTS, num_workers=1)
    return folder


def test_manifests_and_their_recordings(made):
    manifests = _manifests(made)
    assert {name: len(rows) for name, rows in manifests.items()} == {
        "train": 36,
        "validation": 9,
        "test": 30,
        "test_held_out_voices": 30,
        "text_unseen_train": 24,
    }
    for name, rows in manifests.items():
        for row in rows:
            assert row.split == ("train" if name == "text_unseen_train" else name)
            assert (row.audio is None) == (name == "text_unseen_train")
            assert row.translation_language == (None if row.language == "en_us" else "en_us")
            if row.audio:
                info = soundfile.info(row.audio)
                assert (info.samplerate, info.subtype, info.channels, info.frames / 16000) == (row.sampling_rate, "PCM_16", 1, row.duration)
                assert os.path.relpath(row.audio, made).startswith(f"audio/{row.language}/")
    ids = [row.id for name, rows in manifests.items() for row in rows]
    assert len(set(ids)) == len(ids)
    on_disk = {str(path) for path in (made / "audio").rglob("*") if path.is_file()}
    assert on_disk == {row.audio for rows in manifests.values() for row in rows if row.audio}


def test_unseen_languages_are_recorded_for_tests_only(made):
    manifests = _manifests(made)
    recorded = {name: {row.language for row in rows if row.audio} for name, rows in manifests.items()}
    seen, every = {"de_de", "en_us", "cmn_hans_cn"}, {"de_de", "en_us", "cmn_hans_cn", "pl_pl", "cs_cz"}
    assert recorded == {"train": seen, "validation": seen, "test": every, "test_held_out_voices": every, "text_unseen_train": set()}
    assert {row.language for row in manifests["text_unseen_train"]} == {"pl_pl", "cs_cz"}
    assert {folder.name for folder in (made / "audio" / "pl_pl").iterdir()} == {"test", "test_held_out_voices"}


def test_a_sentence_id_is_one_meaning_and_splits_are_disjoint(made):
    manifests = _manifests(made)
    english = {}
    for rows in manifests.values():
        for row in rows:
            meaning = row.text if row.language == "en_us" else row.translation
            assert english.setdefault(row.sentence_id, meaning) == meaning
    assert len(set(english.values())) == len(english) == 12 + 3 + 6
    ids = {name: {row.sentence_id for row in rows} for name, rows in manifests.items()}
    assert ids["train"] == ids["text_unseen_train"]
    assert ids["test"] == ids["test_held_out_voices"]
    assert len(ids["train"] | ids["validation"] | ids["test"]) == 12 + 3 + 6
    for name in ("train", "test"):
        texts = [(row.language, row.text) for row in manifests[name]]
        assert len(set(texts)) == len(texts)


def test_held_out_voices_are_heard_nowhere_else(made):
    heard = {name: {row.speaker for row in rows if row.audio} for name, rows in _manifests(made).items()}
    assert heard["test_held_out_voices"] <= set(voices.HELD_OUT_VARIANTS)
    assert heard["train"] | heard["validation"] | heard["test"] <= set(voices.TRAINING_VARIANTS)


def test_the_same_bytes_from_two_workers(made, tmp_path):
    corpus.generate(str(tmp_path), **ARGUMENTS, num_workers=2)
    assert _bytes(tmp_path) == _bytes(made)


def test_other_languages_and_more_training_sentences_change_no_recording(made, tmp_path):
    other = ARGUMENTS | {"seen_languages": "de,fr", "unseen_languages": ["pl"], "train_sentences": 14}
    corpus.generate(str(tmp_path), **other, num_workers=1)
    mine, theirs = _bytes(tmp_path / "audio" / "de_de"), _bytes(made / "audio" / "de_de")
    assert theirs.items() <= mine.items()
    assert _bytes(tmp_path / "audio" / "pl_pl") == _bytes(made / "audio" / "pl_pl")


def test_another_seed_is_another_corpus(made, tmp_path):
    corpus.generate(str(tmp_path), **ARGUMENTS | {"seed": 4}, num_workers=1)
    mine, theirs = _bytes(tmp_path / "audio"), _bytes(made / "audio")
    assert mine.keys() == theirs.keys()
    assert not set(mine.values()) & set(theirs.values())


def test_corpus_json(made):
    record = json.loads((made / "corpus.json").read_text())
    assert record["seen_languages"] == ["cmn_hans_cn", "de_de", "en_us"]
    assert (record["seed"], record["slots"], record["train_sentences"]) == (3, "easy", 12)
    assert record["packages"].keys() == {"babel", "espeakng-loader", "soundfile", "soxr"}
    assert len(record["fingerprint"]) == 64


def test_running_again_reuses_everything(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    corpus.generate(str(made), **ARGUMENTS, num_workers=2)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_what_is_missing_or_broken_is_made_again(made, tmp_path):
    corpus.generate(str(tmp_path), **ARGUMENTS, num_workers=1)
    recordings = sorted((tmp_path / "audio").rglob("*.flac"))
    recordings[0].unlink()
    recordings[1].write_bytes(b"")
    (tmp_path / "train.jsonl").unlink()
    kept = recordings[2].stat().st_mtime_ns
    corpus.generate(str(tmp_path), **ARGUMENTS, num_workers=1)
    assert _bytes(tmp_path) == _bytes(made)
    assert recordings[2].stat().st_mtime_ns == kept


def _start(folder, **arguments):
    code = (
        f"from xretrieval.demo.corpus import generate\nif __name__ == '__main__':\n    generate({str(folder)!r}, **{ARGUMENTS | arguments})"
    )
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_ends_cleanly_and_goes_on(tmp_path, how):
    longer = {"train_sentences": 100, "num_workers": 2}
    process = _start(tmp_path, **longer)
    while not any((tmp_path / "audio" / "de_de" / "train").glob("*.flac") if (tmp_path / "audio").exists() else ()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    # As a terminal does it: Ctrl-C reaches the workers too.
    (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    message = process.communicate(timeout=20)[1]
    assert process.returncode != 0
    if how == signal.SIGINT:
        assert message.count("Traceback") == 1
        assert "KeyboardInterrupt" in message
        assert not list(tmp_path.rglob("*.tmp"))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    assert kept
    assert not list(tmp_path.glob("*.jsonl"))
    finished = _start(tmp_path, **longer | {"seen_languages": "de,en,cmn"})
    assert finished.wait(timeout=60) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(read_manifest(tmp_path / "train.jsonl")) == 300


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 4}, "seed: 3 there, 4 now.*another folder"),
        ({"slots": "hard"}, "slots: easy there, hard now"),
        ({"train_sentences": 13}, "train_sentences: 12 there, 13 now"),
        ({"unseen_languages": "pl"}, r"unseen_languages: \['cs_cz', 'pl_pl'\] there, \['pl_pl'\] now"),
    ],
)
def test_other_parameters_in_the_same_folder_are_an_error(made, change, message):
    before = _bytes(made)
    with pytest.raises(UserError, match=message) as caught:
        corpus.generate(str(made), **ARGUMENTS | change)
    assert str(made) in str(caught.value)
    assert _bytes(made) == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seen_languages": "de,mn"}, "no Mongolian .mn_mn.: espeak-ng has no voice"),
        ({"unseen_languages": "ja"}, "no Japanese"),
        ({"seen_languages": "gemran"}, "nearest known one is de_de"),
        ({"seen_languages": ""}, "seen_languages: empty"),
        ({"unseen_languages": "de"}, "de_de: both in seen_languages and in unseen_languages"),
        ({"seen_languages": "de", "unseen_languages": "en"}, "English cannot be unseen"),
        ({"test_sentences": 0}, "test_sentences=0"),
        ({"slots": "medium"}, "'easy' and 'hard'"),
        ({"train_sentences": 11000}, "at most 10240"),
    ],
)
def test_wrong_arguments_are_errors_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        corpus.generate(str(tmp_path / "corpus"), **ARGUMENTS | change)
    assert not (tmp_path / "corpus").exists()


def test_no_unseen_language_is_fine(tmp_path):
    corpus.generate(str(tmp_path), **ARGUMENTS | {"seen_languages": "de", "unseen_languages": ""}, num_workers=1)
    assert read_manifest(tmp_path / "text_unseen_train.jsonl") == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/corpus: cannot be made .Not a directory."):
        corpus.generate(str(tmp_path / "file" / "corpus"), **ARGUMENTS)
    (tmp_path / "corpus.json").write_text("{")
    with pytest.raises(UserError, match="corpus.json: cannot be read"):
        corpus.generate(str(tmp_path), **ARGUMENTS)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_no_space_is_one_clear_error_and_finished_work_is_kept(made, tmp_path, num_workers):
    # A limit on the size of files stands for a full disk: the longest recordings do not fit.
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (45000, 45000))\n"
        f"from xretrieval.demo.corpus import UserError, generate\n"
        f"if __name__ == '__main__':\n"
        f"    try: generate({str(tmp_path)!r}, **{ARGUMENTS}, num_workers={num_workers})\n"
        f"    except UserError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{tmp_path}/audio/" in said.stdout
    assert ".flac: cannot be written (File too large); free space or give another folder" in said.stdout
    assert said.stderr == ""
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    assert kept
    assert not list(tmp_path.rglob("*.tmp"))
    corpus.generate(str(tmp_path), **ARGUMENTS, num_workers=1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert _bytes(tmp_path) == _bytes(made)
