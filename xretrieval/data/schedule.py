"""Which pairs a step has and how long their sides are, from the index of lengths alone: no record is read.

Steps are levelled. A step of random pairs has now more tokens, now fewer (with 256 pairs, half of them speech, a standard deviation of 6 %),
and rows of a fixed number must hold the longest step: 16 % of such a run would be padding. So the positions of some steps that follow one
another, a window of `WINDOW_PAIRS` pairs or so, are dealt to those steps by length, as the pairs of a step are dealt to data shards. A window
is a function of the seed, the batch size and its number, whatever the shards and hosts.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from xretrieval.data.order import SLOTS, MixtureOrder, keyed_hash
from xretrieval.data.packing import deal
from xretrieval.data.preprocessors import choose_prefixes, kept_tokens
from xretrieval.errors import UserError

WINDOW_PAIRS = 16_384
_STEPS_OF_WINDOW = 3  # a key beside those of `order.py`


@dataclasses.dataclass(frozen=True)
class TaskLengths:
    """What decides the lengths of a task's pairs.

    Attributes:
      name, rate: of the task in the mixture.
      lengths_N2: tokens of both sides as `data build` wrote them.
      added_P2: tokens that the frame of a pair adds to each side: row 0 the task's own prefixes and suffixes, then those with each neutral
        prefix.
      drop_rate, neutral_rate: as in `pipeline.TaskData`.
    """

    name: str
    rate: float
    lengths_N2: np.ndarray
    added_P2: np.ndarray
    drop_rate: float = 0.0
    neutral_rate: float = 0.0

    @property
    def longest(self) -> int:
        """Tokens that no side is longer than.

        Raises:
          UserError: a side is empty.
        """
        if self.lengths_N2.min() == 0:
            raise UserError(f"task {self.name} has an empty side; check the manifest with `xretrieval data check`, then build again")
        return int((self.lengths_N2.max(axis=0).astype(np.int64) + self.added_P2.max(axis=0)).max())


class Schedule:
    """The pairs of every step, levelled, and their lengths.

    Attributes:
      order: which example stands at a position.
      window_steps: steps that are levelled together.
      longest: tokens that no side of a task with a rate is longer than.

    Raises:
      UserError: a side is empty.
    """

    def __init__(self, tasks: Sequence[TaskLengths], batch_size: int, seed: int):
        self.tasks, self.batch_size, self.seed = tuple(tasks), batch_size, seed
        self.order = MixtureOrder.create([t.name for t in tasks], [t.rate for t in tasks], [len(t.lengths_N2) for t in tasks], seed)
        # At most half an epoch of each task in a window: levelling must not bring a pair and its repetition into one step.
        halves = [
            len(t.lengths_N2) * SLOTS // (2 * count) for t, count in zip(tasks, self.order.slots_of_task.tolist(), strict=True) if count
        ]
        self.window_steps = max(1, min(WINDOW_PAIRS, *halves) // batch_size)
        self.longest = max(task.longest for task in tasks if task.rate > 0)
        self._window: tuple[int, np.ndarray, np.ndarray] | None = None

    def lengths_at(self, positions_N: np.ndarray) -> np.ndarray:
        """Tokens of both sides of the pairs at `positions_N`, int64 [N, 2]: exactly those that assembly makes."""
        task_N, example_N = self.order.at(positions_N)
        lengths_N2 = np.empty((len(positions_N), 2), np.int64)
        for k in np.unique(task_N):
            task, here = self.tasks[k], np.flatnonzero(task_N == k)
            positions, lengths_n2 = positions_N[here], task.lengths_N2[example_N[here]].astype(np.int64)
            lengths_n2[:, 0] = kept_tokens(lengths_n2[:, 0], task.drop_rate, self.seed, positions)
            frame = choose_prefixes(task.neutral_rate, len(task.added_P2) - 1, self.seed, positions)
            lengths_N2[here] = lengths_n2 + task.added_P2[frame]
        return lengths_N2

    def step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of a step's pairs, int64 [B], rising, and their lengths, int64 [B, 2]."""
        number, within = divmod(step, self.window_steps)
        window = self._window  # one read and one write of one reference: threads may share a schedule
        if window is None or window[0] != number:
            self._window = window = (number, *self.window(number))
        return window[1][within], window[2][within]

    def window(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions, int64 [W, B], and lengths, int64 [W, B, 2], of the steps from number * W on, W = `window_steps`."""
        steps = self.window_steps
        positions = (number * steps * self.batch_size) + np.arange(steps * self.batch_size)
        lengths_N2 = self.lengths_at(positions)
        # Being dealt to first makes a step the longest by a little: which step that is differs from window to window.
        turns = np.argsort(keyed_hash(self.seed, _STEPS_OF_WINDOW, number, np.arange(steps)), kind="stable")
        places_WB = np.sort(deal(lengths_N2, steps)[turns], axis=1)
        return positions[places_WB], lengths_N2[places_WB]
