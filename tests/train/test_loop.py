"""The loop: no wait for the device, the same run however often it is stopped, nothing that is not finite in a state, and metrics that add up."""

import json
import os
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.array import ArrayImpl

from benchmarks import tiny_run
from xretrieval.errors import Preempted, UserError
from xretrieval.model.tower import TowerConfig
from xretrieval.train import checkpoint, profile, run
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig, learning_rates, schedule
from xretrieval.train.throughput import ModelFlops, Throughput


def lines(folder, name="loss"):
    return [line for line in map(json.loads, (folder / "train/metrics.jsonl").read_text().splitlines()) if name in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert tiny_run.run(folder) == 12
    return folder


TIMES = ("step_seconds", "steps_per_second", "pairs_per_second", "tokens_per_second", "model_flops_per_second")


def without_times(found):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


@pytest.mark.parametrize("stops", [(1, 6), (4,)], ids=str)
def test_stopped_and_resumed_is_bitwise_the_same_run(whole, tmp_path, stops):
    for steps in stops:
        tiny_run.run(tmp_path, stop_after=steps)
    assert checkpoint.steps(tmp_path / "train")[-1] == sum(stops)
    assert tiny_run.run(tmp_path) == 12
    assert tiny_run.digest(tmp_path / "train") == tiny_run.digest(whole / "train")
    assert without_times(lines(tmp_path)) == without_times(lines(whole))
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))


def test_damage_to_the_newest_step_costs_only_the_steps_since_the_one_before(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    victim = tmp_path / "run/train/checkpoints/12/state/_sharding"
    victim.write_bytes(victim.read_bytes()[:-1])
    assert tiny_run.run(tmp_path / "run") == 12
    assert f"{victim} has" in capsys.readouterr().err
    assert checkpoint.steps(tmp_path / "run/train") == [8, 12]
    assert tiny_run.digest(tmp_path / "run/train") == tiny_run.digest(whole / "train")
    assert without_times(lines(tmp_path / "run")) == without_times(lines(whole))


def test_the_loop_waits_for_no_step_before_the_next_is_sent_off(tmp_path, monkeypatch):
    """Whatever brings an array of a device to the host passes `_value`: it is only done to metrics of a step that another one follows."""
    sent, fetched, of_step = [0], [], {}

    def counted(state, batch, config, optimizer):
        sent[0] += 1
        out = step(state, batch, config, optimizer)
        of_step.update({id(x): sent[0] for x in out[1].values()})
        kept.append(out)  # an identity is only one while the array lives
        return out

    def value(array):
        fetched.append((of_step.get(id(array)), sent[0]))
        return before.fget(array)

    def waited(array):
        raise AssertionError("block_until_ready")

    step, before, kept = run.train_step, ArrayImpl._value, []
    monkeypatch.setattr(run, "train_step", counted)
    monkeypatch.setattr(ArrayImpl, "_value", property(value))
    monkeypatch.setattr(ArrayImpl, "block_until_ready", waited)
    tiny_run.run(tmp_path, checkpoint_every=20)
    in_steps = [(of, after) for of, after in fetched if after and of != 12]  # 12 is saved, and its metrics with it
    assert {of for of, _ in in_steps if of} == set(range(1, 12))
    assert all(of is not None and after == of + 1 for of, after in in_steps if after < 12)
    assert len(lines(tmp_path)) == 12


def test_a_transfer_that_nobody_asked_for_is_an_error(tmp_path, monkeypatch):
    def careless(state, batch, config, optimizer):
        jnp.sin(np.ones(3))
        return step(state, batch, config, optimizer)

    step = run.train_step
    monkeypatch.setattr(run, "train_step", careless)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        tiny_run.run(tmp_path)


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"seed": 1}, r"another train.seed \(0 before, 1 now\);"),
        ({"batch_size": 8}, r"train.batch_size \(16 before, 8 now\);"),
        (
            {"tower": TowerConfig(**{**vars(tiny_run.TOWER), "window": 4, "global_every": 2})},
            r"tower.global_every \(1 before, 2 now\), tower.window",
        ),
    ],
)
def test_another_run_is_refused_and_what_differs_is_said(whole, changed, message):
    with pytest.raises(UserError, match=message):
        tiny_run.run(whole, **changed)


