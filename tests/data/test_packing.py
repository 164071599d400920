"""Dealing and packing: properties over many random sets of lengths, a small example by hand, the padding of speech and text."""

import numpy as np
import packed_batches
import pytest

from xretrieval.data.packing import Shape, assemble, deal, pack

DRAWS = 200


def lengths(rng, most=70, longest=40):
    return rng.integers(1, longest + 1, rng.integers(1, most))


def best_fit_decreasing(lengths_N, row_length, most):
    """The textbook's loop: for each segment, look at every row."""
    rows, placed = [], {}
    for i in sorted(range(len(lengths_N)), key=lambda i: (-lengths_N[i], i)):
        fitting = [r for r, row in enumerate(rows) if sum(row) + lengths_N[i] <= row_length and len(row) < most]
        if not fitting:
            rows.append([])
        r = max(fitting, key=lambda r: (sum(rows[r]), -r)) if fitting else len(rows) - 1
        placed[i] = (r, sum(rows[r]), len(rows[r]))
        rows[r].append(lengths_N[i])
    return [placed[i] for i in range(len(lengths_N))], len(rows)


def test_an_example_by_hand():
    # Rows of 10. The 7 opens a row; the first 4 does not fit behind it and opens another, the second 4 joins it; of 3 left in the one and 2 in
    # the other, the 3 fills up the row of the 7; the 2 fills up the row of the fours.
    places = pack(np.array([4, 7, 2, 4, 3]), 10)
    assert places.row_N.tolist() == [1, 0, 1, 1, 0]
    assert places.offset_N.tolist() == [0, 0, 8, 4, 7]
    assert places.segment_N.tolist() == [0, 0, 2, 1, 1]
    assert places.rows == 2


def test_packing_is_best_fit_decreasing():
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        lengths_N, row_length = lengths(rng), int(rng.integers(40, 100))
        most = int(rng.integers(1, 8)) if rng.random() < 0.5 else None
        places = pack(lengths_N, row_length, most)
        expected, rows = best_fit_decreasing(lengths_N.tolist(), row_length, most or row_length)
        assert list(zip(places.row_N, places.offset_N, places.segment_N, strict=True)) == expected
        assert places.rows == rows


def test_rows_are_filled_without_overlap_or_gap_and_not_beyond_their_limits():
    rng = np.random.default_rng(1)
    for _ in range(DRAWS):
        lengths_N, row_length, most = lengths(rng), int(rng.integers(40, 100)), int(rng.integers(1, 9))
        places = pack(lengths_N, row_length, most)
        assert set(places.row_N) == set(range(places.rows)), "no row is empty"
        for row in range(places.rows):
            here = np.flatnonzero(places.row_N == row)
            here = here[np.argsort(places.segment_N[here])]
            assert len(here) <= most
            assert places.segment_N[here].tolist() == list(range(len(here)))
            assert places.offset_N[here].tolist() == [0, *np.cumsum(lengths_N[here])[:-1]]
            assert lengths_N[here].sum() <= row_length


@pytest.mark.parametrize("wrong", [[3, 11], [3, 0]])
def test_a_segment_that_no_row_holds_is_an_error(wrong):
    with pytest.raises(ValueError, match="do not fit rows of 10"):
        pack(np.array(wrong), 10)


def test_every_shard_gets_as_many_pairs_and_each_pair_once():
    rng = np.random.default_rng(2)
    for _ in range(DRAWS):
        shards, share = int(rng.integers(1, 9)), int(rng.integers(1, 12))
        lengths_B2 = rng.integers(1, 50, (shards * share, 2))
        dealt = deal(lengths_B2, shards)
        assert dealt.shape == (shards, share)
        assert sorted(dealt.ravel()) == list(range(shards * share))
        # In each round the shard with the fewest tokens takes the longest.
        totals, held = lengths_B2.sum(axis=1)[dealt], np.zeros(shards)
        for turn in range(share):
            assert turn == 0 or totals[:, turn - 1].min() >= totals[:, turn].max()
            assert (totals[np.argsort(held, kind="stable"), turn] == sorted(totals[:, turn], reverse=True)).all()
            held += totals[:, turn]


def test_pairs_of_one_length_are_dealt_in_the_order_of_the_batch():
    assert deal(np.full((8, 2), 5), 2).T.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert deal(np.array([[1, 1], [9, 9], [5, 5], [7, 7]]), 2).tolist() == [[1, 0], [3, 2]]


def test_shards_get_about_as_many_tokens():
    rng = np.random.default_rng(3)
    speech_B, text_B2 = 327 * np.exp(0.5 * rng.standard_normal(512)), 30 * np.exp(0.5 * rng.standard_normal((512, 2)))
    lengths_B2 = np.ceil(np.where(rng.random((512, 1)) < 0.5, np.stack([speech_B, text_B2[:, 0]], axis=1), text_B2)).astype(int)
    tokens_S = lengths_B2.sum(axis=1)[deal(lengths_B2, 8)].sum(axis=1)
    # One recording of 2,000 units is more than a shard of 64 pairs makes up for; all others are equal.
    assert sorted(tokens_S / tokens_S.mean())[-1] < 1.02
    assert sorted(tokens_S / tokens_S.mean())[-2] < 1.004
    snake = np.argsort(-lengths_B2.sum(axis=1)).reshape(-1, 8)
    snake[1::2] = snake[1::2, ::-1]
    by_snake_S = lengths_B2.sum(axis=1)[snake].sum(axis=0)
    assert by_snake_S.max() / by_snake_S.mean() > 1.03, "to and fro all the way is not as even"


def test_arrays_hold_every_side_of_every_shard():
    rng = np.random.default_rng(4)
    for _ in range(DRAWS // 4):
        shards, share = int(rng.integers(1, 4)), int(rng.integers(1, 10))
        sides = [[rng.integers(1, 99, rng.integers(1, 30)).astype(np.int32) for _ in range(2 * share)] for _ in range(shards)]
        places = [pack(np.array([len(side) for side in shard]), 40) for shard in sides]
        shape = Shape(40, max(at.rows for at in places) + 1, 40)
        batch = assemble(sides, places, shape)
        assert batch["tokens"].shape == (shards * shape.rows, 40)
        assert {x.dtype for x in batch.values()} == {np.dtype(np.int32)}
        packed_batches.check_rows(batch)
        found = packed_batches.pairs({**batch, "pair_id": np.zeros(shards * share)}, shards, shape.num_segments)
        assert [side for left, right, _ in found for side in (left, right)] == [side.tolist() for shard in sides for side in shard]
        assert (batch["segment_ids"] > 0).sum() == sum(len(side) for shard in sides for side in shard), "and nothing else"
