"""The order of a mixture as a pure function of (seed, position): nothing to save, nothing to replay.

A seeded table of 65,536 slots holds exact integer counts for each task. Position p falls on slot p mod M; the task's example number
is (p div M) * n_k + rank[p mod M]; its epoch is that number div N_k; the example is a keyed permutation of the rest.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from xretrieval.errors import UserError

SLOTS = 65_536
_ROUNDS = 4


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed_hash(*parts: int | np.ndarray) -> np.ndarray:
    """uint64 hash of integers; arrays broadcast."""
    with np.errstate(over="ignore"):
        state: np.ndarray = np.asarray(0x9E3779B97F4A7C15, np.uint64)
        for part in parts:
            state = _mix((state ^ np.asarray(part, np.uint64)) + np.uint64(0x9E3779B97F4A7C15))
        return state


def permute(index: np.ndarray, size: int, key: np.ndarray | int) -> np.ndarray:
    """A keyed permutation of [0, size), by a Feistel network over the next even power of two, walked until it falls inside.

    Args:
      index: int64 [...], each in [0, size).
      size: how many.
      key: uint64, or an array of one key an index.

    Returns:
      int64 [...]: for a fixed key, distinct for distinct indices.
    """
    half_bits = max(1, (max(2, size) - 1).bit_length() + 1 >> 1)
    half_mask = np.uint64((1 << half_bits) - 1)
    key = np.broadcast_to(np.asarray(key, np.uint64), np.shape(index))
    value = np.array(index, np.uint64)
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = value[outside] >> np.uint64(half_bits), value[outside] & half_mask
        for step in range(_ROUNDS):
            left, right = right, left ^ (keyed_hash(key[outside], step, right) & half_mask)
        value[outside] = (left << np.uint64(half_bits)) | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class MixtureOrder:
    """Which example of which task stands at a position."""

    seed: int
    sizes: tuple[int, ...]
    task_of_slot: np.ndarray
    rank_of_slot: np.ndarray
    slots_of_task: np.ndarray

    @classmethod
    def create(cls, names: Sequence[str], rates: Sequence[float], sizes: Sequence[int], seed: int) -> "MixtureOrder":
        """Rates are relative; a task with rate 0 gets no slot.

        Raises:
          UserError: a rate that is negative or not finite, a rate above 0 that rounds to no slot, or an empty task with a rate.
        """
        shares = np.asarray(rates, np.float64)
        for name, rate, size in zip(names, shares, sizes, strict=True):
            if not np.isfinite(rate) or rate < 0:
                raise UserError(f"mixture rate of {name} is {rate}: rates are finite and at least 0")
            if rate > 0 and size == 0:
                raise UserError(f"task {name} has mixture rate {rate} and no examples; set its rate to 0 or give it data")
        if shares.sum() <= 0:
            raise UserError("all mixture rates are 0: nothing to train on")
        exact = shares / shares.sum() * SLOTS
        counts = np.floor(exact).astype(np.int64)
        # Largest remainders take what flooring left, in order of the task where they tie.
        order = np.argsort(-(exact - counts), kind="stable")
        counts[order[: SLOTS - counts.sum()]] += 1
        for name, rate, count in zip(names, shares, counts, strict=True):
            if rate > 0 and count == 0:
                raise UserError(f"mixture rate {rate} of {name} is less than one slot in {SLOTS} of the mixture; raise it or set it to 0")
        tasks = np.repeat(np.arange(len(names)), counts)
        task_of_slot = tasks[permute(np.arange(SLOTS), SLOTS, int(keyed_hash(seed, 1)))]
        rank_of_slot = np.empty(SLOTS, np.int64)
        for task, count in enumerate(counts):
            rank_of_slot[task_of_slot == task] = np.arange(count)
        return cls(seed, tuple(sizes), task_of_slot, rank_of_slot, counts)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Task numbers and example indices, both int64 [B], at positions [B]."""
        slot, turn = positions % SLOTS, positions // SLOTS
        task = self.task_of_slot[slot]
        number = turn * self.slots_of_task[task] + self.rank_of_slot[slot]
        example = np.empty_like(number)
        for k in np.unique(task):
            here = task == k
            epoch, rest = number[here] // self.sizes[k], number[here] % self.sizes[k]
            example[here] = permute(rest, self.sizes[k], keyed_hash(self.seed, 2, k, epoch))
        return task, example
