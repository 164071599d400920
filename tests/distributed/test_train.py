"""The training loop on several processes: one run, stopped, resumed, and gone on with on fewer."""

import dataclasses
import functools
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


# Of compiling, four processes have four times as much: the same tests on two are quick enough for every day.
COUNTS = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A function from a number of processes to the folder of a run that nothing disturbed."""

    @functools.cache
    def folder(count):
        made = tmp_path_factory.mktemp(f"undisturbed{count}")
        found = processes.run(count, "train", made, *SETTINGS)
        assert processes.codes(found) == [0] * count, found[0].err
        return made

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


@pytest.mark.parametrize("count", COUNTS)
def test_one_process_speaks_and_all_have_one_validation(undisturbed, count):
    folder = undisturbed(count)
    assert sorted(metrics(folder)) == list(range(1, STEPS + 1))
    lines = [line for line in (folder / "train/metrics.jsonl").read_text().splitlines() if "validation/sum" in line]
    assert len(lines) == 1
    said = ["pairs a step in" in (folder / f"logs/{i}.out").read_text() for i in range(count)]
    assert said == [True, *[False] * (count - 1)]


@pytest.mark.parametrize("count", COUNTS)
def test_sigterm_to_one_process_saves_one_step_on_all_and_the_run_goes_on_bitwise(undisturbed, tmp_path, count):
    fault = {"variables": lambda process: {"FAULT": "step:TERM"} if process == count - 1 else {}}
    found = processes.run(count, "train", tmp_path, *SETTINGS, "pace=0.1", **fault)
    assert processes.codes(found) == [75] * count, found[0].err
    stopped = checkpoint.steps(tmp_path / "train")[-1]
    assert 3 < stopped < STEPS
    assert max(metrics(tmp_path)) == stopped
    assert processes.codes(processes.run(count, "train", tmp_path, *SETTINGS)) == [0] * count
    assert metrics(tmp_path) == metrics(undisturbed(count))
    found, expected = state(tmp_path, STEPS), state(undisturbed(count), STEPS)
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in found)


@pytest.mark.slow
@pytest.mark.parametrize("count, devices", [(2, 2), (1, 1)])
def test_fewer_processes_go_on_with_the_same_batches(undisturbed, tmp_path, count, devices):
    whole = undisturbed(4)
    folder = copied(whole, tmp_path / "run", 30)
    found = processes.run(count, "train", folder, *SETTINGS, devices=devices)
    assert processes.codes(found) == [0] * count, found[0].err
    before, after = metrics(whole), metrics(folder)
    # The same batch and parameters, added up in another order; then the differences of the updates are added.
    assert after[31]["loss"] == pytest.approx(before[31]["loss"], rel=1e-6)
    for step in range(31, STEPS + 1):
        assert after[step]["loss"] == pytest.approx(before[step]["loss"], rel=1e-4)
    assert after[STEPS]["validation/sum"] == pytest.approx(before[STEPS]["validation/sum"], rel=1e-3)
