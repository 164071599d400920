"""The shape of a run's packed batches, from the index of lengths: chosen, then proved for every step before training starts."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from xretrieval.data.packing import Shape, deal, pack
from xretrieval.data.schedule import WINDOW_PAIRS, Schedule, TaskLengths
from xretrieval.errors import UserError, read_json, write_json
from xretrieval.progress import track
from xretrieval.workers import in_processes

_VERSION = 1  # of what a cached plan was computed by
_FINALISTS = 6
_NEARLY = 1.01  # of rows that cost at most so much more than the best, the shortest are taken
_ALONE = 4_000_000  # pairs to pack, up to which starting processes costs more than it saves


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every step of a run fits, and how well.

    Attributes:
      row_length, rows, num_segments: `packing.Shape` of every data shard.
      rows_needed: the most that any step needs.
      num_steps, batch_size, shards: the run.
      window_steps: steps that are levelled together.
      tokens: mean tokens of a step, padding not counted.
      padding, worst_padding: mean share of the tokens of a step that are padding, and the largest of any step.
      lengths: for each side, tokens at the quantiles 0.01, 0.5, 0.99, the mean and the longest.
    """

    row_length: int
    rows: int
    num_segments: int
    rows_needed: int
    num_steps: int
    batch_size: int
    shards: int
    window_steps: int
    tokens: float
    padding: float
    worst_padding: float
    lengths: dict[str, dict[str, float]]

    @property
    def shape(self) -> Shape:
        """Of every data shard."""
        return Shape(self.row_length, self.rows, self.num_segments)

    def __str__(self) -> str:
        share = self.batch_size // self.shards
        lines = [
            f"rows: {self.rows} of {self.row_length} tokens a data shard, with up to {self.num_segments} segments each",
            f"      {self.shards} data shards of {share} pairs; the fullest of {self.num_steps} steps needs {self.rows_needed} rows",
            f"padding: {self.padding:.1%} of a step's tokens on average, {self.worst_padding:.1%} at the worst",
            f"tokens a step: {self.tokens:,.0f} without padding, {self.shards * self.rows * self.row_length:,} with it",
        ]
        for side, found in self.lengths.items():
            lines.append(f"{side} tokens: " + ", ".join(f"{name} {value:.0f}" for name, value in found.items()))
        return "\n".join(lines)


class Needs(NamedTuple):
    """What steps need, by step and candidate row length: rows of the fullest data shard, segments of the fullest row, tokens of the step.

    `counts` is how many sides have each length, int64 [2, longest + 1].
    """

    rows_TC: np.ndarray
    segments_TC: np.ndarray
    tokens_T: np.ndarray
    counts: np.ndarray


def needs(schedule: Schedule, shards: int, row_lengths: Sequence[int], max_segments: int | None, steps: Sequence[int]) -> Needs:
    """Packs `steps` into rows of each of `row_lengths`."""
    rows_TC, segments_TC = np.zeros((2, len(steps), len(row_lengths)), np.int64)
    tokens_T, counts = np.zeros(len(steps), np.int64), np.zeros((2, schedule.longest + 1), np.int64)
    for t, step in enumerate(steps):
        lengths_B2 = schedule.step(step)[1]
        tokens_T[t] = lengths_B2.sum()
        for side in (0, 1):
            counts[side] += np.bincount(lengths_B2[:, side], minlength=counts.shape[1])
        for dealt_B in deal(lengths_B2, shards):
            for c, row_length in enumerate(row_lengths):
                places = pack(lengths_B2[dealt_B].ravel(), row_length, max_segments)
                rows_TC[t, c] = max(rows_TC[t, c], places.rows)
                segments_TC[t, c] = max(segments_TC[t, c], places.segment_N.max() + 1)
    return Needs(rows_TC, segments_TC, tokens_T, counts)


