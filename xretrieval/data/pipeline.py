"""Batches as a pure function of (seed, step): resuming is one integer, and any number of hosts reads its own slice of the same batch."""

import dataclasses
import queue
import threading
from collections.abc import Generator, Sequence

import numpy as np

from xretrieval.data.order import MixtureOrder
from xretrieval.data.preprocessors import drop_tokens, uniform, with_prefix
from xretrieval.data.records import TaskRecords
from xretrieval.data.vocabulary import PAD_ID
from xretrieval.errors import UserError

_NEUTRAL, _WHICH = 2**32, 2**32 + 1  # draws of a pair beside those of its tokens, whose numbers are their places


Prefixes = tuple[tuple[int, ...], tuple[int, ...]]  # token IDs in front of the inputs and of the targets


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task of a mixture as training sees it.

    A token of the inputs is left out with probability `drop_rate`; with probability `neutral_rate` a pair has one of `neutral_prefixes`,
    which name a language that no task has, so that its name comes to mean any language instead of staying as it was initialised.
    """

    name: str
    rate: float
    records: TaskRecords
    prefixes: Prefixes
    drop_rate: float = 0.0
    neutral_rate: float = 0.0
    neutral_prefixes: tuple[Prefixes, ...] = ()

    def prefixes_at(self, *key: int) -> Prefixes:
        """The prefixes of a pair, decided by a hash of `key`."""
        if self.neutral_prefixes and uniform(*key, _NEUTRAL) < self.neutral_rate:
            return self.neutral_prefixes[int(uniform(*key, _WHICH) * len(self.neutral_prefixes))]
        return self.prefixes


class BatchPipeline:
    """Assembles batch `step` of a mixture into fixed-length rows."""

    def __init__(
        self,
        tasks: Sequence[TaskData],
        batch_size: int,
        vocab_size: int,
        seed: int,
        input_length: int | None = None,
        target_length: int | None = None,
    ):
        self.tasks, self.batch_size, self.seed, self.vocab_size = tuple(tasks), batch_size, seed, vocab_size
        self.order = MixtureOrder.create([t.name for t in tasks], [t.rate for t in tasks], [len(t.records) for t in tasks], seed)
        used = [task for task in self.tasks if task.rate > 0]
        self.lengths = _row_length(used, 0, input_length), _row_length(used, 1, target_length)

    def batch(self, step: int, host: int = 0, hosts: int = 1) -> dict[str, np.ndarray]:
        """This host's rows of the global batch of a step.

        Returns:
          {"left_tokens", "right_tokens": int32 [b, L], "left_lengths", "right_lengths": int32 [b], "pair_id": int64 [b]}, b = B / hosts.

        Raises:
          UserError: a token ID outside the vocabulary (JAX would clamp it silently), naming the task.
        """
        rows = self.batch_size // hosts
        positions = step * self.batch_size + host * rows + np.arange(rows)
        task_of_row, example_of_row = self.order.at(positions)
        left, right = np.full((rows, self.lengths[0]), PAD_ID, np.int32), np.full((rows, self.lengths[1]), PAD_ID, np.int32)
        lengths, pair_id = np.zeros((2, rows), np.int32), np.empty(rows, np.int64)
        for k in np.unique(task_of_row):
            task, where = self.tasks[k], np.flatnonzero(task_of_row == k)
            for row, (inputs_L, targets_L, pair) in zip(where, task.records.read(example_of_row[where]), strict=True):
                key = self.seed, int(positions[row])
                prefixes = task.prefixes_at(*key)
                inputs_L = drop_tokens(inputs_L, task.drop_rate, *key)
                for side, (out, tokens_L) in enumerate([(left, inputs_L), (right, targets_L)]):
                    tokens_L = with_prefix(tokens_L, prefixes[side])
                    if tokens_L.min() < 0 or tokens_L.max() >= self.vocab_size:
                        raise UserError(
                            f"task {task.name}: token {tokens_L.max()} is outside the vocabulary of {self.vocab_size}; run `xretrieval data build` again"
                        )
                    out[row, : len(tokens_L)] = tokens_L
                    lengths[side, row] = len(tokens_L)
                pair_id[row] = pair
        return {"left_tokens": left, "right_tokens": right, "left_lengths": lengths[0], "right_lengths": lengths[1], "pair_id": pair_id}

    def batches(self, start: int, stop: int, host: int = 0, hosts: int = 1, ahead: int = 4) -> Generator[dict[str, np.ndarray], None, None]:
        """Batches `start` to `stop` - 1, assembled `ahead` of their use in a thread."""
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
                    put(self.batch(step, host, hosts))
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


def _row_length(tasks: Sequence[TaskData], side: int, limit: int | None) -> int:
    """The length of a side's rows: `limit`, or what the longest example needs, up to a multiple of 8.

    Raises:
      UserError: an empty example, or one longer than `limit`, before training starts: nothing is cropped.
    """
    needed = 0
    for task in tasks:
        lengths_N = task.records.lengths_N2[:, side]
        if lengths_N.min() == 0:
            raise UserError(
                f"task {task.name} has an empty side in {task.records.directory}; check the manifest with `xretrieval data check`"
            )
        longest = int(lengths_N.max()) + max(len(prefixes[side]) for prefixes in (task.prefixes, *task.neutral_prefixes))
        if limit is not None and longest > limit:
            flag = ("input_length", "target_length")[side]
            raise UserError(
                f"task {task.name} has a side of {longest} tokens; set train.{flag} to at least that (it is {limit}), or to None"
            )
        needed = max(needed, longest)
    return limit or -(-needed // 8) * 8
