"""Batches: a function of (seed, step, shards); prefixes and dropped tokens by key; lengths known before a record is read."""

import numpy as np
import packed_batches
import pytest

from xretrieval.corpora import shards
from xretrieval.data import records
from xretrieval.data.packing import Shape
from xretrieval.data.pipeline import BatchPipeline, TaskData
from xretrieval.data.plan import plan
from xretrieval.errors import UserError

NEUTRAL = (((7, 9, 9), (7, 8)), ((6,), (6, 8, 8, 8)))


def task(folder, count=40, longest=11, **more):
    """Example i: inputs of 10 + i % 40, i times mod the longest; targets of 60 + i % 40, twice."""
    examples = [(np.full(i % longest + 1, 10 + i % 40), np.full(2, 60 + i % 40), i * 2**40 + i) for i in range(count)]
    folder.mkdir()
    shards.commit_shard(str(folder), 0, 1, "key", [records.pack(*example) for example in examples], {})
    records.write_index(str(folder), "key", [count], np.array([(len(a), len(b)) for a, b, _ in examples]))
    return TaskData(folder.name, 1.0, records.TaskRecords(folder), ((5, 9), (5, 8)), **more)


def planned(data, batch_size, vocab_size, seed, shards=1, steps=60, **wanted):
    """The pipeline in a shape that the first steps fit."""
    made = plan([one.lengths() for one in data], batch_size, seed, shards, steps, **wanted)
    return BatchPipeline(data, batch_size, vocab_size, seed, shards, made.shape)


def equal(first, second):
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def pairs(pipeline, step):
    return packed_batches.pairs(pipeline.batch(step), pipeline.shards, pipeline.shape.num_segments)


@pytest.mark.parametrize("number", [1, 4])
def test_rows_hold_prefix_tokens_and_suffix_and_nothing_is_cropped(tmp_path, number):
    pipeline = planned([task(tmp_path / "a", suffixes=((3,), (3, 4)))], 40, 128, seed=3, shards=number)
    batch = pipeline.batch(0)
    packed_batches.check_rows(batch)
    assert batch["tokens"].shape == (number * pipeline.shape.rows, pipeline.shape.row_length)
    assert batch["pair_id"].dtype == np.int64
    seen = set()
    for left, right, pair in pairs(pipeline, 0):
        i = pair & 0xFFFFFF
        seen.add(i)
        assert pair == i * 2**40 + i
        assert left == [5, 9] + [10 + i] * (i % 11 + 1) + [3]
        assert right == [5, 8, 60 + i, 60 + i, 3, 4]
    assert seen == set(range(40)), "one epoch holds every example once"


def mixed(tmp_path):
    return [
        task(tmp_path / "a", 4000, drop_rate=0.3, neutral_rate=0.5, neutral_prefixes=NEUTRAL, suffixes=((3, 4), (3,))),
        task(tmp_path / "b", 1700),
    ]


def test_a_batch_is_a_function_of_seed_step_and_shards(tmp_path):
    data = mixed(tmp_path)
    one, other, same = (planned(data, 24, 128, seed=seed, shards=4) for seed in (3, 4, 3))
    assert one.schedule.window_steps > 20
    in_order = list(one.batches(0, 90))
    assert all(equal(same.batch(step), in_order[step]) for step in (80, 2, 50))
    assert not equal(one.batch(2), other.batch(2))


