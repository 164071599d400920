"""FLEURS in the three forms that it lies on disks in."""

import contextlib
import gzip
import io
import pathlib
import random
import shutil
import tarfile
import zlib

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from xretrieval.corpora.audio import load_audio
from xretrieval.corpora.readers import fleurs
from xretrieval.corpora.readers.findings import Findings
from xretrieval.errors import UserError

# id, file, raw transcription, transcription, gender
GERMAN = [
    ("12", "a.wav", 'Er sagte: "Ja', 'er sagte "ja', "MALE"),
    ("12", "b.wav", 'Er sagte: "Ja', 'er sagte "ja', "FEMALE"),
    ("7", "c.wav", "Nur\u00a0deutsch.", "nur deutsch", "MALE"),
    ("9", "gone.wav", "Fehlt.", "fehlt", "MALE"),
    ("12", "a.wav", "Noch einmal.", "noch einmal", "MALE"),
    ("9²", "d.wav", "Keine Zahl.", "keine zahl", "MALE"),
]
ENGLISH = [("12", "e.wav", 'He said: "Yes', 'he said "yes', "MALE"), ("9", "f.wav", "Missing.", "missing", "MALE")]


def wav(seed):
    out = io.BytesIO()
    soundfile.write(out, np.random.default_rng(seed).normal(size=1_600) * 0.1, 16_000, format="WAV", subtype="PCM_16")
    return out.getvalue()


SOUNDS = {name: wav(number) for number, name in enumerate(["a.wav", "b.wav", "c.wav", "d.wav", "e.wav", "f.wav", "unnamed.wav"])}


def table(rows):
    return "".join("\t".join([id_, file, raw, plain, " | ".join(plain), "1600", gender]) + "\n" for id_, file, raw, plain, gender in rows)


def as_tree(root, code, split, rows):
    folder = root / code / "audio" / split
    folder.mkdir(parents=True)
    (root / code / f"{split}.tsv").write_text(table(rows), encoding="utf-8")
    for _, file, *_ in rows:
        if file in SOUNDS:
            (folder / file).write_bytes(SOUNDS[file])
    if code == "de_de":
        (folder / "unnamed.wav").write_bytes(SOUNDS["unnamed.wav"])


