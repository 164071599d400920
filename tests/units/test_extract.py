"""Bulk extraction: N in = N out + N failed, the same bytes whatever the windows, the workers, the runner, and whenever it was killed."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from xretrieval.corpora import shards
from xretrieval.corpora.audio import AudioLimits
from xretrieval.errors import UserError
from xretrieval.units import extract as lib
from xretrieval.units.encoders.encoder import Encoder
from xretrieval.units.encoders.log_mel import LogMelConfig
from xretrieval.units.tokenizer import UnitTokenizer

ROOT = pathlib.Path(__file__).parents[2]
RATES = (8_000, 16_000, 22_050)
COUNT = 30


def make(root, count=COUNT, seconds=0.5):
    """A manifest of short noises at several rates, and a unit tokenizer."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(count):
        rate = RATES[i % len(RATES)]
        soundfile.write(root / f"{i}.wav", 0.1 * rng.normal(size=int(rate * (seconds + 0.1 * (i % 7)))), rate)
        text = {"text": f"text {i}"} if i % 3 else {"text": ""}
        lines.append({"id": f"u{i}", "language": ("de_de", "fr_fr")[i % 2], "audio": f"{i}.wav", **text})
    (root / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = LogMelConfig()
    codebook_KW = rng.normal(size=(16, config.width)).astype(np.float32)
    UnitTokenizer(Encoder(config, {}), codebook_KW, True, {}).save(root / "unit_tokenizer")
    return str(root / "own.jsonl"), str(root / "unit_tokenizer")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make(tmp_path_factory.mktemp("corpus"))


def content(folder, total):
    return [shards.data_path(folder, index, total).read_bytes() for index in range(total)]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    index = lib.extract(*corpus, str(out), num_shards=4, num_workers=1)
    return index, content(out, 4), out


def test_every_recording_is_there_once_with_its_rate(whole):
    index, _, out = whole
    found = list(lib.read_unit_records(out))
    assert sorted(record.utterance.id for record in found) == sorted(f"u{i}" for i in range(COUNT))
    assert all(record.utterance.sampling_rate == RATES[int(record.utterance.id[1:]) % 3] for record in found)
    assert (index["utterances_in"], index["records"], index["failed"]) == (COUNT, COUNT, 0)
    assert index["languages"] == {"de_de": 15, "fr_fr": 15}
    assert index["with_text"] == {"de_de": 10, "fr_fr": 10}
    assert index["seconds_of_sound"] == pytest.approx(sum(0.5 + 0.1 * (i % 7) for i in range(COUNT)), abs=0.01)
    assert (out / "failures.jsonl").read_text() == ""


def test_neither_windows_nor_decoders_change_a_byte(corpus, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(lib, "_WINDOW_SECONDS", {"cpu": 1})
    lib.extract(*corpus, str(tmp_path), num_shards=4, num_workers=1, num_decoders=3)
    assert content(tmp_path, 4) == whole[1]


def test_units_are_those_of_the_tokenizer(corpus, whole):
    from xretrieval.corpora.audio import load_audio

    tokenizer = UnitTokenizer.load(corpus[1])
    for record in list(lib.read_unit_records(whole[2]))[::5]:
        assert tokenizer.encode(load_audio(record.utterance.recording)).tolist() == list(record.units)


def test_what_cannot_be_used_is_listed_with_its_reason_and_all_add_up(tmp_path):
    manifest, tokenizer = make(tmp_path, 12)
    lines = [json.loads(line) for line in pathlib.Path(manifest).read_text().splitlines()]
    (tmp_path / "1.wav").write_bytes((tmp_path / "1.wav").read_bytes()[:300])
    (tmp_path / "2.wav").unlink()
    (tmp_path / "3.wav").write_bytes(b"RIFF" + bytes(range(256)) * 20)
    soundfile.write(tmp_path / "4.wav", np.zeros(60), 16_000)
    lines[5]["sampling_rate"] = 44_100
    lines[6] |= {"start": 0.4, "duration": 5.0}
    lines[7] |= {"start": 0.1, "duration": 0.2}
    pathlib.Path(manifest).write_text("".join(json.dumps(line) + "\n" for line in lines))
    index = lib.extract(manifest, tokenizer, str(tmp_path / "out"), num_shards=3, num_workers=1)
    failures = {f["id"]: f for f in map(json.loads, (tmp_path / "out/failures.jsonl").read_text().splitlines())}
    assert sorted(failures) == ["u1", "u2", "u3", "u4", "u5", "u6"]
    assert (index["utterances_in"], index["records"], index["failed"]) == (12, 6, 6)
    for number, reason in (
        (1, "cut off"),
        (2, "No such file"),
        (3, ""),
        (4, "at least"),
        (5, "manifest says 44100 Hz"),
        (6, "beyond the end"),
    ):
        entry = failures[f"u{number}"]
        assert entry["file"] == str(tmp_path / f"{number}.wav")
        assert f"{number}.wav" in entry["reason"]
        assert reason in entry["reason"]
        assert "\n" not in entry["reason"]


def test_limits_are_settings(corpus, tmp_path):
    index = lib.extract(*corpus, str(tmp_path), num_shards=2, num_workers=1, limits=AudioLimits(max_seconds=0.65))
    assert index["records"] + index["failed"] == COUNT
    assert index["failed"] == sum(0.5 + 0.1 * (i % 7) > 0.65 for i in range(COUNT))
    assert "at most" in (tmp_path / "failures.jsonl").read_text()


def test_mutated_files_end_as_units_or_as_a_line_of_failures(corpus, tmp_path):
    """Two hundred files that were cut, flipped and spliced: `make fuzz-audio` tries thousands on the decoder alone."""
    rng = np.random.default_rng(0)
    whole = [(pathlib.Path(corpus[0]).parent / f"{i}.wav").read_bytes() for i in range(COUNT)]
    lines = []
    for i in range(200):
        content = bytearray(whole[i % COUNT])
        kind = i % 4
        if kind == 0:
            content = content[: rng.integers(1, len(content))]
        elif kind == 1:
            for place in rng.integers(0, 44, 3):
                content[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            content += rng.bytes(int(rng.integers(1, 5_000)))
        else:
            content = content[: rng.integers(44, len(content))] + bytearray(whole[(i + 1) % COUNT])
        (tmp_path / f"m{i}.wav").write_bytes(bytes(content))
        lines.append({"id": f"m{i}", "language": "de_de", "text": "", "audio": f"m{i}.wav"})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index = lib.extract(str(tmp_path / "own.jsonl"), corpus[1], str(tmp_path / "out"), num_shards=3, num_workers=1)
    failed = {json.loads(line)["id"] for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()}
    done = {record.utterance.id for record in lib.read_unit_records(tmp_path / "out")}
    assert failed | done == {f"m{i}" for i in range(200)}
    assert not failed & done
    assert index["failed"] == len(failed) > 50


def test_many_recordings_make_more_shards(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(lib, "UTTERANCES_A_SHARD", 5)
    assert lib.extract(*corpus, str(tmp_path), num_shards=1, num_workers=1)["shards"] == 6


def test_a_runner_by_its_flags_gives_the_same_bytes(corpus, whole, tmp_path):
    """Beam's portable way to Flink and Spark, with a job service inside the process."""
    flags = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")
    lib.extract(*corpus, str(tmp_path), num_shards=4, beam_flags=flags)
    assert content(tmp_path, 4) == whole[1]


def test_a_flag_that_no_runner_knows_is_an_error(corpus, tmp_path):
    with pytest.raises(UserError, match="--job_endpont: neither"):
        lib.extract(*corpus, str(tmp_path), num_shards=4, beam_flags=("--runner=PortableRunner", "--job_endpont=embed"))


EXTRACT = "import sys; from xretrieval.units.extract import extract; extract(*sys.argv[1:4], num_shards=12, num_workers=int(sys.argv[4]))"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, workers):
    """Kills of the whole process group, each a drawn moment after a drawn number of shards; what is finished is begun anew."""
    manifest, tokenizer = make(tmp_path, 240, seconds=1.0)
    lib.extract(manifest, tokenizer, str(tmp_path / "whole"), num_shards=12, num_workers=1)
    rng = np.random.default_rng(workers)
    command = [sys.executable, "-c", EXTRACT, manifest, tokenizer, str(tmp_path / "out"), str(workers)]
    kills, committed = 0, set()
    for _ in range(20):
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        wanted = int(rng.integers(13))
        while len(list((tmp_path / "out").glob("shard-*.json"))) < wanted and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.3 if wanted else 6.0))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        done = len(list((tmp_path / "out").glob("shard-*.json")))
        committed.add(done)
        if done == 12:
            shutil.rmtree(tmp_path / "out")
    print(f"{kills} kills, after {sorted(committed)} shards")
    assert kills >= 5
    assert len(committed) >= 3, "the kills came too early or too late"
    lib.extract(manifest, tokenizer, str(tmp_path / "out"), num_shards=12, num_workers=workers)
    assert content(tmp_path / "out", 12) == content(tmp_path / "whole", 12)
    assert len(list(lib.read_unit_records(tmp_path / "out"))) == 240
