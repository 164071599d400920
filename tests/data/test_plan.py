"""The shape of packed batches: every step fits it, little of it is padding, and what does not fit is said before training."""

import dataclasses
import inspect
import json
import time

import numpy as np
import pytest

from xretrieval.data import plan as plan_lib
from xretrieval.data.packing import deal
from xretrieval.data.plan import plan
from xretrieval.data.schedule import Schedule, TaskLengths
from xretrieval.errors import UserError


def lognormal(rng, mean, longest, count):
    return np.clip(np.round(mean * np.exp(0.5 * rng.standard_normal(count) - 0.125)), 1, longest)


def speech_and_text(translation, count=100_000):
    """Recordings of 327 units with texts of 30 tokens, and a share of pairs of two such texts."""
    rng = np.random.default_rng(0)
    speech, left, right = (lognormal(rng, *numbers, count) for numbers in ((327, 2048), (30, 300), (30, 300)))
    frame = np.zeros((1, 2), int)
    tasks = [TaskLengths("speech", 1 - translation, np.stack([speech, right], axis=1).astype(np.uint16), frame)]
    return [*tasks, TaskLengths("text", translation, np.stack([left, right], axis=1).astype(np.uint16), frame)]


def demo(count=600):
    """As in the demo: 9 languages, spoken and not, 20 to 64 tokens a side."""
    rng = np.random.default_rng(0)
    return [
        TaskLengths(
            f"{kind} {language}",
            rate,
            np.clip(np.round(40 * np.exp(0.22 * rng.standard_normal((count, 2)))), 20, 60).astype(np.uint16),
            np.array([[2, 2], [3, 2]]),
            drop_rate,
            0.1,
        )
        for kind, rate, drop_rate in (("speech", 2.0, 0.1), ("text", 1.0, 0.0))
        for language in range(9)
    ]


@pytest.mark.parametrize("translation", [0.0, 0.5])
@pytest.mark.parametrize("pairs,shards,bar", [(64, 1, 0.08), (64, 8, 0.08), (256, 1, 0.05), (256, 8, 0.05), (1024, 1, 0.025)])
def test_speech_wastes_little(pairs, shards, bar, translation):
    steps = 64_000 // (pairs * shards)
    made = plan(speech_and_text(translation), pairs * shards, 0, shards, steps)
    assert made.padding < bar
    assert 2048 <= made.row_length <= 4096


def test_the_demo_is_planned_in_no_time_and_wastes_little():
    begun = time.monotonic()
    made = plan(demo(), 96, 0, 1, 1000)
    assert made.padding < 0.09
    assert made.row_length <= 128
    assert made.num_segments == 8
    assert time.monotonic() - begun < 8, "about a second where the machine does nothing else"


def needs_of(tasks, step, made):
    """Rows and segments of the fullest shard and row of a step, and its tokens, by the textbook."""
    from test_packing import best_fit_decreasing

    lengths_B2 = Schedule(tasks, made.batch_size, 0).step(step)[1]
    rows, segments = 0, 0
    for dealt in deal(lengths_B2, made.shards):
        placed, used = best_fit_decreasing(lengths_B2[dealt].ravel().tolist(), made.row_length, made.row_length)
        rows, segments = max(rows, used), max(segments, 1 + max(segment for _, _, segment in placed))
    return rows, segments, lengths_B2.sum()


@pytest.mark.parametrize("batch,shards,row_length", [(24, 2, None), (48, 8, 112)])
def test_numbers_are_those_of_the_steps(batch, shards, row_length):
    tasks = demo()
    made = plan(tasks, batch, 0, shards, 30, row_length)
    found = np.array([needs_of(tasks, step, made) for step in range(30)])
    rows, segments, _ = found.max(axis=0)
    size = shards * rows * made.row_length
    assert (made.rows, made.rows_needed) == (rows, rows)
    assert segments <= made.num_segments < segments + 8
    assert made.tokens == found[:, 2].mean()
    assert made.padding == pytest.approx(1 - found[:, 2].mean() / size)
    assert made.worst_padding == pytest.approx(1 - found[:, 2].min() / size)
    all_lengths = np.concatenate([Schedule(tasks, batch, 0).step(step)[1] for step in range(30)])
    for side, name in enumerate(("left", "right")):
        assert made.lengths[name]["mean"] == pytest.approx(all_lengths[:, side].mean())
        assert made.lengths[name]["longest"] == all_lengths[:, side].max()
        for share in (1, 50, 99):
            assert made.lengths[name][f"{share} %"] == np.quantile(all_lengths[:, side], share / 100, method="inverted_cdf")


def test_no_candidate_is_cheaper_by_more_than_a_little():
    tasks = demo()

    def cost(made):
        return made.rows * made.row_length * (1 + made.row_length / 1024)

    made = plan(tasks, 96, 0, 1, 50)
    costs = [cost(plan(tasks, 96, 0, 1, 50, row_length)) for row_length in (64, *range(72, 129, 8), 256)]
    assert cost(made) <= 1.01 * min(costs)
    assert cost(made) < 0.8 * costs[0], "rows for one long side each are mostly padding"


