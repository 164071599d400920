"""What `make bench NAME=pods` says of arrays of b x B: by shapes made by hand, and by both losses compiled for eight CPU devices."""

import dataclasses

import jax
import pytest

from benchmarks import pods
from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape
from xretrieval.model.tower import ComputeConfig, TowerConfig
from xretrieval.plan import programs
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig
from xretrieval.train.trainable import TrainableConfig

POD = jax.sharding.AbstractMesh((1, 128, 2), mesh_lib.AXES)
WIDTH = 640
# 4,096 pairs on 128 data shards: b = 32, and C = 2,048 columns on each of two chips, or 4,096.
LOGITS = ["32,4096", "2048,32", "4,32,512", "32,4,512", "8,512,32", "1,32,2048", "2,16,4096"]


@pytest.mark.parametrize("shape", LOGITS)
def test_logits_are_seen_however_their_axes_are_cut(shape):
    assert pods.logits_held({"shapes": [shape], "flat": []}, 4096, POD) == 1
    assert pods.logits_held({"shapes": [shape], "flat": []}, 4096, POD, WIDTH) == 1


def test_flat_ones_too():
    for flat in (32 * 2048, 32 * 4096):
        assert pods.logits_held({"shapes": [], "flat": [flat]}, 4096, POD) == 1
        assert pods.logits_held({"shapes": [], "flat": [flat]}, 4096, POD, WIDTH) == 1


def test_in_the_loss_alone_anything_as_large_counts_but_embeddings():
    assert pods.logits_held({"shapes": ["128,512", "3,64,512", "33,2048", "2,32,2048"], "flat": []}, 4096, POD, WIDTH) == 4
    assert pods.logits_held({"shapes": ["2048,640", "4,512,640", "640,512", "32,512", "32,2047"], "flat": [4096]}, 4096, POD, WIDTH) == 0


@pytest.mark.parametrize(
    "shape",
    [
        # Of the tower's, seen in compiled steps: 32 segments a row, 11 rows, tiles of attention that have b x C elements by chance.
        *("11,32,2048", "32,11,4096", "512,128", "2,512,128", "256,512", "11,512,128", "26,1152,7"),
        # b and C as axes, with another one: an embedding of each would be 640 times as large.
        *("32,2048,640", "32,640", "2048,640"),
    ],
)
def test_in_a_step_what_the_tower_has_is_not_counted(shape):
    assert pods.logits_held({"shapes": [shape], "flat": [512, 4096]}, 4096, POD) == 0


@pytest.mark.parametrize("model", [1, 2])
def test_the_peer_holds_them_and_ours_does_not(model):
    mesh = mesh_lib.make_mesh(model=model)
    tower = TowerConfig(text_size=50, num_units=20, width=24, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_hidden=32)
    loss = LossConfig(spread_out_weight=0.0, tile=16)
    run = programs.Run(tower, ComputeConfig(), loss, OptimizerConfig(), TrainableConfig(), 512, Shape(16, 4, 4), 1)
    found = []
    for traced in (programs.trace_loss(run, mesh), pods.peer_loss(run, mesh)):
        with jax.set_mesh(mesh):
            found.append(pods.arrays(traced.lower().compile().as_text()))
    for width in (None, tower.embedding_width):
        ours, peer = (pods.logits_held(program, 512, mesh, width) for program in found)
        assert ours == 0 < peer
    # A tile of all columns is all logits.
    whole = programs.trace_loss(dataclasses.replace(run, loss=dataclasses.replace(loss, tile=512)), mesh)
    with jax.set_mesh(mesh):
        assert pods.logits_held(pods.arrays(whole.lower().compile().as_text()), 512, mesh)
