"""One train step: eight devices equal one, in loss, every parameter and every moment."""

import jax
import numpy as np
import pytest

from xretrieval import mesh as mesh_lib
from xretrieval.model.tower import TowerConfig
from xretrieval.train import state as state_lib
from xretrieval.train.loop import place
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.step import LossConfig, train_step

CONFIG = TowerConfig(vocab_size=70, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_hidden=64, max_positions=64)


def batch(rows=16, length=12):
    rng = np.random.default_rng(0)
    sides = {f"{side}_tokens": rng.integers(0, 70, (rows, length)).astype(np.int32) for side in ("left", "right")}
    sides |= {f"{side}_lengths": rng.integers(1, length + 1, rows).astype(np.int32) for side in ("left", "right")}
    return {**sides, "pair_id": (np.arange(rows) // 2 * 2**40).astype(np.int64) + np.arange(rows) // 2}


def steps(devices, model=1, replica=1, count=3):
    mesh = mesh_lib.make_mesh(model, replica, jax.devices()[:devices])
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=1, weight_decay=0.01), 10)
    with jax.set_mesh(mesh):
        state = state_lib.create(CONFIG, optimizer, 20.0, seed=0)
        shardings = jax.tree.map(lambda x: x.sharding.spec, state)
        losses = []
        for _ in range(count):
            state, metrics = train_step(state, place(batch(), mesh), CONFIG, LossConfig(), optimizer)
            losses.append(float(metrics["loss"]))
        assert jax.tree.map(lambda x: x.sharding.spec, state) == shardings
    return losses, jax.tree.map(np.asarray, state)


@pytest.mark.parametrize("devices,model,replica", [(8, 1, 1), (8, 2, 2), (4, 4, 1)])
def test_a_mesh_equals_one_device(devices, model, replica):
    (losses, state), (want_losses, want) = steps(devices, model, replica), steps(1)
    # Sums in another order: some 1e-6 of float32; Adam divides by the root of the second moment, which enlarges it where gradients are tiny.
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    for got, expected in zip(jax.tree.leaves(state), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))


def test_moments_are_split_as_their_parameters():
    mesh = mesh_lib.make_mesh(2, 1, jax.devices()[:8])
    optimizer = make_optimizer(OptimizerConfig(), 10)
    with jax.set_mesh(mesh):
        state = state_lib.create(CONFIG, optimizer, 20.0, seed=0)
    specs = {name: x.sharding.spec for name, x in state.params["tower"].items()}
    assert specs["embedding.table_VD"] == jax.sharding.PartitionSpec(("model", "data"), None)
    assert specs["blocks.0.attention.q_DF"] == jax.sharding.PartitionSpec("data", "model")
    assert specs["blocks.0.mlp.down_MD"] == jax.sharding.PartitionSpec("model", "data")
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 2]
    wanted = [x for x in jax.tree.leaves(state.params["tower"]) if x.ndim == 2]
    assert len(moments) == 2 * len(wanted)
    assert [m.sharding.spec for m in moments] == 2 * [p.sharding.spec for p in wanted]