def as_archive(root, code, split, rows):
    as_tree(root, code, split, rows)
    folder = root / code / "audio" / split
    with tarfile.open(root / code / "audio" / f"{split}.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname=split)
    shutil.rmtree(folder)


def as_parquet(root, code, split, rows):
    folder = root / "data" / code
    folder.mkdir(parents=True, exist_ok=True)
    name = {"dev": "validation"}.get(split, split)
    columns = {
        "id": [int(id_) if id_.isdecimal() else 0 for id_, *_ in rows],
        "audio": [{"bytes": SOUNDS.get(file), "path": file} for _, file, *_ in rows],
        "raw_transcription": [raw for _, _, raw, *_ in rows],
        "transcription": [plain for _, _, _, plain, _ in rows],
    }
    parquet.write_table(pyarrow.table(columns), folder / f"{name}-00000-of-00001.parquet")


FORMS = {"tree": as_tree, "archive": as_archive, "parquet": as_parquet}


@pytest.fixture(params=FORMS)
def source(request, tmp_path):
    for code, split, rows in (("de_de", "train", GERMAN), ("en_us", "train", ENGLISH[:1]), ("en_us", "dev", ENGLISH[1:])):
        FORMS[request.param](tmp_path / "fleurs", code, split, rows)
    return tmp_path / "fleurs"


def read(source, tmp_path, **more):
    findings = Findings()
    found = list(fleurs.read(source, findings, **{"languages": ["de"], "splits": ["train"], "audio_dir": tmp_path / "audio", **more}))
    return found, findings


def test_recordings_texts_and_english(source, tmp_path):
    found, findings = read(source, tmp_path)
    found = [u for u in found if u.id != "fleurs.de_de.train.d"]  # a parquet's ids are numbers
    assert [(u.id, u.sentence_id, u.text, u.translation) for u in found] == [
        ("fleurs.de_de.train.a", "fleurs.12", 'Er sagte: "Ja', 'He said: "Yes'),
        ("fleurs.de_de.train.b", "fleurs.12", 'Er sagte: "Ja', 'He said: "Yes'),
        ("fleurs.de_de.train.c", "fleurs.7", "Nur\u00a0deutsch.", None),
    ]
    for utterance, name in zip(found, ("a.wav", "b.wav", "c.wav"), strict=True):
        assert pathlib.Path(utterance.audio).read_bytes() == SOUNDS[name]
        assert len(load_audio(utterance.audio)) == 1_600
    assert findings.skipped["the recording is not there"] == 1
    assert findings.skipped["the recording is already in this split"] == 1
    assert findings.left_out["translations of sentences that en_us lacks"] >= 1
    if (source / "de_de").exists():
        assert findings.skipped["the id is not a number"] == 1
        assert findings.left_out["recordings of de_de that train.tsv does not name"] == 1


def test_plain_transcriptions_and_english_itself(source, tmp_path):
    found, _ = read(source, tmp_path, text="transcription", languages=["en_us"], splits=["train", "validation"])
    assert [(u.text, u.translation, u.split) for u in found] == [('he said "yes', None, "train"), ("missing", None, "validation")]


def test_a_stopped_unpacking_goes_on_and_foreign_files_are_not_taken(tmp_path):
    as_archive(tmp_path / "fleurs", "de_de", "train", GERMAN[:3])
    out = tmp_path / "audio/de_de/train"
    out.mkdir(parents=True)
    (out / "b.wav").write_bytes(SOUNDS["b.wav"])
    before = (out / "b.wav").stat().st_mtime_ns
    assert len(read(tmp_path / "fleurs", tmp_path)[0]) == 3
    assert (out / "b.wav").stat().st_mtime_ns == before
    assert sorted(path.name for path in out.iterdir()) == ["a.wav", "b.wav", "c.wav"]
    (out / "a.wav").unlink()
    (out / "b.wav").write_bytes(b"other")
    with pytest.raises(UserError, match=r"b\.wav: is there with other content"):
        read(tmp_path / "fleurs", tmp_path)


def test_names_cannot_leave_the_folder(tmp_path):
    as_archive(tmp_path / "fleurs", "de_de", "train", GERMAN[:1])
    tsv = tmp_path / "fleurs/de_de/train.tsv"
    tsv.write_text(tsv.read_text().replace("a.wav", "../a.wav"))
    (tmp_path / "audio/de_de/train").mkdir(parents=True)
    (tmp_path / "audio/de_de/a.wav").write_bytes(SOUNDS["a.wav"])
    found, findings = read(tmp_path / "fleurs", tmp_path)
    assert not found
    assert findings.skipped["the recording is not there"] == 1


def test_what_is_missing_or_damaged_is_named(tmp_path):
    root = tmp_path / "fleurs"
    as_archive(root, "de_de", "train", GERMAN[:3])
    for arguments, message in (
        ({"languages": ["fr"]}, "no folder fr_fr"),
        ({"splits": ["test"]}, r"has neither test\.tsv nor parquet files"),
        ({"splits": ["dev"]}, "FLEURS has train, validation, test"),
        ({"text": "raw"}, "raw_transcription and transcription"),
        ({"audio_dir": None}, "give a folder for them"),
    ):
        with pytest.raises(UserError, match=message):
            read(root, tmp_path, **arguments)
    archive = root / "de_de/audio/train.tar.gz"
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(UserError, match=r"train\.tar\.gz: damaged"):
        read(root, tmp_path)
    archive.unlink()
    with pytest.raises(UserError, match=r"neither audio/train/ nor audio/train\.tar\.gz"):
        read(root, tmp_path)


def _unpacked(archive):
    with contextlib.suppress(OSError, EOFError, zlib.error):
        return gzip.decompress(archive)
    return None


def test_a_flipped_bit_of_an_archive_is_refused_and_nothing_of_it_stays(tmp_path):
    as_archive(tmp_path / "fleurs", "de_de", "train", GERMAN[:3])
    archive = tmp_path / "fleurs/de_de/audio/train.tar.gz"
    whole = archive.read_bytes()
    draw, found = random.Random(0), 0
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[draw.randrange(10, len(damaged))] ^= 1 << draw.randrange(8)
        if _unpacked(damaged) == _unpacked(whole):
            continue  # in the name that gzip keeps, or in the bits that fill its last byte: nothing is damaged
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train\.tar\.gz: damaged"):
            read(tmp_path / "fleurs", tmp_path)
        assert not list((tmp_path / "audio").rglob("*.wav"))
        found += 1
    assert found >= 15


def test_parquet_in_shards_goes_on_after_a_stop(tmp_path):
    folder = tmp_path / "fleurs/data/de_de"
    for shard, rows in enumerate((GERMAN[:1], GERMAN[1:3])):
        as_parquet(tmp_path / "fleurs", "de_de", "train", rows)
        (folder / "train-00000-of-00001.parquet").rename(folder / f"shard-train-0000{shard}-of-00002.parquet")
    as_parquet(tmp_path / "fleurs", "de_de", "dev", GERMAN[3:])
    stopped = fleurs.read(tmp_path / "fleurs", Findings(), ["de"], ["train"], tmp_path / "audio")
    first = pathlib.Path(next(stopped).audio)
    stopped.close()
    assert [path.name for path in first.parent.iterdir()] == ["a.wav"]
    before = first.stat().st_mtime_ns
    assert [u.id.rsplit(".", 1)[1] for u in read(tmp_path / "fleurs", tmp_path)[0]] == ["a", "b", "c"]
    assert first.stat().st_mtime_ns == before


def test_english_is_joined_by_id_from_any_form(tmp_path):
    as_parquet(tmp_path / "fleurs", "de_de", "train", GERMAN[:4])
    as_parquet(tmp_path / "fleurs", "en_us", "test", ENGLISH[::-1])
    found, _ = read(tmp_path / "fleurs", tmp_path)
    assert [u.translation for u in found] == ['He said: "Yes', 'He said: "Yes', None]
    shutil.rmtree(tmp_path / "fleurs/data/en_us")
    as_tree(tmp_path / "fleurs/data", "en_us", "train", [*ENGLISH, ("12", "g.wav", "Otherwise.", "otherwise", "MALE")])
    found, findings = read(tmp_path / "fleurs", tmp_path)
    assert [u.translation for u in found] == ['He said: "Yes', 'He said: "Yes', None]
    assert findings.doubts == {"a sentence has several English texts: the first is taken": 1}
    shutil.rmtree(tmp_path / "fleurs/data/en_us")
    found, findings = read(tmp_path / "fleurs", tmp_path)
    assert {u.translation for u in found} == {None}
    assert findings.doubts == {"no en_us beside the others: nothing has a translation": 1}


def test_damaged_parquet_is_named(tmp_path):
    as_parquet(tmp_path / "fleurs", "de_de", "train", GERMAN[:3])
    path = tmp_path / "fleurs/data/de_de/train-00000-of-00001.parquet"
    table_ = parquet.read_table(path)
    parquet.write_table(table_, path, write_page_checksum=True, compression="none")
    flipped = path.read_bytes().replace(SOUNDS["b.wav"][100:140], SOUNDS["b.wav"][100:139] + b"?")
    for content in (path.read_bytes()[:-50], b"PAR1", b"", flipped):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: damaged"):
            read(tmp_path / "fleurs", tmp_path)
    parquet.write_table(table_.drop_columns(["raw_transcription"]), path)
    with pytest.raises(UserError, match=r"no column raw_transcription; its columns are id, audio, transcription"):
        read(tmp_path / "fleurs", tmp_path)