def test_other_data_are_refused_field_by_field(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    given = tiny_run.data(tmp_path / "run/records")
    settings = {**tiny_run.SETTINGS, "workdir": str(tmp_path / "run/train")}
    speech, text = given.tasks
    other = vars(speech) | {"drop_rate": 0.3, "prefixes": ((8, 9), (6,))}
    for tasks, identity, message in (
        ([type(speech)(**other), text], {}, r"mixture.speech.dropped tokens \(0.1 before, 0.3 now\), mixture.speech.prefixes"),
        ([speech], {}, r"mixture.text \(.* before, nothing now\)"),
        (given.tasks, {"vocabulary": "other"}, r'vocabulary \("v" before, "other" now\)'),
    ):
        data = type(given)(**{**vars(given), "tasks": tasks, "identity": {**given.identity, **identity}})
        with pytest.raises(UserError, match=message):
            run.train(data=data, **settings)


def test_what_may_change_is_said(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    more = {"num_steps": 13, "optimizer": OptimizerConfig(warmup_steps=2, learning_rate=1e-3), "loss": LossConfig(margin=0.1)}
    assert tiny_run.run(tmp_path / "run", **more, stop_after=0) == 12
    error = capsys.readouterr().err
    for field in (
        "train.num_steps (12 before, 13 now)",
        "OptimizerConfig.learning_rate (0.003 before, 0.001 now)",
        "LossConfig.margin (0.0 before, 0.1 now)",
    ):
        assert field in error
    tiny_run.run(tmp_path / "run", **more, stop_after=0)
    assert capsys.readouterr().err == "", "it is said once"


def test_rates_and_flops_add_up(whole):
    """tokens and FLOPs from the batches themselves."""
    found = lines(whole)
    rates = learning_rates(tiny_run.SETTINGS["optimizer"], 12)
    assert [line["learning_rate"] for line in found] == [float(rate) for rate in rates]
    counted = schedule(tiny_run.SETTINGS["optimizer"], 12)
    # One step at a time, as the optimizer does, XLA contracts other products and sums: the last digit of float32.
    np.testing.assert_allclose(rates, [float(counted(jnp.int32(step))) for step in range(12)], rtol=1e-6)
    data = tiny_run.data(whole / "records")
    shape = json.loads((whole / "train/packing.json").read_text())["plan"]
    from xretrieval.data.packing import Shape
    from xretrieval.data.pipeline import BatchPipeline

    shape = Shape(shape["row_length"], shape["rows"], shape["num_segments"])
    pipeline = BatchPipeline(data.tasks, 16, 64, 0, 8, shape)
    assert "step_seconds" not in found[0], "it holds the compilation"
    for line in found[1:]:
        tokens = int((pipeline.batch(line["step"] - 1)["segment_ids"] > 0).sum())
        assert line["tokens_per_second"] * line["step_seconds"] == pytest.approx(tokens)
        assert line["pairs_per_second"] * line["step_seconds"] == pytest.approx(16)
        assert line["steps_per_second"] * line["step_seconds"] == pytest.approx(1)
        assert "mfu" not in line, "nobody knows what this CPU can do"
    rates = Throughput(pipeline.schedule, ModelFlops(tiny_run.TOWER, 1000, 0), peak=4e9).rates(after=3, step=5, seconds=0.5)
    assert rates["mfu"] == pytest.approx(rates["model_flops_per_second"] / 4e9)
    flops = [ModelFlops(tiny_run.TOWER, 1000, 0).step(pipeline.schedule.step(index)[1]) for index in (3, 4)]
    assert rates["model_flops_per_second"] == pytest.approx(sum(flops) / 0.5)
    assert {
        "softmax",
        "spread_out",
        "accuracy_left_to_right",
        "accuracy_right_to_left",
        "gradient_norm",
        "gradient_norm_units",
        "logit_scale",
    } <= found[0].keys()


@pytest.mark.parametrize("causal,window", [(True, 0), (False, 0), (False, 4), (True, 4)])
def test_attended_pairs_are_those_of_the_mask(causal, window):
    tower = TowerConfig(width=32, layers=3, heads=2, head_dim=16, causal=causal, window=window, global_every=3 if window else 1)
    lengths = np.array([[3, 9], [1, 4]])
    pairs = 0
    for layer in range(3):
        for length in lengths.ravel():
            distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
            near = distance < (window if window and (layer + 1) % 3 else length)
            pairs += near.sum() / (2 if causal else 1)
    flops = ModelFlops(tower, 1000, 100).step(lengths)
    assert flops == pytest.approx(17 * (6 * 1000 + 4 * 100) + 12 * 2 * 16 * pairs + 6 * 2 * 2 * 32)


def test_a_profile_is_written_for_the_steps_that_were_asked_for(tmp_path, capsys):
    tiny_run.run(tmp_path, profile="3:4", stop_after=5)
    assert list((tmp_path / "train/profile").rglob("*.xplane.pb"))
    for wrong in ("3", "4:3", "0:2", "a:b", "3:4:5", "-1:4"):
        with pytest.raises(UserError, match="give the first and the last step"):
            profile.parse(wrong, 12)
    with pytest.raises(UserError, match="--profile 12:13: the run has 12 steps"):
        profile.parse("12:13", 12)
    assert profile.parse(None, 12) is None
    assert not capsys.readouterr().err
    tiny_run.run(tmp_path, profile="3:4")
    assert "--profile 3:4: 5 steps are done already, nothing is traced" in capsys.readouterr().err


def test_saves_are_reported(whole, capsys):
    for line in lines(whole, "save_seconds"):
        assert line["step"] in (4, 8, 12)
        assert line["save_bytes_per_second"] == pytest.approx(line["save_bytes"] / line["save_seconds"])
        assert line["save_blocked_seconds"] > 0
    assert len(lines(whole, "save_seconds")) == 3


@pytest.mark.parametrize("last", [False, True])
def test_a_run_that_is_stopped_where_validation_is_due_has_it_when_it_goes_on(tmp_path, last):
    """SIGTERM gives seconds: it saves, and does not wait for a validation."""
    told, step, measured = 12 if last else 6, run.train_step, []

    def signalled(state, batch, config, optimizer):
        count[0] += 1
        if count[0] == told:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, batch, config, optimizer)

    def validate(config, params, compute):
        measured.append(count[0])
        return {"validation/r1": 0.5}

    count = [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "train_step", signalled)
        with pytest.raises(Preempted):
            tiny_run.run(tmp_path, validate=validate, validate_every=6)
    assert checkpoint.steps(tmp_path / "train")[-1] == told
    assert measured == ([6] if last else [])
    for _ in range(2):  # and once only
        assert tiny_run.run(tmp_path, validate=validate, validate_every=6) == 12
    assert [line["step"] for line in lines(tmp_path, "validation/r1")] == [6, 12]
    assert len(measured) == 2


def test_fewer_steps_than_are_done_are_refused_and_leave_the_run_as_it_is(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run/train/run.json").read_text()
    with pytest.raises(UserError, match="train: 12 steps are done already; set train.num_steps to more"):
        tiny_run.run(tmp_path / "run", num_steps=8)
    assert (tmp_path / "run/train/run.json").read_text() == before


def test_a_workdir_in_which_another_run_is_is_refused(tmp_path):
    def another(state, batch, config, optimizer):
        before = (tmp_path / "train/run.json").read_text()
        with pytest.raises(UserError, match="train: another run trains into it; wait for its end"):
            tiny_run.run(tmp_path, log_every=2, optimizer=OptimizerConfig(warmup_steps=1))
        assert (tmp_path / "train/run.json").read_text() == before
        return step(state, batch, config, optimizer)

    step = run.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "train_step", another)
        tiny_run.run(tmp_path, stop_after=1)
    assert tiny_run.run(tmp_path, stop_after=1) == 2


def test_the_scale_is_that_of_the_config(tmp_path, capsys):
    tiny_run.run(tmp_path, stop_after=3, optimizer=OptimizerConfig(warmup_steps=2, learning_rate=0.1))
    before = lines(tmp_path)[-1]["logit_scale"]
    # Adam's moments are of a scale that was learned, and would go on to move it.
    tiny_run.run(tmp_path, stop_after=2, loss=LossConfig(learn_logit_scale=False))
    fixed = [line["logit_scale"] for line in lines(tmp_path)][3:]
    assert len(set(fixed)) == 1
    assert fixed[0] == pytest.approx(before, rel=0.3)
    assert "the logit scale is" not in capsys.readouterr().err
    tiny_run.run(tmp_path, stop_after=1, loss=LossConfig(initial_logit_scale=5.0, max_logit_scale=10.0))
    assert f"the logit scale is {fixed[0]:.1f}, LossConfig.max_logit_scale 10: it begins there" in capsys.readouterr().err
    assert lines(tmp_path)[-1]["logit_scale"] == pytest.approx(10.0)