@pytest.mark.parametrize(
    "longest,expected",
    [(60, [64, 72, 80, 88, 96, 104, 112, 120, 128, 256]), (128, [128, 256]), (129, [256, 384, 512]), (1900, list(range(1920, 3841, 128)))],
)
def test_candidates_begin_at_the_longest_side(longest, expected):
    assert plan_lib.candidates(longest) == expected


def test_long_sides_have_few_candidates():
    assert len(plan_lib.candidates(65_000)) <= 20
    assert plan_lib.candidates(65_000)[0] == 65_024


def test_a_step_that_overflows_is_named_before_training():
    tasks = demo()
    free = plan(tasks, 24, 0, 2, 40, row_length=96)
    found = np.array([needs_of(tasks, step, free)[0] for step in range(40)])
    tight = free.rows - 2
    first = int(np.argmax(found > tight))
    assert found[first] < free.rows, "the first that overflows is not the one that needs most"
    message = f"step {first} needs {found[first]} rows of 96 tokens a data shard and train.rows is {tight}; set train.rows to {free.rows}"
    with pytest.raises(UserError, match=message):
        plan(tasks, 24, 0, 2, 40, row_length=96, rows=tight)
    assert plan(tasks, 24, 0, 2, 40, row_length=96, rows=free.rows + 2).rows == free.rows + 2


def test_a_limit_on_segments_is_kept_and_costs_rows():
    free, few = (plan(demo(), 24, 0, 1, 20, row_length=256, max_segments=most) for most in (None, 3))
    assert few.num_segments == 3
    assert few.rows == 16 > free.rows


@pytest.mark.parametrize(
    "flags,message",
    [
        ({"row_length": 40}, "has a side of 63 tokens, the longest of all; set train.row_length"),
        ({"row_length": 64.5}, "train.row_length = 64.5: give a whole number"),
        ({"rows": 0}, "train.rows = 0"),
        ({"max_segments": -1}, "train.max_segments = -1"),
        ({"shards": 5}, "24 pairs does not divide over 5 data shards, those of the mesh times microbatches; .* or train.microbatches"),
    ],
)
def test_settings_that_cannot_be_are_errors(flags, message):
    with pytest.raises(UserError, match=message):
        plan(**{"tasks": demo(), "batch_size": 24, "seed": 0, "shards": 1, "num_steps": 5, **flags})


def test_a_plan_is_kept_and_made_anew_for_other_lengths_or_settings(tmp_path):
    cache, tasks = tmp_path / "run" / "packing.json", demo()
    made = plan(tasks, 24, 0, 2, 40, cache=cache)
    kept = json.loads(cache.read_text())
    cache.write_text(json.dumps({**kept, "plan": {**kept["plan"], "rows": 77}}))
    assert plan(tasks, 24, 0, 2, 40, cache=cache).rows == 77, "read, not computed"
    other = [dataclasses.replace(tasks[0], lengths_N2=tasks[0].lengths_N2[::-1]), *tasks[1:]]
    another = [dataclasses.replace(tasks[0], drop_rate=0.2), *tasks[1:]]
    for changed in (
        {"num_steps": 41},
        {"shards": 1},
        {"seed": 1},
        {"row_length": 96},
        {"rows": 50},
        {"max_segments": 9},
        {"batch_size": 26},
        {"tasks": other},
        {"tasks": another},
    ):
        settings = {"tasks": tasks, "batch_size": 24, "seed": 0, "shards": 2, "num_steps": 40, "cache": cache, "keep": False, **changed}
        assert plan(**settings).rows != 77
    assert plan(tasks, 24, 0, 2, 40, cache=cache).rows == 77, "`keep` was off"
    cache.write_text("{")
    with pytest.raises(UserError, match="packing.json: damaged"):
        plan(tasks, 24, 0, 2, 40, cache=cache)
    assert made == dataclasses.replace(made, **kept["plan"])


def test_processes_find_what_one_process_finds(tmp_path, monkeypatch):
    tasks = demo()
    np.save(tmp_path / "index.npy", tasks[0].lengths_N2)
    tasks[0] = dataclasses.replace(tasks[0], lengths_N2=np.load(tmp_path / "index.npy", mmap_mode="r"))
    alone = plan(tasks, 96, 0, 2, 100)
    monkeypatch.setattr(plan_lib, "_ALONE", 0)
    assert plan(tasks, 96, 0, 2, 100) == alone


def test_the_verb_takes_what_train_takes():
    from xretrieval import verbs
    from xretrieval.train.run import train

    taken = inspect.signature(train).parameters
    for name, parameter in inspect.signature(verbs.plan_batches).parameters.items():
        assert name == "shards" or parameter.default == taken[name].default


@pytest.mark.parametrize(
    "flags,message",
    [
        ({"microbatches": 3}, "train.microbatches = 3 does not divide the 4 pairs of a data shard"),
        ({"microbatches": 0}, "train.microbatches = 0: give a whole number"),
        ({"batch_size": 12}, "train.batch_size = 12 does not divide over 8 devices"),
        ({"shards": 0}, "plan_batches.shards = 0: give a whole number"),
    ],
)
def test_the_verb_refuses_what_train_refuses(flags, message, tmp_path):
    from xretrieval import verbs

    with pytest.raises(UserError, match=message):
        verbs.plan_batches(**{"workdir": str(tmp_path), "data": None, "num_steps": 5, "batch_size": 32, **flags})
