"""Bulk extraction: a manifest becomes unit records, in shards, on Apache Beam."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from xretrieval.corpora import shards
from xretrieval.corpora.audio import AudioLimits, Sound, load_all
from xretrieval.corpora.manifest import Utterance
from xretrieval.errors import UserError, read_json, write_json
from xretrieval.units.recordings import find_recordings, shard_of, stamp
from xretrieval.units.tokenizer import UnitTokenizer

UTTERANCES_A_SHARD = 2000
# Sound that is encoded together: on an accelerator enough to fill the batches of every bucket.
_WINDOW_SECONDS = {"cpu": 120}
_WINDOW_SECONDS_ELSEWHERE = 3600


@functools.lru_cache(maxsize=1)
def _tokenizer(directory: str) -> UnitTokenizer:
    """Loaded once a worker, not once a shard."""
    return UnitTokenizer.load(directory)


def _extract_shard(
    index: int, *, total: int, manifest: str, tokenizer_dir: str, out_dir: str, key: str, num_decoders: int, limits: AudioLimits
) -> dict:
    tokenizer = _tokenizer(tokenizer_dir)
    recordings = shard_of(manifest, out_dir, index, total)
    sounds = stamp(recordings)  # before they are read: a file that changes meanwhile is read again next time
    records: list[bytes] = []
    failures: list[dict] = []
    counts: dict[str, dict[str, int]] = {"languages": {}, "with_text": {}, "with_english": {}}
    seconds = 0.0
    decoded = load_all([(u.recording, u.start, u.duration) for u in recordings], num_decoders, limits=limits)
    for window in _windows(recordings, decoded, failures, tokenizer):
        for (utterance, sound), units in zip(window, tokenizer.encode_all([sound.samples_T for _, sound in window]), strict=True):
            found = dataclasses.replace(utterance, sampling_rate=sound.info.sampling_rate)
            records.append(json.dumps({**vars(found), "units": units.tolist()}, ensure_ascii=False, sort_keys=True).encode())
            for kind, has in (("languages", True), ("with_text", utterance.text), ("with_english", utterance.text and utterance.english)):
                counts[kind][utterance.language] = counts[kind].get(utterance.language, 0) + bool(has)
            seconds += len(sound.samples_T) / 16_000
    summary = {
        "shard": index,
        "sounds": sounds,
        **counts,
        "failures": failures,
        "seconds": seconds,
        "fingerprint": tokenizer.fingerprint,
    }
    return shards.commit_shard(out_dir, index, total, key, records, summary)


def _windows(
    recordings: Sequence[Utterance], decoded: Iterable[Sound | UserError], failures: list[dict], tokenizer: UnitTokenizer
) -> Iterator[list[tuple[Utterance, Sound]]]:
    """Utterances with their sound, in order, some minutes at a time; what cannot be used goes to `failures`."""
    most = _WINDOW_SECONDS.get(jax.default_backend(), _WINDOW_SECONDS_ELSEWHERE) * 16_000
    window: list[tuple[Utterance, Sound]] = []
    held = 0
    for utterance, sound in zip(recordings, decoded, strict=True):
        reason = str(sound) if isinstance(sound, UserError) else _unusable(utterance, sound, tokenizer)
        if isinstance(sound, UserError) or reason:
            failures.append({"id": utterance.id, "file": utterance.audio, "reason": reason})
            continue
        if window and held + len(sound.samples_T) > most:
            yield window
            window, held = [], 0
        window.append((utterance, sound))
        held += len(sound.samples_T)
    if window:
        yield window


def _unusable(utterance: Utterance, sound: Sound, tokenizer: UnitTokenizer) -> str | None:
    if utterance.sampling_rate not in (None, sound.info.sampling_rate):
        return f"{utterance.audio}: {sound.info.sampling_rate} Hz, the manifest says {utterance.sampling_rate} Hz; correct the field sampling_rate"
    if tokenizer.encoder.config.frames(len(sound.samples_T)) == 0:
        return f"{utterance.audio}: {len(sound.samples_T) / 16_000:.3f} s of sound give no frame; leave it out"
    return None


def _stale(summary: dict, *, total: int, manifest: str, out_dir: str) -> bool:
    """Whether a shard has failures, which may have been mended, or its sound files are not those that were read."""
    return bool(summary["failures"]) or summary["sounds"] != stamp(shard_of(manifest, out_dir, summary["shard"], total))


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sums of counts by language, in order."""
    total: dict[str, int] = {}
    for by_language in counts:
        for language, count in by_language.items():
            total[language] = total.get(language, 0) + count
    return dict(sorted(total.items()))


