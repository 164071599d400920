"""Bulk extraction: a manifest becomes unit records, in shards, on Apache Beam."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from xretrieval.corpora import shards
from xretrieval.corpora.audio import load_audio
from xretrieval.corpora.manifest import Utterance, manifest_path, read_manifest
from xretrieval.errors import UserError, read_json, write_json
from xretrieval.units.tokenizer import UnitTokenizer


@functools.lru_cache(maxsize=1)
def _tokenizer(directory: str) -> UnitTokenizer:
    """Loaded once a worker, not once a shard."""
    return UnitTokenizer.load(directory)


def _recordings(manifest: str) -> list[Utterance]:
    """The utterances with sound; a line of text alone is for the text tokenizer."""
    return [utterance for utterance in read_manifest(manifest) if utterance.audio]


def _extract_shard(index: int, *, total: int, manifest: str, tokenizer_dir: str, out_dir: str, key: str) -> dict:
    tokenizer = _tokenizer(tokenizer_dir)
    recordings = _recordings(manifest)[index::total]
    sounds = _stamp(recordings)  # before they are read: a file that changes meanwhile is read again next time
    records, failures, seconds = [], [], 0.0
    languages: dict[str, int] = {}
    counts: dict[str, dict[str, int]] = {"with_text": {}, "with_english": {}}
    for utterance in recordings:
        try:
            samples_T = load_audio(utterance.recording, utterance.start, utterance.duration)
            units = tokenizer.encode(samples_T)
        except UserError as error:
            failures.append({"id": utterance.id, "file": utterance.audio, "reason": str(error)})
            continue
        records.append(json.dumps({**dataclasses.asdict(utterance), "units": units.tolist()}, ensure_ascii=False, sort_keys=True).encode())
        languages[utterance.language] = languages.get(utterance.language, 0) + 1
        for kind, has in (("with_text", utterance.text), ("with_english", utterance.text and utterance.english)):
            counts[kind][utterance.language] = counts[kind].get(utterance.language, 0) + bool(has)
        seconds += len(samples_T) / 16_000
    summary = {
        "shard": index,
        "sounds": sounds,
        "languages": languages,
        **counts,
        "failures": failures,
        "seconds": seconds,
        "fingerprint": tokenizer.fingerprint,
    }
    return shards.commit_shard(out_dir, index, total, key, records, summary)


def _stamp(recordings: Sequence[Utterance]) -> str:
    """A hash of the size and date of sound files; of a URI, or a file that is not there, of its name alone."""
    digest = hashlib.sha256()
    for utterance in recordings:
        digest.update(f"{utterance.audio} ".encode())
        with contextlib.suppress(OSError):
            found = os.stat(utterance.recording)
            digest.update(f"{found.st_size} {found.st_mtime_ns} ".encode())
    return digest.hexdigest()


def _stale(summary: dict, stamps: Sequence[str]) -> bool:
    """Whether a shard has failures, which may have been mended, or its sound files are not those that were read."""
    return bool(summary["failures"]) or summary["sounds"] != stamps[summary["shard"]]


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sums of counts by language, in order."""
    total: dict[str, int] = {}
    for by_language in counts:
        for language, count in by_language.items():
            total[language] = total.get(language, 0) + count
    return dict(sorted(total.items()))


def extract(
    manifest: str, tokenizer_dir: str, out_dir: str, num_shards: int = 8, num_workers: int = 2, beam_flags: tuple[str, ...] = ()
) -> dict:
    """Writes the unit records of a manifest to `out_dir` and returns their index (also in `out_dir/index.json`).

    A recording that cannot be read is listed in `failures.jsonl` with its id, file and reason; records and failures add up to the
    manifest. Committed shards are skipped, so a second run finishes what a first one began.
    """
    manifest = str(manifest_path(manifest))
    digest = hashlib.sha256(pathlib.Path(manifest).read_bytes()).hexdigest()
    fingerprint = _tokenizer.__wrapped__(tokenizer_dir).fingerprint
    recordings = _recordings(manifest)
    count = len(recordings)
    if count == 0:
        raise UserError(f"{manifest}: the manifest is empty; it needs one line a recording, with `audio`")
    total = min(num_shards, count)
    key = hashlib.sha256(f"{digest} {fingerprint} {total}".encode()).hexdigest()
    make = functools.partial(
        _extract_shard,
        total=total,
        manifest=os.path.abspath(manifest),
        tokenizer_dir=os.path.abspath(tokenizer_dir),
        out_dir=os.path.abspath(out_dir),
        key=key,
    )
    stale = functools.partial(_stale, stamps=[_stamp(recordings[i::total]) for i in range(total)])
    summaries = shards.run_shards(make, out_dir, total, key, num_workers, f"units of {pathlib.Path(manifest).stem}", beam_flags, stale)
    failures = [failure for summary in summaries for failure in summary["failures"]]
    index = {
        # With the shards' content in it: what is made from units of sound that has changed is made again.
        "key": hashlib.sha256(" ".join([key, *(summary["sha256"] for summary in summaries)]).encode()).hexdigest(),
        "fingerprint": fingerprint,
        "shards": total,
        "utterances_in": count,
        "records": sum(summary["records"] for summary in summaries),
        "failed": len(failures),
        "seconds_of_sound": round(sum(summary["seconds"] for summary in summaries), 3),
        **{name: _total(summary[name] for summary in summaries) for name in ("languages", "with_text", "with_english")},
    }
    if index["records"] + index["failed"] != count:
        raise UserError(f"{out_dir}: {index['records']} records and {index['failed']} failures for {count} utterances; delete the folder")
    out = pathlib.Path(out_dir)
    (out / "failures.jsonl").write_text("".join(json.dumps(f, ensure_ascii=False) + "\n" for f in failures))
    write_json(out / "index.json", index)
    return index


def read_index(directory: str | os.PathLike) -> dict:
    """The index of a folder of unit records."""
    path = pathlib.Path(directory) / "index.json"
    if not path.exists():
        raise UserError(f"{path}: no unit records there; make them with `xretrieval units extract`")
    return read_json(path)


@dataclasses.dataclass(frozen=True)
class UnitRecord:
    """One utterance with its unit IDs, each in [0, K)."""

    utterance: Utterance
    units: tuple[int, ...]


def read_unit_records(directory: str | os.PathLike) -> Iterator[UnitRecord]:
    """All records of a folder, in the order of their shards."""
    from array_record.python.array_record_module import ArrayRecordReader

    index = read_index(directory)
    for shard in range(index["shards"]):
        path = shards.data_path(directory, shard, index["shards"])
        if not path.exists():
            raise UserError(f"{path}: this shard of the unit records is missing; run `xretrieval units extract` again")
        reader = ArrayRecordReader(str(path))
        for record in reader.read_all():
            fields = json.loads(record)
            units = tuple(fields.pop("units"))
            yield UnitRecord(Utterance(**fields), units)
        reader.close()
