"""What a run is begun with: numbers that cannot be are refused by their flag, and what differs when it goes on is said."""

import pytest

from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError
from xretrieval.model.tower import ComputeConfig
from xretrieval.train import begin, identity
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig


@pytest.mark.parametrize("wrong", [-5, 2.0, "3"])
def test_a_number_of_steps_that_cannot_be(wrong):
    begin.check_counts(max_skipped_steps=0, validate_every=7, stop_after=None)
    with pytest.raises(UserError, match=rf"train.validate_every = {wrong!r}: give a whole number, 0 or more"):
        begin.check_counts(max_skipped_steps=0, validate_every=wrong, stop_after=None)


@pytest.mark.parametrize("wrong", [0, -5, 2.0, None])
def test_a_number_that_must_be_above_0(wrong):
    begin.check_whole(batch_size=1, microbatches=4)
    with pytest.raises(UserError, match=rf"train.microbatches = {wrong!r}: give a whole number, 1 or more"):
        begin.check_whole(batch_size=1, microbatches=wrong)


def test_every_count_that_differs_is_said_and_none_that_does_not(tmp_path, capsys):
    before = {"num_steps": 12, "max_skipped_steps": 0, "row_length": None, "rows": 4, "max_segments": None}
    now = before | {"max_skipped_steps": 3, "row_length": 64, "rows": None}
    mesh = mesh_lib.make_mesh()
    for counts in (before, now, now):
        settings = begin.settings(OptimizerConfig(), LossConfig(), ComputeConfig(), mesh, **counts)
        identity.check(str(tmp_path), {"train.seed": 0}, settings, begun=True, keep=True)
    said = "train.max_skipped_steps (0 before, 3 now), train.row_length (nothing before, 64 now), train.rows (4 before, nothing now)"
    assert capsys.readouterr().err == f"{tmp_path}/run.json: goes on with another {said}\n"


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": -1.0},
        {"learning_rate": 0.0},
        {"warmup_steps": -5},
        {"weight_decay": float("nan")},
        {"beta2": 1.0},
        {"max_gradient_norm": 0.0},
    ],
    ids=str,
)
def test_an_optimizer_that_cannot_be(wrong):
    with pytest.raises(UserError, match=rf"OptimizerConfig.{next(iter(wrong))} = .*: it must be"):
        OptimizerConfig(**wrong)
