"""Chunked towers (GradCache): the same gradients from parts that are packed apart, in the memory of one part."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_run import ROOT
from train import runs

from benchmarks import tiny_run
from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape
from xretrieval.errors import UserError
from xretrieval.model.tower import ComputeConfig
from xretrieval.train import state as state_lib
from xretrieval.train.loop import place
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.step import StepConfig, abstract_batch, loss_fn, train_step
from xretrieval.train.trainable import TrainableConfig


def gradients(microbatches, devices=1, model=1, trainable=TrainableConfig(), compute=ComputeConfig()):
    """Of the first step, by name."""
    mesh = mesh_lib.make_mesh(model, 1, jax.devices()[:devices])
    step = StepConfig(runs.CONFIG, compute, LossConfig(tile=5), runs.SHAPE.num_segments, trainable.lora_scale, microbatches)
    with jax.set_mesh(mesh):
        state = state_lib.create(runs.CONFIG, make_optimizer(OptimizerConfig(), 10), 20.0, 0, trainable)
        batch = place(runs.batch(mesh_lib.batch_shards(mesh) * microbatches), mesh)
        found, metrics = jax.jit(jax.grad(loss_fn, has_aux=True), static_argnums=3)(state.params, state.frozen, batch, step)
    return jax.tree.map(np.asarray, found), float(metrics["loss"])


@pytest.mark.parametrize("microbatches", [2, 4])
def test_the_gradients_are_those_of_the_whole_batch(microbatches):
    whole, loss = gradients(1)
    parts, again = gradients(microbatches)
    assert again == pytest.approx(loss, rel=1e-6)
    for (path, exact), (_, found) in zip(jax.tree.leaves_with_path(whole), jax.tree.leaves_with_path(parts), strict=True):
        # Sums in another order: 1e-6 of the gradient's norm.
        assert np.linalg.norm(found - exact) <= 1e-6 * np.linalg.norm(exact), path


def test_in_float64_they_are_the_same_on_any_mesh_and_with_adapters():
    script = pathlib.Path(__file__).parent / "float64_gradients.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == 4
    # float64 keeps 2e-16, and some tens of sums are added up in another order.
    assert all(difference < 1e-13 for difference in found.values()), found


def compiled(microbatches, pairs=64):
    """A step whose batch is packed into the same rows, however many parts they are cut into, on one device."""
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(), 10)
    with jax.set_mesh(mesh):
        state = state_lib.abstract(runs.CONFIG, optimizer, TrainableConfig())
        batch = abstract_batch(Shape(64, 64 // microbatches, 8), pairs, mesh, microbatches)
        config = StepConfig(runs.CONFIG, ComputeConfig(), LossConfig(), 8, 0.0, microbatches)
        return train_step.trace(state, batch, config, optimizer).jaxpr, train_step.lower(state, batch, config, optimizer).compile()


def test_memory_is_that_of_one_part_and_the_looked_up_tokens():
    whole, parts = (compiled(n)[1].memory_analysis().temp_size_in_bytes for n in (1, 8))
    looked_up = 64 * 64 * runs.CONFIG.width * 4
    # Tokens that are looked up, and their gradient; beyond these an eighth of the activations, and as much again for what both have in common
    # (gradients of the parameters, the loss): a quarter of what the whole batch takes.
    assert parts < 2 * looked_up + whole / 4
    assert whole > 8 * looked_up, "the test's tower has activations worth speaking of"


def scans(jaxpr):
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                if equation.primitive.name == "scan":
                    yield inner
                yield from scans(inner)


def test_nothing_is_scattered_into_a_table_inside_a_scan():
    text = str(compiled(4)[0])
    assert "scatter-add" in text, "the gradient of the lookup"
    rows = {-(-size // 128) * 128 for size in (runs.CONFIG.text_size, runs.CONFIG.num_units)}
    for body in scans(compiled(4)[0].jaxpr):
        for equation in body.eqns:
            assert not (equation.primitive.name == "scatter-add" and equation.outvars[0].aval.shape[0] in rows)


@pytest.mark.parametrize("where", ["parameter", "scale"])
def test_a_step_that_is_not_finite_leaves_the_state(where):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=1), 10)
    config = StepConfig(runs.CONFIG, ComputeConfig(), LossConfig(), runs.SHAPE.num_segments)
    with jax.set_mesh(mesh):
        state = state_lib.create(runs.CONFIG, optimizer, 20.0, 0, TrainableConfig())
        batch = place(runs.batch(), mesh)
        state, metrics = train_step(state, batch, config, optimizer)
        assert metrics["skipped"] == 0.0
        if where == "parameter":
            state.params["tower"]["final_norm.scale_D"] = state.params["tower"]["final_norm.scale_D"] * np.float32(np.nan)
        else:
            state.params["log_logit_scale"] = jax.numpy.float32(np.inf)
        before = jax.tree.map(np.asarray, state)
        after, metrics = train_step(state, batch, config, optimizer)
    assert metrics["skipped"] == 1.0
    assert not np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, after), before)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"microbatches": 3}, r"train.microbatches = 3 does not divide the 2 pairs of a data shard \(16 over 8\)"),
        ({"batch_size": 12}, r"train.batch_size = 12"),
        ({"mesh_model": 4}, r"TowerConfig.heads = 2 and train.mesh_model = 4"),
    ],
    ids=["parts", "pairs", "heads"],
)
def test_what_does_not_divide_over_the_mesh_is_refused_before_anything_is_written(tmp_path, settings, message):
    """On eight devices."""
    with pytest.raises(UserError, match=message):
        tiny_run.run(tmp_path, **settings)
    assert not (tmp_path / "train").exists()
