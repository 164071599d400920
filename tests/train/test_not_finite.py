"""What is not finite: no update is made of it, no state that holds it is saved, and the run stops or leaves such steps out."""

import json

import jax
import numpy as np
import pytest

from benchmarks import tiny_run
from xretrieval.corpora import shards
from xretrieval.data import records
from xretrieval.errors import UserError
from xretrieval.train import checkpoint, run
from xretrieval.train.loss import LossConfig


def lines(folder):
    return [line for line in map(json.loads, (folder / "train/metrics.jsonl").read_text().splitlines()) if "loss" in line]


@pytest.fixture
def poisoned(monkeypatch):
    """At a step, one entry of a parameter becomes NaN before the real step is taken."""
    step = run.train_step

    def poison(at, name, where):
        count = [0]

        def poisoning(state, batch, config, optimizer):
            count[0] += 1
            if count[0] == at:
                table = state.params["tower"][name]
                with jax.transfer_guard("allow"):
                    values = np.array(table)
                    values[where] = np.nan
                    state.params["tower"][name] = jax.device_put(values, table.sharding)
            return step(state, batch, config, optimizer)

        monkeypatch.setattr(run, "train_step", poisoning)

    return poison


def test_nan_in_a_parameter_stops_the_run_and_is_in_no_checkpoint(tmp_path, poisoned):
    poisoned(6, "final_norm.scale_D", 3)
    with pytest.raises(
        UserError, match=r"step 6: the loss is nan, its update was not applied; .*OptimizerConfig.learning_rate.*max_skipped_steps"
    ):
        tiny_run.run(tmp_path)
    assert checkpoint.steps(tmp_path / "train") == [4]
    assert lines(tmp_path)[-1]["step"] == 6
    assert (lines(tmp_path)[-1]["loss"], lines(tmp_path)[-1]["skipped"]) == (None, 1.0)


def test_nan_in_a_row_that_no_loss_sees_is_not_saved(tmp_path, poisoned):
    """Of the padding rows of a table: nothing is looked up there, so loss and gradient stay finite."""
    poisoned(6, "embedding.text_VD", (-1, 0))
    with pytest.raises(UserError, match=r"8: not saved, for params/tower/embedding.text_VD holds numbers that are not finite"):
        tiny_run.run(tmp_path)
    assert checkpoint.steps(tmp_path / "train") == [4]


def test_a_gradient_that_overflows_is_not_applied_and_so_many_are_left_out_as_the_run_allows(tmp_path, capsys):
    """A loss of 1e25 is finite; the square of its gradient is not."""
    huge = {"loss": LossConfig(spread_out_weight=1e25), "checkpoint_every": 1}
    with pytest.raises(UserError, match="step 1: the gradient norm is inf, its update was not applied"):
        tiny_run.run(tmp_path / "none", **huge)
    assert not checkpoint.steps(tmp_path / "none/train")
    tiny_run.run(tmp_path / "some", **huge, max_skipped_steps=3, stop_after=2)
    assert "step 2: the gradient norm is inf, its update was not applied (2 of 3 such steps)" in capsys.readouterr().err
    assert {line["learning_rate"] for line in lines(tmp_path / "some")} == {0.0}, "the schedule counts updates"
    # How many there were is part of the checkpoint: starting again does not begin a new count.
    with pytest.raises(UserError, match=r"step 4: the gradient norm .* train.max_skipped_steps = 4"):
        tiny_run.run(tmp_path / "some", **huge, max_skipped_steps=3)
    assert checkpoint.steps(tmp_path / "some/train") == [2, 3]


def test_a_token_outside_the_vocabulary_is_refused_before_a_step_sees_it(tmp_path):
    data = tiny_run.data(tmp_path / "records")
    directory = tmp_path / "records/speech"
    count = len(data.tasks[0].records)
    pairs = data.tasks[0].records.read(np.arange(count))
    pairs = [(np.full_like(left, 64), right, pair) for left, right, pair in pairs]
    shards.commit_shard(str(directory), 0, 1, "other", [records.pack(*pair) for pair in pairs], {})
    with pytest.raises(UserError, match="task speech: token 64 is outside the vocabulary of 64"):
        tiny_run.run(tmp_path)
    assert not checkpoint.steps(tmp_path / "train")