def test_hosts_slices_make_the_whole_and_shards_do_not_change_the_pairs(tmp_path):
    data = mixed(tmp_path)
    by_shards = {number: planned(data, 24, 128, seed=3, shards=number) for number in (1, 2, 4, 8)}
    for step in (0, 5, 300):
        whole = by_shards[4].batch(step)
        for hosts in ([[0, 1], [2, 3]], [[0], [1], [2], [3]]):
            parts = [by_shards[4].batch(step, held) for held in hosts]
            assert equal({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)
        scattered, first, third = (by_shards[4].batch(step, held) for held in ([0, 2], [0], [2]))
        assert equal(scattered, {name: np.concatenate([first[name], third[name]]) for name in whole})
        sets = [sorted(pairs(pipeline, step)) for pipeline in by_shards.values()]
        assert all(found == sets[0] for found in sets)


def test_a_host_reads_no_records_but_its_own(tmp_path):
    data = mixed(tmp_path)
    pipeline, read = planned(data, 24, 128, seed=3, shards=4), []
    for one in data:
        one.records.read = lambda indices, read_them=one.records.read: read.extend(indices) or read_them(indices)
    pipeline.batch(5, [1])
    assert len(read) == 6


def test_levelled_steps_hold_every_position_once_and_about_as_many_tokens(tmp_path):
    pipeline = planned(mixed(tmp_path), 24, 128, seed=3)
    schedule, steps = pipeline.schedule, pipeline.schedule.window_steps
    for first in (0, steps):
        found = np.concatenate([schedule.step(step)[0] for step in range(first, first + steps)])
        assert sorted(found) == list(range(first * 24, (first + steps) * 24))
        tokens = np.array([schedule.step(step)[1].sum() for step in range(first, first + steps)])
        unlevelled = schedule.lengths_at(np.sort(found)).reshape(steps, -1).sum(axis=1)
        assert np.ptp(tokens) <= 8 < np.ptp(unlevelled) / 4


def test_the_step_with_the_longest_pair_differs_from_window_to_window(tmp_path):
    longest = task(tmp_path / "a", 4000, longest=500)
    schedule = planned([longest], 24, 128, seed=3).schedule
    assert len({int(schedule.window(number)[1].sum(axis=2).max(axis=1).argmax()) for number in range(8)}) > 4


def test_every_step_is_in_the_shape_that_its_plan_says(tmp_path):
    data = mixed(tmp_path)
    made = plan([one.lengths() for one in data], 48, 3, 8, 40, row_length=24)
    pipeline = BatchPipeline(data, 48, 128, 3, 8, made.shape)
    used, segments, tokens = [], [], []
    for step in range(40):
        ids = pipeline.batch(step)["segment_ids"].reshape(8, made.rows, made.row_length)
        assert np.ptp((ids > 0).sum(axis=(1, 2))) <= 4, "shards have about as many tokens"
        used.append((ids > 0).any(axis=2).sum(axis=1).max())
        segments.append(ids.max())
        tokens.append((ids > 0).sum())
    assert max(used) == made.rows
    assert made.num_segments - 8 < max(segments) <= made.num_segments
    assert np.mean(tokens) == made.tokens
    assert 1 - min(tokens) / ids.size == pytest.approx(made.worst_padding)


def test_a_window_holds_no_more_than_half_an_epoch(tmp_path):
    data = [task(tmp_path / "a", 4000), task(tmp_path / "b", 100)]
    schedule = planned(data, 8, 128, seed=3).schedule
    assert schedule.window_steps == 12, "200 pairs, half of them b's, make 100 // 8 windows"
    assert planned(data, 4000, 128, seed=3).schedule.window_steps == 1


def test_lengths_from_the_index_are_those_that_assembly_makes(tmp_path):
    data = mixed(tmp_path)
    pipeline = planned(data, 64, 128, seed=7)
    positions = np.random.default_rng(0).integers(0, 10**6, 3000)
    task_N, example_N = pipeline.schedule.order.at(positions)
    found = pipeline.schedule.lengths_at(positions)
    made = [
        [len(side) for side in data[k].pairs_at(example[None], 7, position[None])[0][:2]]
        for k, example, position in zip(task_N, example_N, positions, strict=True)
    ]
    assert found.tolist() == made


def test_neutral_prefixes_come_at_their_rate_and_on_both_sides(tmp_path):
    pipeline = planned([task(tmp_path / "a", neutral_rate=0.25, neutral_prefixes=NEUTRAL)], 2000, 128, seed=0)
    found = pairs(pipeline, 0)
    names = np.array([left[0] for left, _, _ in found])
    assert (names == [right[0] for _, right, _ in found]).all()
    for left, right, pair in found:
        own, i = {5: ((5, 9), (5, 8)), 7: NEUTRAL[0], 6: NEUTRAL[1]}[left[0]], pair & 0xFFFFFF
        assert left == [*own[0], *[10 + i] * (i % 11 + 1)]
        assert right == [*own[1], 60 + i, 60 + i]
    # Standard error of a share of 2000: 1 point and less.
    for name, share in ((5, 0.75), (6, 0.125), (7, 0.125)):
        assert abs((names == name).mean() - share) < 0.04


def test_dropped_tokens_come_at_their_rate_and_never_all(tmp_path):
    pipeline = planned([task(tmp_path / "a", drop_rate=0.3)], 2000, 128, seed=0)
    found = pairs(pipeline, 0)
    whole = np.array([(pair & 0xFFFFFF) % 11 + 1 for _, _, pair in found])
    kept = np.array([len(left) - 2 for left, _, _ in found])
    long = whole > 5
    assert abs(kept[long].sum() / whole[long].sum() - 0.7) < 0.02
    assert kept.min() == 1
    assert all(len(right) == 4 for _, right, _ in found), "only inputs are dropped"


def test_an_example_longer_than_a_row_is_an_error(tmp_path):
    with pytest.raises(UserError, match="task a has a side of 13 tokens, the longest of all; set train.row_length to at least that"):
        planned([task(tmp_path / "a")], 8, 128, seed=0, row_length=12)
    planned([task(tmp_path / "b")], 8, 128, seed=0, row_length=13).batch(0)


def test_the_longest_side_counts_the_longest_frame(tmp_path):
    data = [task(tmp_path / "a", neutral_rate=0.1, neutral_prefixes=NEUTRAL, suffixes=((1,), ()))]
    assert planned(data, 8, 128, seed=0).schedule.longest == 11 + 3 + 1


def test_a_step_with_too_few_rows_is_an_error(tmp_path):
    pipeline = BatchPipeline([task(tmp_path / "a")], 40, 128, 0, 1, Shape(row_length=32, rows=3, num_segments=8))
    with pytest.raises(UserError, match="step 2 needs 15 rows of 32 tokens a data shard and there are 3; set train.rows"):
        pipeline.batch(2)


def test_what_does_not_divide_is_an_error(tmp_path):
    data = [task(tmp_path / "a")]
    with pytest.raises(UserError, match="8 pairs does not divide over 3 data shards"):
        planned(data, 8, 128, seed=0, shards=3)


def test_a_token_outside_the_vocabulary_is_an_error(tmp_path):
    pipeline = planned([task(tmp_path / "a")], 8, 60, seed=0)
    with pytest.raises(UserError, match="task a: token"):
        pipeline.batch(0)
    with pytest.raises(UserError, match="task a: token"):
        next(pipeline.batches(0, 3))
    with pytest.raises(UserError, match="task b: token -1 is outside"):
        planned([task(tmp_path / "b", suffixes=((-1,), ()))], 8, 128, seed=0).batch(0)


def test_records_that_the_index_does_not_describe_are_an_error(tmp_path):
    data = task(tmp_path / "a")
    lengths = np.load(tmp_path / "a" / "index.npy")
    records.write_index(str(tmp_path / "a"), "key", [40], np.roll(lengths, 1, axis=0))
    again = TaskData("a", 1.0, records.TaskRecords(tmp_path / "a"), data.prefixes)
    with pytest.raises(UserError, match="has other lengths than index.npy says"):
        planned([again], 8, 128, seed=0).batch(0)


def test_an_empty_side_is_an_error(tmp_path):
    task(tmp_path / "a")
    lengths = np.load(tmp_path / "a" / "index.npy")
    lengths[7, 1] = 0
    records.write_index(str(tmp_path / "a"), "key", [40], lengths)
    with pytest.raises(UserError, match="task a has an empty side"):
        planned([TaskData("a", 1.0, records.TaskRecords(tmp_path / "a"), ((5,), (5,)))], 8, 128, seed=0)


def test_seqio_frames_examples_as_assembly_does():
    import tensorflow as tf

    from tasks.task import add_prefixes
    from xretrieval.data.preprocessors import framed

    example = {"inputs": np.arange(3, dtype=np.int32), "targets": np.arange(10, 12, dtype=np.int32), "pair_id": np.int64(2**40)}
    dataset = add_prefixes(tf.data.Dataset.from_tensors(example), (5, 6), (7,), (8,), (9, 9))
    (found,) = dataset.as_numpy_iterator()
    assert found["inputs"].tolist() == [5, 6, 0, 1, 2, 8] == framed(example["inputs"], (5, 6), (8,)).tolist()
    assert found["targets"].tolist() == [7, 10, 11, 9, 9] == framed(example["targets"], (7,), (9, 9)).tolist()
    assert found["pair_id"] == 2**40
