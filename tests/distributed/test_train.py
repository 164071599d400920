"""The training loop on four processes: one run, stopped, resumed, and gone on with on fewer."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import processes
import pytest

from benchmarks import tiny_run
from xretrieval import mesh as mesh_lib
from xretrieval.train import checkpoint
from xretrieval.train import state as state_lib
from xretrieval.train.optimizer import make_optimizer
from xretrieval.train.trainable import TrainableConfig

STEPS = 40
SETTINGS = (f"num_steps={STEPS}", "checkpoint_every=10", "keep_checkpoints=9")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of four processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    found = processes.run(4, "train", folder, *SETTINGS)
    assert processes.codes(found) == [0] * 4, found[0].err
    return folder


def copied(whole, to, step):
    """The folder as it was when `step` had been saved."""
    shutil.copytree(whole / "records", to / "records")
    shutil.copytree(whole / "train", to / "train")
    for later in checkpoint.steps(to / "train"):
        if later > step:
            shutil.rmtree(to / "train/checkpoints" / str(later))
    return to


def metrics(folder):
    """{step: {name: value}}, without what a clock says."""
    found = {}
    for line in map(json.loads, pathlib.Path(folder, "train/metrics.jsonl").read_text().splitlines()):
        values = {name: value for name, value in line.items() if not any(word in name for word in ("second", "save", "utilisation", "mfu"))}
        found.setdefault(values.pop("step"), {}).update(values)
    return found


def state(folder, step):
    """All arrays of a checkpoint, by name."""
    tower = dataclasses.replace(tiny_run.TOWER, layers=1, text_size=50, num_units=14)
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.devices()[:4])):
        abstract = state_lib.abstract(tower, make_optimizer(tiny_run.SETTINGS["optimizer"], STEPS), TrainableConfig())
        restored = checkpoint.restore(folder / "train", step, abstract)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(restored)}


def test_one_process_speaks_and_all_have_one_validation(whole):
    assert sorted(metrics(whole)) == list(range(1, STEPS + 1))
    lines = [line for line in (whole / "train/metrics.jsonl").read_text().splitlines() if "validation/sum" in line]
    assert len(lines) == 1
    said = ["pairs a step in" in (whole / f"logs/{i}.out").read_text() for i in range(4)]
    assert said == [True, False, False, False]


def test_sigterm_to_one_of_four_saves_one_step_and_the_run_goes_on_bitwise(whole, tmp_path):
    fault = {"variables": lambda process: {"FAULT": "step:TERM"} if process == 2 else {}}
    found = processes.run(4, "train", tmp_path, *SETTINGS, "pace=0.1", **fault)
    assert processes.codes(found) == [75] * 4, found[0].err
    stopped = checkpoint.steps(tmp_path / "train")[-1]
    assert 3 < stopped < STEPS
    assert max(metrics(tmp_path)) == stopped
    assert processes.codes(processes.run(4, "train", tmp_path, *SETTINGS)) == [0] * 4
    assert metrics(tmp_path) == metrics(whole)
    found, expected = state(tmp_path, STEPS), state(whole, STEPS)
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in found)


@pytest.mark.parametrize("count, devices", [(2, 2), (1, 1)])
def test_fewer_processes_go_on_with_the_same_batches(whole, tmp_path, count, devices):
    folder = copied(whole, tmp_path / "run", 30)
    found = processes.run(count, "train", folder, *SETTINGS, devices=devices)
    assert processes.codes(found) == [0] * count, found[0].err
    before, after = metrics(whole), metrics(folder)
    # The same batch and parameters, added up in another order; then the differences of the updates are added.
    assert after[31]["loss"] == pytest.approx(before[31]["loss"], rel=1e-6)
    for step in range(31, STEPS + 1):
        assert after[step]["loss"] == pytest.approx(before[step]["loss"], rel=1e-4)
    assert after[STEPS]["validation/sum"] == pytest.approx(before[STEPS]["validation/sum"], rel=1e-3)
