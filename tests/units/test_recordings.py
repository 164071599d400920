"""Recordings by their places in a manifest."""

import json

import numpy as np
import pytest

from xretrieval.corpora.manifest import read_manifest
from xretrieval.errors import UserError
from xretrieval.units import recordings

HEADER = "id\tlanguage\ttext\taudio\n"


def write(path, rows, table=False, mark=""):
    if table:
        lines = [HEADER, *("\t".join(str(row.get(name) or "") for name in HEADER.split()) + "\n" for row in rows)]
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text(mark + "".join(lines), encoding="utf-8")
    return path


def rows(count):
    made = [{"id": f"ü{i}", "language": "de", "text": "größer " * (i % 3 + 1), "audio": f"{i}.wav"} for i in range(count)]
    for row in made[::4]:
        del row["audio"]
    return made


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("table", [False, True])
def test_shards_are_every_nth_recording(tmp_path, table, mark):
    path = write(tmp_path / ("own.tsv" if table else "own.jsonl"), rows(23), table, mark)
    found = recordings.find_recordings(path, tmp_path / "out")
    whole = [u for u in read_manifest(path) if u.audio]
    assert found.total == len(whole) == 17
    for index in range(5):
        assert recordings.shard_of(found.manifest, tmp_path / "out", index, 5) == whole[index::5]


def test_two_lines_of_one_id_are_refused_and_two_of_one_hash_are_not(tmp_path, monkeypatch):
    made = rows(9)
    path = write(tmp_path / "own.jsonl", made)
    monkeypatch.setattr(recordings.hashlib, "blake2b", lambda *_, **__: type("Same", (), {"digest": lambda self: b"same"})())
    assert recordings.find_recordings(path, tmp_path / "out").total == 6
    monkeypatch.undo()
    made[7]["id"] = made[2]["id"]
    with pytest.raises(UserError, match=r"own\.jsonl:8: field id: 'ü2' is already the id of line 3"):
        recordings.find_recordings(write(path, made), tmp_path / "out")


def test_bad_lines_are_counted_and_the_first_is_told(tmp_path):
    made = rows(5)
    made[1]["language"] = "xx"
    made[3]["start"] = -1
    with pytest.raises(UserError, match=r"own\.jsonl:2: .*xx.* \(and 1 more such line"):
        recordings.find_recordings(write(tmp_path / "own.jsonl", made), tmp_path / "out")


def test_a_manifest_that_changed_meanwhile_is_noticed(tmp_path):
    path = write(tmp_path / "own.jsonl", rows(9))
    found = recordings.find_recordings(path, tmp_path / "out")
    path.write_text("\n" * 3_000)
    with pytest.raises(UserError, match="changed while it was read"):
        recordings.shard_of(found.manifest, tmp_path / "out", 0, 1)


def test_a_stamp_tells_of_a_changed_file(tmp_path):
    path = write(tmp_path / "own.jsonl", [{"id": "a", "language": "de", "text": "a", "audio": "a.wav"}])
    [utterance] = read_manifest(path)
    stamps = [recordings.stamp([utterance])]
    for content in ("one", "three"):
        (tmp_path / "a.wav").write_text(content)
        stamps.append(recordings.stamp([utterance]))
    assert len(set(stamps)) == 3


def test_places_are_a_flat_array(tmp_path):
    recordings.find_recordings(write(tmp_path / "own.jsonl", rows(9)), tmp_path / "out")
    assert np.load(tmp_path / "out/lines.npy", allow_pickle=False).dtype == np.int64
