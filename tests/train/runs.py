"""A small tower, a packed batch, and steps of training on them, on any mesh."""

import functools

import jax
import numpy as np

from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape, assemble, deal, pack
from xretrieval.model.tower import ComputeConfig, TowerConfig
from xretrieval.train import state as state_lib
from xretrieval.train.loop import place
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.step import LossConfig, StepConfig, train_step
from xretrieval.train.trainable import TrainableConfig

CONFIG = TowerConfig(
    text_size=50,
    num_units=20,
    width=32,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_hidden=64,
    max_positions=64,
    window=6,
    global_every=3,
    rope_local_base=100.0,
)
SHAPE = Shape(row_length=32, rows=24, num_segments=8)

# One object of one config, and so one program of one step.
_optimizer = functools.cache(make_optimizer)


def batch(shards=1, pairs=16, seed=0):
    """The same pairs for any number of shards; every second one has the pair ID of the one before, and all but one have texts of their own."""
    rng = np.random.default_rng(seed)
    sides = [[rng.integers(0, CONFIG.vocab_size, rng.integers(1, 13)).astype(np.int32) for _ in "lr"] for _ in range(pairs)]
    lengths = np.array([[len(x) for x in pair] for pair in sides])
    ids = np.arange(pairs, dtype=np.int64) // 2
    dealt = deal(lengths, shards)
    shape = SHAPE._replace(rows=SHAPE.rows // shards)
    places = [pack(lengths[mine].ravel(), shape.row_length, shape.num_segments) for mine in dealt]
    segments = [[side for i in mine for side in sides[i]] for mine in dealt]
    dealt = dealt.ravel().astype(np.int32)
    own = {"place": dealt, "left_id": dealt, "right_id": np.maximum(dealt, 1)}
    return {**assemble(segments, places, shape), "pair_id": (ids * 2**40 + ids)[dealt], **own}


def steps(devices=1, model=1, replica=1, count=3, trainable=TrainableConfig(), optimizer=None, compute=ComputeConfig(), others=False):
    """Losses, the whole tower before and after, and the state; every step has the same batch, or with `others` another."""
    mesh = mesh_lib.make_mesh(model, replica, jax.devices()[:devices])
    optimizer = _optimizer(optimizer or OptimizerConfig(warmup_steps=1, weight_decay=0.01), 10)
    step = StepConfig(CONFIG, compute, LossConfig(), SHAPE.num_segments, trainable.lora_scale)
    with jax.set_mesh(mesh):
        state = state_lib.create(CONFIG, optimizer, 20.0, 0, trainable)
        before = jax.tree.map(np.asarray, state_lib.whole(state, trainable))
        shardings = jax.tree.map(lambda x: x.sharding.spec, state)
        losses = []
        for number in range(count):
            placed = place(batch(mesh_lib.batch_shards(mesh), seed=number * others), mesh)
            state, metrics = train_step(state, placed, step, optimizer)
            losses.append(float(metrics["loss"]))
        assert jax.tree.map(lambda x: x.sharding.spec, state) == shardings
        after = jax.tree.map(np.asarray, state_lib.whole(state, trainable))
    return losses, before, after, state
