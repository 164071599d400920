"""One pipeline for all bulk work: each element is one output shard, written whole or not at all, on Apache Beam.

A shard is committed by a marker file that holds its content hash and summary; a pipeline that was killed skips committed shards and
redoes the others, so it ends with the same bytes as one that never stopped.
"""

import functools
import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from xretrieval.errors import UserError, read_json, write_json
from xretrieval.progress import track

Shard = tuple[int, Any]


def marker_path(out_dir: str | os.PathLike, index: int, total: int) -> pathlib.Path:
    return pathlib.Path(out_dir) / f"shard-{index:05d}-of-{total:05d}.json"


def data_path(out_dir: str | os.PathLike, index: int, total: int) -> pathlib.Path:
    return pathlib.Path(out_dir) / f"shard-{index:05d}-of-{total:05d}.array_record"


def read_marker(out_dir: str | os.PathLike, index: int, total: int, key: str) -> dict | None:
    """The summary of a committed shard, or None where it is not committed, was made under another key, or its file changed size."""
    marker = marker_path(out_dir, index, total)
    if not marker.exists():
        return None
    summary = read_json(marker)
    data = data_path(out_dir, index, total)
    whole = data.exists() and data.stat().st_size == summary["bytes"]
    return summary if whole and summary["key"] == key else None


def commit_shard(out_dir: str, index: int, total: int, key: str, records: Sequence[bytes], summary: dict) -> dict:
    """Writes one shard of records (ArrayRecord, one record a group, for random access) and then its marker."""
    from array_record.python.array_record_module import ArrayRecordWriter

    data = data_path(out_dir, index, total)
    temporary = data.with_suffix(f".{os.getpid()}.tmp")
    try:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    except RuntimeError as error:
        temporary.unlink(missing_ok=True)
        reason = str(error).split(";")[0]
        raise UserError(f"{data}: cannot be written ({reason}); free space, then run again: committed shards are kept") from error
    content = temporary.read_bytes()
    os.replace(temporary, data)
    summary = {**summary, "key": key, "records": len(records), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    marker = marker_path(out_dir, index, total)
    write_json(marker, summary)
    return summary


def run_shards(
    make_shard: Callable[[int], dict],
    out_dir: str,
    total: int,
    key: str,
    num_workers: int,
    label: str,
    beam_flags: Sequence[str] = (),
    redo: Callable[[dict], bool] = lambda summary: False,
    amount: Callable[[dict], float] | None = None,
    unit: str = "shards",
) -> list[dict]:
    """Runs `make_shard(index)`, which commits shard `index`, for every shard that is not committed yet.

    Args:
      make_shard: a picklable function; it must depend on the index alone.
      out_dir: folder of the shards.
      total: number of shards.
      key: what the shards are made from; a shard committed under another key is made again.
      num_workers: 1 runs in this process; from 2 on, Beam's FnApiRunner in so many processes.
      label: for messages.
      redo: whether a committed shard, by its summary, is made again; e.g. one with failures, which may have been mended.
      beam_flags: Beam's own flags, e.g. `--runner=DataflowRunner`; with a runner given, Beam decides everything.
      amount, unit: what the rate of the progress counts of a shard's summary, and its unit; by default shards.

    Returns:
      The summary of every shard, in order.
    """
    try:
        pathlib.Path(out_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out_dir}: cannot be written ({error.strerror}); give another folder") from error
    before = [read_marker(out_dir, i, total, key) for i in range(total)]
    missing = [i for i, summary in enumerate(before) if summary is None or redo(summary)]
    for index in missing:
        marker_path(out_dir, index, total).unlink(missing_ok=True)
    if missing and num_workers == 1 and not beam_flags:
        for _ in track(map(make_shard, missing), len(missing), label, amount, unit):
            pass
    elif missing:
        # Beam warns of what it lacks when it loads, and relays every start and stop of its workers; what matters is raised.
        for name in ("apache_beam", "root"):
            logging.getLogger(name).setLevel(logging.ERROR)
        from xretrieval.corpora import beam

        committed = functools.partial(read_marker, out_dir, total=total, key=key)
        beam.run(make_shard, missing, num_workers, beam_flags, out_dir, beam.Progress(label, committed, amount, unit))
    summaries = [read_marker(out_dir, i, total, key) for i in range(total)]
    if None in summaries:
        raise UserError(f"{out_dir}: {summaries.count(None)} of {total} shards are missing after {label}; run the same command again")
    return summaries  # type: ignore[return-value]
