"""Operations counted in a jaxpr, against what is known of a program."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape
from xretrieval.model.tower import ComputeConfig, TowerConfig
from xretrieval.plan import flops, programs
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig
from xretrieval.train.trainable import TrainableConfig

N, K, M = 8, 16, 32
PRODUCT = 2 * N * K * M
A, B = jax.ShapeDtypeStruct((N, K), "float32"), jax.ShapeDtypeStruct((K, M), "float32")


def counted(function, *arguments, **options):
    return flops.count(jax.jit(function).trace(*arguments).jaxpr, **options)


def test_a_product_and_what_it_reads_and_writes():
    found = counted(lambda a, b: jnp.tanh(a @ b), A, B)
    assert found.flops == found.bf16_flops == PRODUCT
    assert found.bytes == 4 * (N * K + K * M + N * M)
    assert found.attention == found.unknown_loops == 0


def test_a_batched_product():
    left, right = jax.ShapeDtypeStruct((3, N, K), "float32"), jax.ShapeDtypeStruct((3, K, M), "float32")
    assert counted(jnp.matmul, left, right).flops == 3 * PRODUCT


@pytest.mark.parametrize("dtype,precision,passes", [("float32", "highest", 6), ("float32", "high", 3), ("bfloat16", "highest", 1)])
def test_float32_at_a_high_precision_is_several_passes(dtype, precision, passes):
    arguments = [jax.ShapeDtypeStruct(x.shape, dtype) for x in (A, B)]
    found = counted(functools.partial(jnp.matmul, precision=precision), *arguments)
    assert (found.flops, found.bf16_flops) == (PRODUCT, passes * PRODUCT)


def test_a_scan_counts_as_often_as_it_runs():
    square = jax.ShapeDtypeStruct((K, K), "float32")

    def three_in_five(a, b):
        def outer(a, _):
            return jax.lax.scan(lambda a, _: (a @ b, None), a, length=3)[0], None

        return jax.lax.scan(outer, a, length=5)[0]

    assert counted(three_in_five, A, square).flops == 15 * 2 * N * K * K


def test_remat_counts_again():
    def loss(a, b, wrap):
        return jnp.sum(wrap(lambda a: jnp.sin(jnp.sin(a @ b) @ b.T))(a))

    # Forward 2 products. The gradient of a alone: 2 more; remat does the first product again, whose value sin needs, and the second's too.
    plain = counted(jax.grad(functools.partial(loss, wrap=lambda f: f)), A, B)
    again = counted(jax.grad(functools.partial(loss, wrap=jax.checkpoint)), A, B)
    assert plain.flops == 4 * PRODUCT
    assert again.flops == 6 * PRODUCT


def test_of_a_cond_the_dearer_branch_and_of_platforms_that_of_the_tpu():
    both = counted(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: 2 * (a @ b) + (a @ b)), A, B)
    assert both.flops == 2 * PRODUCT

    def by_platform(a, b):
        return jax.lax.platform_dependent(a, b, tpu=lambda a, b: a @ b, default=lambda a, b: a @ b + (2 * a) @ b)

    assert counted(by_platform, A, B).flops == PRODUCT
    assert counted(by_platform, A, B, platform="cpu").flops == 2 * PRODUCT


def test_a_loop_whose_turns_depend_on_data_is_told():
    found = counted(lambda n, a: jax.lax.fori_loop(0, n, lambda _, a: a @ jnp.ones((K, K)), a), jax.ShapeDtypeStruct((), "int32"), A)
    assert (found.flops, found.unknown_loops) == (2 * N * K * K, 1)


def test_custom_derivatives():
    @jax.custom_vjp
    def product(a, b):
        return a @ b

    # A backward pass of three products, where autodiff would do two.
    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda saved, g: (g @ saved[1].T + g @ saved[1].T, saved[0].T @ g))
    assert counted(lambda a, b: jnp.sum(product(a, b)), A, B).flops == PRODUCT
    assert counted(jax.grad(lambda a, b: jnp.sum(product(a, b)), argnums=(0, 1)), A, B).flops == 4 * PRODUCT


def test_a_device_counts_its_part():
    mesh = mesh_lib.make_mesh(model=2)  # data 4
    rows, columns = mesh_lib.sharding(mesh, "batch", None), mesh_lib.sharding(mesh, None, "heads")
    left = jax.ShapeDtypeStruct((N, K), "float32", sharding=rows)
    right = jax.ShapeDtypeStruct((K, M), "float32", sharding=columns)
    with jax.set_mesh(mesh):
        assert counted(jnp.matmul, left, right).flops == PRODUCT / 8
        inside = jax.shard_map(jnp.matmul, in_specs=(rows.spec, columns.spec), out_specs=mesh_lib.spec("batch", "heads"))
        assert counted(inside, left, right).flops == PRODUCT / 8


def test_a_pallas_kernel_counts_its_grid():
    def kernel(a, b, out):
        out[...] = a[...] @ b[...]

    call = pl.pallas_call(
        kernel,
        grid=(4, 2),
        in_specs=[pl.BlockSpec((2, K), lambda i, j: (i, 0)), pl.BlockSpec((K, 16), lambda i, j: (0, j))],
        out_specs=pl.BlockSpec((2, 16), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((N, M), "float32"),
        interpret=True,
    )
    found = counted(call, A, B)
    assert found.flops == found.attention == PRODUCT


def test_tiles_that_a_causal_kernel_skips():
    tiles = flops.Tiles(a_row=4, heads=2, causal=True)
    assert tiles.live((3, 2, 4, 4)) == tiles.live((3, 4, 2, 4)) == 10 / 16
    assert tiles.live((3, 2, 4, 2)) == 1.0, "a local layer's grid has but the tiles that it sees"
    assert flops.Tiles(4, 2, causal=False).live((3, 2, 4, 4)) == 1.0


@pytest.mark.parametrize("microbatches,model", [(1, 1), (2, 1), (1, 2)])
def test_the_train_step_against_its_formula(microbatches, model):
    """6 operations a weight and token, 2 more where layers are computed again; tiles of attention; the loss; pooling. Nothing is left over."""
    tower = TowerConfig(text_size=60, num_units=20, width=128, layers=3, heads=2, kv_heads=1, head_dim=128, mlp_hidden=256)
    compute = ComputeConfig(attention="splash", dtype="bfloat16", remat=True)
    mesh = mesh_lib.make_mesh(model)  # 8 devices
    rows, length, segments, batch = 4 // microbatches, 512, 8, 64
    run = programs.Run(
        tower,
        compute,
        LossConfig(tile=32, spread_out_weight=0.0),
        OptimizerConfig(),
        TrainableConfig(),
        batch,
        Shape(length, rows, segments),
        microbatches,
    )
    found = flops.count(programs.trace_step(run, mesh).jaxpr, run.tiles(mesh))
    tokens, rows, heads, data = 4 * length, 4, tower.heads // model, 8 // model
    # Along `model` a device has its heads and hidden units; the one key/value head is every device's own.
    weights = tower.layers * tower.width * (2 * heads * 128 + 2 * 128 + 3 * tower.mlp_hidden // model)
    # Microbatches run the tower once more for the backward pass: its forward products, 2 a weight, and attention's, 2 of 11.
    again = microbatches > 1
    layers = (10 if again else 8) * weights * tokens
    tiles = rows * heads * tower.layers * 10  # 4 x 4 tiles, of which 10 are on or below the diagonal
    attention = (13 if again else 11) * tiles * 2 * 128**3
    loss = 4 * 2 * (batch // data) * (batch // model) * tower.width
    pooling = (3 if again else 2) * 2 * rows * segments * length * tower.width
    inside = tower.layers * rows * heads * 2 * length * 128  # attention's sum of out times its gradient
    assert found.attention == attention
    assert found.flops == layers + attention + loss + pooling + inside
    assert found.unknown_loops == 0
