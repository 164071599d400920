"""Batches as a pure function of (seed, step, shards): resuming is one integer, and any number of hosts reads its own slice of one batch."""

import dataclasses
import queue
import threading
import zlib
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np

from xretrieval.data.packing import Shape, assemble, deal, pack
from xretrieval.data.preprocessors import choose_prefixes, drop_tokens, framed
from xretrieval.data.records import TaskRecords
from xretrieval.data.schedule import Schedule, TaskLengths
from xretrieval.errors import UserError

Frame = tuple[tuple[int, ...], tuple[int, ...]]  # token IDs that the inputs and the targets get


class Pair(NamedTuple):
    """A pair as the tower sees it: tokens of both sides, and its IDs.

    `left_id` and `right_id` say what is on a side: 31 bits of a hash of its tokens, without prefix and before any are left out.
    """

    left_L: np.ndarray
    right_L: np.ndarray
    pair_id: int
    left_id: int
    right_id: int


def _content(tokens_L: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(tokens_L, np.int32)) & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task of a mixture as training sees it.

    Attributes:
      name, rate: of the task in the mixture.
      records: its pairs.
      prefixes: token IDs in front of the inputs and of the targets.
      drop_rate: a token of the inputs is left out with this probability.
      neutral_rate: a pair has one of `neutral_prefixes` with this probability.
      neutral_prefixes: they name languages that no task has, so that their names come to mean any language instead of staying as they were
        initialised.
      suffixes: token IDs behind the inputs and the targets: what an imported LLM's tokenizer ends a text with.
    """

    name: str
    rate: float
    records: TaskRecords
    prefixes: Frame
    drop_rate: float = 0.0
    neutral_rate: float = 0.0
    neutral_prefixes: tuple[Frame, ...] = ()
    suffixes: Frame = ((), ())

    def lengths(self) -> TaskLengths:
        """What decides the lengths of its pairs."""
        frames = (self.prefixes, *self.neutral_prefixes)
        added_P2 = np.array([[len(frame[side]) + len(self.suffixes[side]) for side in (0, 1)] for frame in frames])
        return TaskLengths(self.name, self.rate, self.records.lengths_N2, added_P2, self.drop_rate, self.neutral_rate)

    def pairs_at(self, examples_N: np.ndarray, seed: int, positions_N: np.ndarray) -> list[Pair]:
        """Examples at positions of the mixture's order."""
        frames = (self.prefixes, *self.neutral_prefixes)
        which_N = choose_prefixes(self.neutral_rate, len(self.neutral_prefixes), seed, positions_N)
        out = []
        for position, which, (inputs_L, targets_L, pair) in zip(
            positions_N.tolist(), which_N.tolist(), self.records.read(examples_N), strict=True
        ):
            contents = _content(inputs_L), _content(targets_L)
            inputs_L = drop_tokens(inputs_L, self.drop_rate, seed, position)
            left, right = (
                framed(tokens_L, frames[which][side], self.suffixes[side]) for side, tokens_L in enumerate((inputs_L, targets_L))
            )
            out.append(Pair(left, right, pair, *contents))
        return out


