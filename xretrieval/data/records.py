"""Token records: each task's pairs as token IDs, at random access, with an index of lengths.

A folder a task and split: ArrayRecord shards, `index.npy` (uint16 [N, 2]: tokens of each side, in the order of the records) and
`records.json` (build key, shard sizes). A record is the 8 bytes of its pair ID, then the IDs of both sides, int32.
"""

import hashlib
import os
import pathlib

import numpy as np

from xretrieval.corpora import shards
from xretrieval.errors import UserError, read_json, write_json


def pair_id(sentence_id: str) -> int:
    """A 63-bit hash of a sentence ID; equal sentences are never negatives of each other."""
    return int.from_bytes(hashlib.sha256(sentence_id.encode()).digest()[:8], "little") >> 1


def pack(inputs_L: np.ndarray, targets_L: np.ndarray, pair: int) -> bytes:
    header = np.array([pair], "<i8").tobytes() + np.array([len(inputs_L)], "<i4").tobytes()
    return header + np.asarray(inputs_L, "<i4").tobytes() + np.asarray(targets_L, "<i4").tobytes()


def unpack(record: bytes) -> tuple[np.ndarray, np.ndarray, int]:
    """(inputs int32 [L], targets int32 [L], pair ID)."""
    count = int(np.frombuffer(record, "<i4", 1, 8)[0])
    ids_L = np.frombuffer(record, "<i4", -1, 12)
    return ids_L[:count], ids_L[count:], int(np.frombuffer(record, "<i8", 1)[0])


def write_index(directory: str, key: str, shard_sizes: list[int], lengths_N2: np.ndarray) -> None:
    """Commits a task: `records.json` comes last."""
    path = pathlib.Path(directory)
    if lengths_N2.size and lengths_N2.max() > np.iinfo(np.uint16).max:
        raise UserError(
            f"{directory}: a side of {lengths_N2.max()} tokens is longer than an index entry holds (65,535); split the recording"
        )
    with open(path / "index.npy.tmp", "wb") as out:
        np.save(out, lengths_N2.astype(np.uint16), allow_pickle=False)
    os.replace(path / "index.npy.tmp", path / "index.npy")
    record = {"key": key, "shard_sizes": shard_sizes, "examples": int(sum(shard_sizes))}
    write_json(path / "records.json", record)


class TaskRecords:
    """Random access to the pairs of one task and split."""

    def __init__(self, directory: str | os.PathLike):
        from array_record.python.array_record_module import ArrayRecordReader

        self.directory = pathlib.Path(directory)
        description = self.directory / "records.json"
        if not description.exists():
            raise UserError(f"{description}: no token records there; make them with `xretrieval data build`")
        record = read_json(description)
        self.key: str = record["key"]
        self.lengths_N2 = np.load(self.directory / "index.npy", mmap_mode="r", allow_pickle=False)
        total = len(record["shard_sizes"])
        paths = [shards.data_path(self.directory, i, total) for i in range(total)]
        for path in paths:
            if not path.exists():
                raise UserError(f"{path}: this shard of the token records is missing; run `xretrieval data build` again")
        self._readers = [ArrayRecordReader(str(path), "readahead_buffer_size:0") for path in paths]
        for path, reader, size in zip(paths, self._readers, record["shard_sizes"], strict=True):
            if reader.num_records() != size:
                raise UserError(f"{path}: {reader.num_records()} records where records.json says {size}; run `xretrieval data build` again")
        self._starts = np.concatenate([[0], np.cumsum(record["shard_sizes"])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """The pairs at `indices`, in their order; one batched read a shard."""
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        out: list = [None] * len(indices)
        for s in np.unique(shard):
            where = np.flatnonzero(shard == s)
            for place, record in zip(where, self._readers[s].read([int(i) for i in indices[where] - self._starts[s]]), strict=True):
                out[place] = unpack(record)
        return out
