"""The matrices of a layer, and their products on a mesh: tensor parallelism over `model`, fully sharded over `data`.

A matrix that widens (queries, keys, values, gate, up) has its columns split over `model`, one that narrows (output, down) its rows. So between the
two each `model` shard has its own heads or hidden units, and what comes out is summed over `model`, once. The same side is split over `data`:
the width of an LLM, 9 x 128 for one, rarely divides over 256 chips; and the other side stays whole, the last axis in a TPU's tiles of 8 x 128.

    forward     a weight is rounded to the compute dtype and gathered over `data`; `narrow` sums over `model`
    backward    a weight's gradient is reduce-scattered over `data`, its share then summed over `replica`, both in the compute dtype: that halves
                what goes over the wire, and the sums are over devices, not over tokens; `widen` sums the gradient of its input over `model`

All of it is in `jax.shard_map`: what crosses devices is written here, not left to the compiler.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from xretrieval import mesh as mesh_lib

Axes = tuple[str | None, str | None]


class Linear(nnx.Module):
    """W, and with an adapter (LoRA, arXiv 2106.09685) W + scale * A B, A normal and B nought at the start.

    Attributes:
      axes: the logical axes of W: "features" where it is split, None for the width; A has the first of them, B the second.
      heads: of the columns: equal parts that no `model` shard has but whole; 0: cut them anywhere.
    """

    def __init__(self, layers: int, shape: tuple[int, int], axes: Axes, lora_rank: int, rngs: nnx.Rngs, heads: int = 0):
        fan_in, fan_out = shape
        self.axes, self.heads = axes, heads
        self.weight_DF = nnx.Param(_normal(rngs, (layers, *shape), axes) * fan_in**-0.5)
        self.adapted = lora_rank > 0
        if self.adapted:
            self.lora_a_DK = nnx.Param(_normal(rngs, (layers, fan_in, lora_rank), (axes[0], None)) * fan_in**-0.5)
            self.lora_b_KF = nnx.Param(jnp.zeros((layers, lora_rank, fan_out), out_sharding=mesh_lib.spec(None, None, axes[1])))

    def weights(self) -> list[tuple[jax.Array, Axes]]:
        """W of one layer, and A and B where there are some; each with its logical axes."""
        adapter = [(self.lora_a_DK[...], (self.axes[0], None)), (self.lora_b_KF[...], (None, self.axes[1]))] if self.adapted else []
        return [(self.weight_DF[...], self.axes), *adapter]


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes) -> jax.Array:
    return jax.random.normal(rngs.params(), shape, out_sharding=mesh_lib.spec(None, *axes))


def widen(x_RLD: jax.Array, linears: Sequence[Linear], lora_scale: float) -> list[jax.Array]:
    """x @ W of several matrices, [R, L, F] each, split over `model` by columns.

    Of heads that are fewer than the `model` shards, every shard computes the one that it needs: F is then a head for each shard.
    """

    def local(x_RLD, weights):
        # Once for all products: backwards, this is the one sum over `model`.
        x_RLD = jax.lax.pcast(x_RLD, mesh_lib.several("model"), to="varying")
        return [_product(x_RLD, own, linear, lora_scale) for own, linear in zip(weights, linears, strict=True)]

    return _on_shards(local, x_RLD, None, linears, "heads")


def narrow(x_RLF: jax.Array, linear: Linear, lora_scale: float) -> jax.Array:
    """x @ W, [R, L, D], where the last axis of x and the rows of W are split over `model`."""

    def local(x_RLF, weights):
        return [jax.lax.psum(_product(x_RLF, weights[0], linear, lora_scale), mesh_lib.several("model"))]

    return _on_shards(local, x_RLF, "heads", [linear], None)[0]


def _on_shards(local, x: jax.Array, axis: str | None, linears: Sequence[Linear], axis_out: str | None) -> list[jax.Array]:
    """`local` on each device's rows of x and its part of the weights; x has the logical axis `axis` last, and what comes out `axis_out`.

    Inside, no type speaks of mesh axes of one device: sums over them would be copies that XLA:CPU does not take away.
    """
    out = mesh_lib.spec("batch", None, axis_out)
    weights = [[weight for weight, _ in linear.weights()] for linear in linears]
    specs = [[mesh_lib.trimmed(mesh_lib.spec(*axes)) for _, axes in linear.weights()] for linear in linears]
    before, after = mesh_lib.trimmed(mesh_lib.spec("batch", None, axis)), mesh_lib.trimmed(out)
    on_shards = jax.shard_map(local, in_specs=(before, specs), out_specs=[after] * len(linears))
    return [jax.reshard(y, out) for y in on_shards(jax.reshard(x, before), jax.reshard(weights, specs))]


def _product(x_RLD: jax.Array, weights: Sequence[jax.Array], linear: Linear, lora_scale: float) -> jax.Array:
    """A device's part of x @ W, rows and tokens flattened: XLA:CPU runs one large matmul 1.5 times as fast as a batch of small ones."""
    rows, length, width = x_RLD.shape
    x_ND = x_RLD.reshape(rows * length, width)
    own = [_gathered(weight.astype(x_RLD.dtype), axes, linear.heads) for weight, (_, axes) in zip(weights, linear.weights(), strict=True)]
    y_NF = x_ND @ own[0]
    if linear.adapted:
        y_NF += lora_scale * ((x_ND @ own[1]) @ own[2])
    return y_NF.reshape(rows, length, y_NF.shape[1])


def _gathered(weight: jax.Array, axes: Axes, heads: int) -> jax.Array:
    """What this `model` shard needs of a weight: its own side of "features", whole over `data`."""
    split = tuple(jax.tree.leaves(tuple(mesh_lib.trimmed(mesh_lib.spec(*axes)))))
    # Where it is not split its gradient is summed. Said before the gather: over `replica` go shares of it, not all of it.
    weight = jax.lax.pcast(weight, tuple(name for name in mesh_lib.several(*mesh_lib.AXES) if name not in split), to="varying")
    if not split:
        return weight
    side, shards = axes.index("features"), jax.lax.axis_size("model")
    if not 0 < heads < shards:
        return jax.lax.all_gather(weight, "data", axis=side, tiled=True) if "data" in split else weight
    # Fewer heads than shards: a head is on several of them.
    weight = jax.lax.all_gather(weight, split, axis=side, tiled=True)
    width = weight.shape[side] // heads
    return jax.lax.dynamic_slice_in_dim(weight, jax.lax.axis_index("model") // (shards // heads) * width, width, axis=side)
