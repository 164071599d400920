"""Packing: the pairs of a batch to data shards, the two sides of each pair into rows of fixed length that segments of both sides share.

Speech is 5 to 10 times as long as text, so a row for every side would be padding mostly. Both sides of a pair go to one shard, so that
pooling and pairing stay inside it.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xretrieval.data.vocabulary import PAD_ID


class Shape(NamedTuple):
    """What is fixed for all steps of a run, so that nothing is compiled twice: tokens of a row, rows a data shard, segments of a row."""

    row_length: int
    rows: int
    num_segments: int


class Places(NamedTuple):
    """Where the segments of one shard lie; int64 [N] each, in the order in which they were given.

    Segment numbers count from 0 in each row. A row's segments lie side by side from its first token on; what is left of it is padding.
    """

    row_N: np.ndarray
    offset_N: np.ndarray
    segment_N: np.ndarray
    rows: int


def deal(lengths_B2: np.ndarray, shards: int) -> np.ndarray:
    """Deals the pairs of a batch to `shards` in rounds, from the longest pair to the shortest.

    In each round every shard gets one pair, and the one with the fewest tokens so far gets the longest. At first that is a snake, to and fro.
    A snake that goes on gives the fullest of 8 shards of 64 pairs 4 to 7 % more than the mean; this, less than 2 %.

    Args:
      lengths_B2: tokens of both sides of each pair.
      shards: how many; it divides B.

    Returns:
      int64 [shards, B / shards]: places in the batch, longest pair first. Pairs of one length come in the order of the batch.
    """
    total_B = np.sum(lengths_B2, axis=1)
    rounds_KS = np.argsort(-total_B, kind="stable").reshape(-1, shards)
    if shards == 1:
        return rounds_KS.T
    tokens_KS = total_B[rounds_KS]
    dealt_KS, held_S = np.empty_like(rounds_KS), np.zeros(shards, np.int64)
    for dealt_S, round_S, tokens_S in zip(dealt_KS, rounds_KS, tokens_KS, strict=True):
        turn_S = np.argsort(held_S, kind="stable")
        dealt_S[turn_S] = round_S
        held_S[turn_S] += tokens_S
    return np.ascontiguousarray(dealt_KS.T)


def pack(lengths_N: np.ndarray, row_length: int, max_segments: int | None = None) -> Places:
    """Best fit decreasing: the longest segment first, each into the fullest row that still has room for it; the earlier row where two tie.

    Segments of one length fill a row together, because the row that just took one is the fullest that fits the next; and a bit for each
    free space that some row has finds the tightest at once: 8,192 segments take some milliseconds.

    Args:
      lengths_N: each in [1, row_length].
      row_length: tokens of a row.
      max_segments: the most that a row may hold; None for as many as fit.

    Raises:
      ValueError: a segment that is empty or longer than a row.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    sorted_N = lengths_N[order_N]
    if len(sorted_N) and not 1 <= sorted_N[-1] <= sorted_N[0] <= row_length:
        raise ValueError(f"segments of {sorted_N[-1]} to {sorted_N[0]} tokens do not fit rows of {row_length}")
    begins = np.flatnonzero(np.diff(sorted_N, prepend=-1)).tolist()
    most = max_segments or row_length
    rows_with: dict[int, list[int]] = {}  # free space -> rows that have it, a heap
    spaces = 0  # bit i: some row has i tokens free
    held: list[int] = []  # segments of each row
    runs = []  # (row, offset, first segment number, segments, their length)
    for begin, end in zip(begins, [*begins[1:], len(sorted_N)], strict=True):
        length, left = int(sorted_N[begin]), end - begin
        while left:
            fitting = spaces >> length
            if fitting:
                free = length + (fitting & -fitting).bit_length() - 1
                row = heapq.heappop(rows_with[free])
                if not rows_with[free]:
                    spaces ^= 1 << free
            else:
                row, free = len(held), row_length
                held.append(0)
            count = min(free // length, left, most - held[row])
            runs.append((row, row_length - free, held[row], count, length))
            left, free = left - count, free - count * length
            held[row] += count
            if free and held[row] < most:
                heapq.heappush(rows_with.setdefault(free, []), row)
                spaces |= 1 << free
    row_K, offset_K, first_K, count_K, length_K = np.array(runs, np.int64).reshape(-1, 5).T
    within_N = np.arange(len(sorted_N)) - np.repeat(np.cumsum(count_K) - count_K, count_K)
    row_N, offset_N, segment_N = np.empty((3, len(sorted_N)), np.int64)
    row_N[order_N] = np.repeat(row_K, count_K)
    offset_N[order_N] = np.repeat(offset_K, count_K) + within_N * np.repeat(length_K, count_K)
    segment_N[order_N] = np.repeat(first_K, count_K) + within_N
    return Places(row_N, offset_N, segment_N, len(held))


def assemble(sides: Sequence[Sequence[np.ndarray]], places: Sequence[Places], shape: Shape) -> dict[str, np.ndarray]:
    """Token arrays of some shards.

    Args:
      sides: for each shard its segments, left and right of the first pair, of the second, and so on; int32 [l] each.
      places: where they lie.
      shape: of every shard.

    Returns:
      {"tokens", "segment_ids", "positions": int32 [R, L], "left", "right": int32 [b]}, R = shards * rows, b = pairs of these shards.
      Segment IDs count from 1 in each row, 0 is padding; positions restart in each segment; `left` and `right` are the slot of each side,
      row within the shard * num_segments + segment ID - 1.
    """
    length, rows, num_segments = shape
    segments = [tokens_L for shard in sides for tokens_L in shard]
    lengths_N = np.array([len(tokens_L) for tokens_L in segments])
    starts_N = np.concatenate([(shard * rows + at.row_N) * length + at.offset_N for shard, at in enumerate(places)])
    within_T = np.arange(lengths_N.sum()) - np.repeat(np.cumsum(lengths_N) - lengths_N, lengths_N)
    where_T = np.repeat(starts_N, lengths_N) + within_T
    slots_N = np.concatenate([at.row_N * num_segments + at.segment_N for at in places]).astype(np.int32)
    ids_N = np.concatenate([at.segment_N for at in places]) + 1

    def rows_of(values_T: np.ndarray, padding: int) -> np.ndarray:
        flat = np.full(len(places) * rows * length, padding, np.int32)
        flat[where_T] = values_T
        return flat.reshape(-1, length)

    return {
        "tokens": rows_of(np.concatenate(segments), PAD_ID),
        "segment_ids": rows_of(np.repeat(ids_N, lengths_N), 0),
        "positions": rows_of(within_T, 0),
        "left": np.ascontiguousarray(slots_N[0::2]),
        "right": np.ascontiguousarray(slots_N[1::2]),
    }
