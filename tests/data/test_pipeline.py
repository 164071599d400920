"""Batches: a function of (seed, step); prefixes and dropped tokens by key; lengths checked before training."""

import numpy as np
import pytest

from xretrieval.corpora import shards
from xretrieval.data import records
from xretrieval.data.pipeline import BatchPipeline, TaskData
from xretrieval.errors import UserError

NEUTRAL = (((7, 9), (7, 8)), ((6, 9), (6, 8)))


def task(folder, count=40, longest=11, **more):
    """Example i: inputs of 10 + i, i times mod the longest; targets of 60 + i."""
    examples = [(np.full(i % longest + 1, 10 + i), np.array([60 + i, 60 + i]), i * 2**40 + i) for i in range(count)]
    folder.mkdir()
    shards.commit_shard(str(folder), 0, 1, "key", [records.pack(*example) for example in examples], {})
    records.write_index(str(folder), "key", [count], np.array([(len(a), len(b)) for a, b, _ in examples]))
    return TaskData(folder.name, 1.0, records.TaskRecords(folder), ((5, 9), (5, 8)), **more)


def equal(first, second):
    return all((first[name] == second[name]).all() for name in first)


def test_rows_hold_prefix_and_tokens_and_nothing_is_cropped(tmp_path):
    pipeline = BatchPipeline([task(tmp_path / "a")], 40, 128, seed=3)
    assert pipeline.lengths == (16, 8), "13 and 4 tokens, up to a multiple of 8"
    batch = pipeline.batch(0)
    seen = set()
    for left, right, n, m, pair in zip(
        *(batch[k] for k in ("left_tokens", "right_tokens", "left_lengths", "right_lengths", "pair_id")), strict=True
    ):
        i = int(pair) & 0xFFFFFF
        seen.add(i)
        assert pair == i * 2**40 + i
        assert left[:n].tolist() == [5, 9] + [10 + i] * (i % 11 + 1)
        assert right[:m].tolist() == [5, 8, 60 + i, 60 + i]
        assert not left[n:].any()
        assert not right[m:].any()
    assert seen == set(range(40)), "one epoch holds every example once"


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    data = [task(tmp_path / "a", drop_rate=0.3, neutral_rate=0.5, neutral_prefixes=NEUTRAL), task(tmp_path / "b", count=17)]
    one, other = (BatchPipeline(data, 24, 128, seed=seed) for seed in (3, 4))
    in_order = list(one.batches(0, 9))
    assert all(equal(one.batch(step), in_order[step]) for step in (8, 2, 5))
    assert not equal(one.batch(2), other.batch(2))
    halves = [one.batch(5, host, 2) for host in (0, 1)]
    assert all((np.concatenate([half[name] for half in halves]) == in_order[5][name]).all() for name in in_order[5])


def test_neutral_prefixes_come_at_their_rate_and_on_both_sides(tmp_path):
    pipeline = BatchPipeline([task(tmp_path / "a", neutral_rate=0.25, neutral_prefixes=NEUTRAL)], 2000, 128, seed=0)
    batch = pipeline.batch(0)
    left, right = batch["left_tokens"][:, 0], batch["right_tokens"][:, 0]
    assert (left == right).all()
    # Standard error of a share of 2000: 1 point and less.
    for name, share in ((5, 0.75), (6, 0.125), (7, 0.125)):
        assert abs((left == name).mean() - share) < 0.04


def test_dropped_tokens_come_at_their_rate_and_never_all(tmp_path):
    pipeline = BatchPipeline([task(tmp_path / "a", drop_rate=0.3)], 2000, 128, seed=0)
    batch = pipeline.batch(0)
    whole = (batch["pair_id"] & 0xFFFFFF) % 11 + 1
    kept = batch["left_lengths"] - 2
    long = whole > 5
    assert abs(kept[long].sum() / whole[long].sum() - 0.7) < 0.02
    assert kept.min() == 1
    assert (batch["right_lengths"] == 4).all(), "only inputs are dropped"


@pytest.mark.parametrize(
    "flags,message", [({"input_length": 12}, "train.input_length to at least that"), ({"target_length": 3}, "a side of 4")]
)
def test_an_example_longer_than_its_row_is_an_error(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        BatchPipeline([task(tmp_path / "a")], 8, 128, seed=0, **flags)


def test_a_token_outside_the_vocabulary_is_an_error(tmp_path):
    pipeline = BatchPipeline([task(tmp_path / "a")], 8, 60, seed=0)
    with pytest.raises(UserError, match="task a: token"):
        pipeline.batch(0)
    with pytest.raises(UserError, match="task a: token"):
        next(pipeline.batches(0, 3))
