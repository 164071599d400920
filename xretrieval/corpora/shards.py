"""One pipeline for all bulk work: each element is one output shard, written whole or not at all, on Apache Beam.

A shard is committed by a marker file that holds its content hash and summary; a pipeline that was killed skips committed shards and
redoes the others, so it ends with the same bytes as one that never stopped.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from xretrieval.errors import UserError

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
    summary = json.loads(marker.read_text())
    data = data_path(out_dir, index, total)
    whole = data.exists() and data.stat().st_size == summary["bytes"]
    return summary if whole and summary["key"] == key else None


def commit_shard(out_dir: str, index: int, total: int, key: str, records: Sequence[bytes], summary: dict) -> dict:
    """Writes one shard of records (ArrayRecord, one record a group, for random access) and then its marker."""
    from array_record.python.array_record_module import ArrayRecordWriter

    data = data_path(out_dir, index, total)
    temporary = data.with_suffix(f".{os.getpid()}.tmp")
    writer = ArrayRecordWriter(str(temporary), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    content = temporary.read_bytes()
    os.replace(temporary, data)
    summary = {**summary, "key": key, "records": len(records), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    marker = marker_path(out_dir, index, total)
    marker.with_suffix(".json.tmp").write_text(json.dumps(summary, sort_keys=True))
    os.replace(marker.with_suffix(".json.tmp"), marker)
    return summary


def run_shards(
    make_shard: Callable[[int], dict], out_dir: str, total: int, key: str, num_workers: int, label: str, beam_flags: Sequence[str] = ()
) -> list[dict]:
    """Runs `make_shard(index)`, which commits shard `index`, for every shard that is not committed yet.

    Args:
      make_shard: a picklable function; it must depend on the index alone.
      out_dir: folder of the shards.
      total: number of shards.
      key: what the shards are made from; a shard committed under another key is made again.
      num_workers: 1 runs in this process; from 2 on, Beam's FnApiRunner in so many processes.
      label: for messages.
      beam_flags: Beam's own flags, e.g. `--runner=DataflowRunner`; with a runner given, Beam decides everything.

    Returns:
      The summary of every shard, in order.
    """
    try:
        pathlib.Path(out_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out_dir}: cannot be written ({error.strerror}); give another folder") from error
    missing = [i for i in range(total) if read_marker(out_dir, i, total, key) is None]
    if missing and num_workers == 1 and not beam_flags:
        from xretrieval.progress import track

        for index in track(missing, len(missing), label):
            make_shard(index)
    elif missing:
        _run_beam(make_shard, missing, num_workers, beam_flags, out_dir, total, key, label)
    summaries = [read_marker(out_dir, i, total, key) for i in range(total)]
    if None in summaries:
        raise UserError(f"{out_dir}: {summaries.count(None)} of {total} shards are missing after {label}; run the same command again")
    return summaries  # type: ignore[return-value]


def _run_beam(make_shard, missing, num_workers, beam_flags, out_dir, total, key, label) -> None:
    import logging

    # Beam relays every start and stop of its workers; what matters comes as an exception.
    for name in ("apache_beam", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    if beam_flags:
        runner, options = None, PipelineOptions(list(beam_flags))
    else:
        # By name: "DirectRunner" now means Prism, which downloads a binary when it runs.
        runner = FnApiRunner()
        options = PipelineOptions(
            direct_num_workers=num_workers,
            direct_running_mode="multi_processing",
            pickle_library="cloudpickle",
            default_sdk_harness_log_level="ERROR",
        )
    try:
        with _watch(out_dir, missing, total, key, label), beam.Pipeline(runner=runner, options=options) as pipeline:
            # One bundle for each element: otherwise the runner gives most of them to one worker.
            _ = pipeline | beam.Create(missing, reshuffle=True) | beam.Map(make_shard)
    except RuntimeError as error:
        # Beam hands on what a worker raised as the text of its traceback.
        reason = re.search(
            r"^(?:[\w.]*UserError|[\w.]*OSError|\w*(?:Permission|NotFound)Error): (.*?)(?: \[while running.*)?$", str(error), re.M
        )
        if reason is None:
            raise
        raise UserError(f"{out_dir}: {label} stopped: {reason[1]}; committed shards are kept, the same command goes on") from error


class _watch:
    """Draws progress from the committed markers, which is all that workers on any runner share."""

    def __init__(self, out_dir, missing, total, key, label):
        import threading

        self.done = threading.Event()
        self.thread = threading.Thread(target=self._draw, args=(out_dir, missing, total, key, label), daemon=True)

    def _draw(self, out_dir, missing, total, key, label):
        from xretrieval.progress import track

        def committed():
            left = set(missing)
            while left and not self.done.wait(0.5):
                for index in sorted(left):
                    if read_marker(out_dir, index, total, key) is not None:
                        left.remove(index)
                        yield index

        for _ in track(committed(), len(missing), label):
            pass

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *exception):
        self.done.set()
        self.thread.join()
