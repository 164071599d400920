"""Batches as a pure function of (seed, step): resuming is one integer, and any number of hosts reads its own slice of the same batch."""

import dataclasses
import queue
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from xretrieval.data.order import MixtureOrder
from xretrieval.data.preprocessors import drop_tokens, with_prefix
from xretrieval.data.records import TaskRecords
from xretrieval.data.vocabulary import PAD_ID
from xretrieval.errors import UserError


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task of a mixture as training sees it."""

    name: str
    rate: float
    records: TaskRecords
    input_prefix: tuple[int, ...]
    target_prefix: tuple[int, ...]
    drop_rate: float = 0.0


class BatchPipeline:
    """Assembles batch `step` of a mixture into fixed-length rows."""

    def __init__(self, tasks: Sequence[TaskData], batch_size: int, input_length: int, target_length: int, vocab_size: int, seed: int):
        self.tasks, self.batch_size, self.seed, self.vocab_size = tuple(tasks), batch_size, seed, vocab_size
        self.lengths = (input_length, target_length)
        self.order = MixtureOrder.create([t.name for t in tasks], [t.rate for t in tasks], [len(t.records) for t in tasks], seed)
        for task in self.tasks:
            if task.rate > 0:
                _check_lengths(task, self.lengths)

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
                inputs_L = drop_tokens(inputs_L, task.drop_rate, self.seed, int(positions[row]))
                for side, (out, tokens_L) in enumerate(
                    [(left, with_prefix(inputs_L, task.input_prefix)), (right, with_prefix(targets_L, task.target_prefix))]
                ):
                    if tokens_L.min() < 0 or tokens_L.max() >= self.vocab_size:
                        raise UserError(
                            f"task {task.name}: token {tokens_L.max()} is outside the vocabulary of {self.vocab_size}; run `xretrieval data build` again"
                        )
                    out[row, : len(tokens_L)] = tokens_L
                    lengths[side, row] = len(tokens_L)
                pair_id[row] = pair
        return {"left_tokens": left, "right_tokens": right, "left_lengths": lengths[0], "right_lengths": lengths[1], "pair_id": pair_id}

    def batches(self, start: int, stop: int, host: int = 0, hosts: int = 1, ahead: int = 4) -> Iterator[dict[str, np.ndarray]]:
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


def _check_lengths(task: TaskData, lengths: tuple[int, int]) -> None:
    """Nothing is cropped: a side that does not fit its row is an error before training starts."""
    for side, (limit, prefix, name) in enumerate(
        [(lengths[0], task.input_prefix, "input_length"), (lengths[1], task.target_prefix, "target_length")]
    ):
        longest = int(task.records.lengths_N2[:, side].max()) + len(prefix)
        shortest = int(task.records.lengths_N2[:, side].min())
        if longest > limit:
            raise UserError(f"task {task.name} has a side of {longest} tokens; set train.{name} to at least that (it is {limit})")
        if shortest == 0:
            raise UserError(
                f"task {task.name} has an empty side in {task.records.directory}; check the manifest with `xretrieval data check`"
            )