def candidates(longest: int) -> list[int]:
    """Row lengths worth a try, 21 at most: from what the longest side needs to twice that, or 256.

    Multiples of 8, and from 128 on of 128, the side of a tile of attention.
    """
    first = -(-longest // 8) * 8 if longest <= 128 else -(-longest // 128) * 128
    grid = [*range(first, 128, 8), *range(max(first, 128), max(2 * first, 256) + 1, 128)]
    return grid[:: -(-len(grid) // 20)]


def plan(
    tasks: Sequence[TaskLengths],
    batch_size: int,
    seed: int,
    shards: int,
    num_steps: int,
    row_length: int | None = None,
    rows: int | None = None,
    max_segments: int | None = None,
    cache: str | os.PathLike | None = None,
    keep: bool = True,
) -> Plan:
    """Chooses what is None, and packs every step to see that it fits.

    The candidates for the row length are tried on a sample of steps, the few best on all. All steps are packed anyhow, so the number of
    rows is the most that any needs, exactly, without a margin: at 64 pairs a data shard one row more would be 10 % padding.

    Args:
      tasks, batch_size, seed, shards, row_length, rows, max_segments: as of `pipeline.BatchPipeline`.
      num_steps: of the run, from 0.
      cache: a JSON file that keeps the plan; one that was made from other lengths or settings is made anew.
      keep: whether to write it (of many hosts, one does).

    Raises:
      UserError: a number that is not one, an empty side, one longer than `row_length`, shards that do not divide the batch, or a step that does
        not fit `rows`, naming it and what it needs.
    """
    schedule = Schedule(tasks, batch_size, seed)
    check_shape(row_length, rows, max_segments)
    _check_longest(schedule, row_length)
    if batch_size % shards:
        raise UserError(
            f"a batch of {batch_size} pairs does not divide over {shards} data shards, those of the mesh times microbatches; change train.batch_size "
            f"or train.microbatches"
        )
    key = _key(schedule, [shards, num_steps, row_length, rows, max_segments])
    if cache and pathlib.Path(cache).exists() and (kept := read_json(cache))["key"] == key:
        return Plan(**kept["plan"])
    lengths = [row_length] if row_length else _finalists(schedule, shards, max_segments, num_steps)
    found = _all_needs(schedule, shards, lengths, max_segments, num_steps)
    best = _choose(lengths, found.rows_TC.max(axis=0))
    needed = int(found.rows_TC[:, best].max())
    if rows and needed > rows:
        step = int(np.argmax(found.rows_TC[:, best] > rows))
        raise UserError(
            f"step {step} needs {found.rows_TC[step, best]} rows of {lengths[best]} tokens a data shard and train.rows is {rows}; "
            f"set train.rows to {needed}, which every step of {num_steps} fits, or to None"
        )
    size = shards * (rows or needed) * lengths[best]
    made = Plan(
        row_length=lengths[best],
        rows=rows or needed,
        num_segments=max_segments or _segments(found, best),
        rows_needed=needed,
        num_steps=num_steps,
        batch_size=batch_size,
        shards=shards,
        window_steps=schedule.window_steps,
        tokens=float(found.tokens_T.mean()),
        padding=float(1 - found.tokens_T.mean() / size),
        worst_padding=float(1 - found.tokens_T.min() / size),
        lengths={side: _summary(counts) for side, counts in zip(("left", "right"), found.counts, strict=True)},
    )
    if cache and keep:
        pathlib.Path(cache).parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, {"key": key, "plan": dataclasses.asdict(made)})
    return made


def check_shape(row_length: int | None, rows: int | None, max_segments: int | None) -> None:
    """UserError where one that is given is not a whole number above 0."""
    for name, value in {"row_length": row_length, "rows": rows, "max_segments": max_segments}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"train.{name} = {value!r}: give a whole number, 1 or more, or None")


def _check_longest(schedule: Schedule, row_length: int | None) -> None:
    task = max((task for task in schedule.tasks if task.rate > 0), key=lambda task: task.longest)
    if row_length and task.longest > row_length:
        raise UserError(
            f"task {task.name} has a side of {task.longest} tokens, the longest of all; set train.row_length to at least that (it is {row_length}), or to None"
        )


def _cost(row_lengths: Sequence[int], rows_C: np.ndarray) -> np.ndarray:
    """What rows cost: their tokens, padding included, and in short rows, where attention looks at the whole row, their length.

    On a CPU a token of the demo's tower (width 128) takes 1.25 times as long in a row of 256 as in one of 80; wide towers feel it less.
    """
    length_C = np.asarray(row_lengths)
    return rows_C * length_C * (1 + np.minimum(length_C, 512) / 1024)


def _choose(row_lengths: Sequence[int], rows_C: np.ndarray) -> int:
    """The shortest of those that cost nearly as little as the best."""
    cost_C = _cost(row_lengths, rows_C)
    return int(np.argmax(cost_C <= _NEARLY * cost_C.min()))


def _segments(found: Needs, c: int) -> int:
    return -(-int(found.segments_TC[:, c].max()) // 8) * 8


def _finalists(schedule: Schedule, shards: int, max_segments: int | None, num_steps: int) -> list[int]:
    """The most promising row lengths, by some steps from the start of the run and as many from its middle."""
    lengths = candidates(schedule.longest)
    half = max(1, WINDOW_PAIRS // schedule.batch_size // 2)
    steps = sorted({*range(min(half, num_steps)), *range(num_steps // 2, min(num_steps // 2 + half, num_steps))})
    cost_C = _cost(lengths, needs(schedule, shards, lengths, max_segments, steps).rows_TC.max(axis=0))
    return [lengths[c] for c in sorted(np.argsort(cost_C, kind="stable")[:_FINALISTS])]


def _all_needs(schedule: Schedule, shards: int, row_lengths: Sequence[int], max_segments: int | None, num_steps: int) -> Needs:
    """`needs` of all steps, by several processes where that pays."""
    workers = len(os.sched_getaffinity(0)) if num_steps * schedule.batch_size * len(row_lengths) > _ALONE else 1
    windows = -(-num_steps // schedule.window_steps)
    chunk = max(1, -(-windows // (8 * workers))) * schedule.window_steps
    chunks = [range(first, min(first + chunk, num_steps)) for first in range(0, num_steps, chunk)]
    parts = list(track(_parts(schedule, shards, row_lengths, max_segments, chunks, workers), len(chunks), "packing"))
    rows_TC, segments_TC, tokens_T = (np.concatenate([part[field] for part in parts]) for field in range(3))
    return Needs(rows_TC, segments_TC, tokens_T, np.sum([part.counts for part in parts], axis=0))


def _parts(schedule, shards, row_lengths, max_segments, chunks: list[range], workers: int) -> Iterator[Needs]:
    if workers == 1:
        yield from (needs(schedule, shards, row_lengths, max_segments, chunk) for chunk in chunks)
        return
    # An index that is a file goes by its name: every process maps the same pages.
    sources = [getattr(task.lengths_N2, "filename", None) or task.lengths_N2 for task in schedule.tasks]
    bare = [dataclasses.replace(task, lengths_N2=np.zeros((0, 2), np.uint16)) for task in schedule.tasks]
    jobs = [(shards, row_lengths, max_segments, chunk) for chunk in chunks]
    yield from in_processes(_work, jobs, workers, _open, (bare, sources, schedule.batch_size, schedule.seed))


_opened: Schedule  # of a worker process


def _open(bare: Sequence[TaskLengths], sources: Sequence, batch_size: int, seed: int) -> None:
    global _opened
    indices = [
        np.load(source, mmap_mode="r", allow_pickle=False) if isinstance(source, str | os.PathLike) else source for source in sources
    ]
    tasks = [dataclasses.replace(task, lengths_N2=index) for task, index in zip(bare, indices, strict=True)]
    _opened = Schedule(tasks, batch_size, seed)


def _work(shards, row_lengths, max_segments, steps: range) -> Needs:
    return needs(_opened, shards, row_lengths, max_segments, steps)


def _key(schedule: Schedule, settings: list) -> str:
    """What a plan was made from: the lengths themselves, and every number that decides the batches."""
    key = hashlib.sha256(repr([_VERSION, WINDOW_PAIRS, schedule.batch_size, schedule.seed, *settings]).encode())
    for task in schedule.tasks:
        key.update(repr([task.name, task.rate, task.drop_rate, task.neutral_rate, task.added_P2.tolist()]).encode())
        key.update(np.ascontiguousarray(task.lengths_N2))
    return key.hexdigest()


def _summary(counts_N: np.ndarray) -> dict[str, float]:
    """Quantiles, mean and maximum of lengths, from how often each occurs."""
    share_N = np.cumsum(counts_N) / counts_N.sum()
    out = {f"{name} %": int(np.searchsorted(share_N, quantile)) for name, quantile in (("1", 0.01), ("50", 0.5), ("99", 0.99))}
    mean = float(np.arange(len(counts_N)) @ counts_N / counts_N.sum())
    return {**out, "mean": mean, "longest": int(np.flatnonzero(counts_N)[-1])}