class BatchPipeline:
    """Assembles batch `step` of a mixture into packed rows.

    Args:
      tasks: the mixture.
      batch_size: B, pairs of the global batch.
      vocab_size: t + a.
      seed: of the order, dropped tokens and neutral prefixes.
      shards: parts that are packed apart, over all hosts: data shards of the mesh times microbatches; they divide B.
      shape: of every shard, as `plan.plan` found it for a run.

    Raises:
      UserError: an empty example, or shards that do not divide the batch.
    """

    def __init__(self, tasks: Sequence[TaskData], batch_size: int, vocab_size: int, seed: int, shards: int, shape: Shape):
        self.tasks, self.batch_size, self.vocab_size, self.seed, self.shards = tuple(tasks), batch_size, vocab_size, seed, shards
        if batch_size % shards:
            raise UserError(
                f"a batch of {batch_size} pairs does not divide over {shards} data shards, those of the mesh times microbatches; change train.batch_size "
                f"or train.microbatches"
            )
        self.schedule = Schedule([task.lengths() for task in tasks], batch_size, seed)
        self.shape = shape

    def batch(self, step: int, held: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """The data shards `held` of the global batch of a step, n of them, one after another; None: all.

        Returns:
          {"tokens", "segment_ids", "positions": int32 [R, L], "left", "right": int32 [b], "pair_id": int64 [b], "left_id", "right_id", "place":
          int32 [b]}, R = n * rows, b = n * B / shards; see `packing.assemble` and `Pair`. Pairs come by shard, B / shards of each; `place` counts the
          pairs of the batch in an order that does not depend on the shards.

        Raises:
          UserError: a token ID outside the vocabulary (JAX would clamp it silently), naming the task; records that the index does not
            describe; a step that needs more rows.
        """
        positions_B, lengths_B2 = self.schedule.step(step)
        dealt_SB = deal(lengths_B2, self.shards)[list(range(self.shards) if held is None else held)]
        places = [pack(lengths_B2[dealt_B].ravel(), self.shape.row_length, self.shape.num_segments) for dealt_B in dealt_SB]
        needed = max(at.rows for at in places)
        if needed > self.shape.rows:
            raise UserError(
                f"step {step} needs {needed} rows of {self.shape.row_length} tokens a data shard and there are {self.shape.rows}; "
                f"set train.rows to that or more, or to None"
            )
        dealt_b = dealt_SB.ravel()
        pairs = self._read(positions_B[dealt_b], lengths_B2[dealt_b])
        size = dealt_SB.shape[1]
        sides = [[side for pair in pairs[s * size : (s + 1) * size] for side in pair[:2]] for s in range(len(dealt_SB))]
        ids = {name: np.array([getattr(pair, name) for pair in pairs], np.int32) for name in ("left_id", "right_id")}
        pair_id_b = np.array([pair.pair_id for pair in pairs], np.int64)
        return {**assemble(sides, places, self.shape), "pair_id": pair_id_b, **ids, "place": dealt_b.astype(np.int32)}

    def _read(self, positions_N: np.ndarray, lengths_N2: np.ndarray) -> list[Pair]:
        """The pairs at these positions, checked against their lengths and the vocabulary."""
        task_N, example_N = self.schedule.order.at(positions_N)
        out: list = [None] * len(positions_N)
        for k in np.unique(task_N):
            task, where = self.tasks[k], np.flatnonzero(task_N == k)
            for place, pair in zip(where, task.pairs_at(example_N[where], self.seed, positions_N[where]), strict=True):
                if (len(pair[0]), len(pair[1])) != tuple(lengths_N2[place]):
                    raise UserError(
                        f"{task.records.directory}: example {example_N[place]} has other lengths than index.npy says; run `xretrieval data build` again"
                    )
                for tokens_L in pair[:2]:
                    if tokens_L.min() < 0 or tokens_L.max() >= self.vocab_size:
                        wrong = tokens_L.min() if tokens_L.min() < 0 else tokens_L.max()
                        raise UserError(
                            f"task {task.name}: token {wrong} is outside the vocabulary of {self.vocab_size}; run `xretrieval data build` again"
                        )
                out[place] = pair
        return out

    def batches(
        self, start: int, stop: int, held: Sequence[int] | None = None, ahead: int = 4
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """`batch` of the steps `start` to `stop` - 1, assembled `ahead` of their use in a thread."""
        out: queue.Queue = queue.Queue(maxsize=ahead)
        finished = threading.Event()

        def put(item) -> None:
            while not finished.is_set():
                try:
                    return out.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def produce():
            try:
                for step in range(start, stop):
                    put(self.batch(step, held))
                    if finished.is_set():
                        return
            except BaseException as error:  # handed to the consumer, which raises it
                put(error)

        thread = threading.Thread(target=produce, daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                item = out.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            finished.set()
            thread.join()