def extract(
    manifest: str,
    tokenizer_dir: str,
    out_dir: str,
    num_shards: int = 8,
    num_workers: int = 2,
    num_decoders: int = 1,
    limits: AudioLimits = AudioLimits(),
    beam_flags: tuple[str, ...] = (),
) -> dict:
    """Writes the unit records of a manifest to `out_dir` and returns their index (also in `out_dir/index.json`).

    A recording that cannot be read is listed in `failures.jsonl` with its id, file and reason; records and failures add up to the
    manifest. Committed shards are skipped, so a second run finishes what a first one began.

    Args:
      manifest: of the recordings.
      tokenizer_dir: the unit tokenizer.
      out_dir: on many machines, a folder that all of them see.
      num_shards: files, and pieces of work; more where one would hold over 2,000 recordings.
      num_workers: 1 runs in this process, on its accelerator if it has one; from 2 on so many processes, on the CPU.
      num_decoders: processes that decode sound, for each worker.
      limits: of decoding one file.
      beam_flags: see `shards.run_shards`.
    """
    recordings = find_recordings(manifest, out_dir)
    fingerprint = _tokenizer.__wrapped__(tokenizer_dir).fingerprint
    total = min(max(num_shards, -(-recordings.total // UTTERANCES_A_SHARD)), recordings.total)
    key = hashlib.sha256(f"{recordings.digest} {fingerprint} {total}".encode()).hexdigest()
    places: dict[str, Any] = {"total": total, "manifest": recordings.manifest, "out_dir": os.path.abspath(out_dir)}
    tokenizer_dir = os.path.abspath(tokenizer_dir)
    summaries = shards.run_shards(
        functools.partial(_extract_shard, **places, tokenizer_dir=tokenizer_dir, key=key, num_decoders=num_decoders, limits=limits),
        out_dir,
        total,
        key,
        num_workers,
        f"units of {pathlib.Path(recordings.manifest).stem}",
        beam_flags,
        functools.partial(_stale, **places),
        amount=lambda summary: summary["seconds"],
        unit="s of sound",
    )
    index = {
        # With the shards' content in it: what is made from units of sound that has changed is made again.
        "key": hashlib.sha256(" ".join([key, *(summary["sha256"] for summary in summaries)]).encode()).hexdigest(),
        "fingerprint": fingerprint,
        "shards": total,
        "utterances_in": recordings.total,
        "records": sum(summary["records"] for summary in summaries),
        "failed": sum(len(summary["failures"]) for summary in summaries),
        "seconds_of_sound": round(sum(summary["seconds"] for summary in summaries), 3),
        **{name: _total(summary[name] for summary in summaries) for name in ("languages", "with_text", "with_english")},
    }
    if index["records"] + index["failed"] != recordings.total:
        raise UserError(
            f"{out_dir}: {index['records']} records and {index['failed']} failures for {recordings.total} utterances; delete the folder"
        )
    failures = (failure for summary in summaries for failure in summary["failures"])
    (pathlib.Path(out_dir) / "failures.jsonl").write_text("".join(json.dumps(f, ensure_ascii=False) + "\n" for f in failures))
    write_json(pathlib.Path(out_dir) / "index.json", index)
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
