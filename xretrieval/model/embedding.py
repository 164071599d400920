"""The extended embedding table: text rows, unit rows, padding rows; vocabulary-parallel lookup."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError


def padded_rows(vocab_size: int, multiple: int) -> int:
    """V: t + a rounded up; the padding rows are never looked up, so they never get a gradient."""
    return -(-vocab_size // multiple) * multiple


def lookup(table_VD: jax.Array, tokens_RL: jax.Array) -> jax.Array:
    """Rows of a table that is split over ('model', 'data'), for tokens that are split over the batch axes.

    One `shard_map`: all-gather the rows over `data`, take those this `model` shard holds, sum over `model`. Its transpose is a local
    scatter-add and one reduce-scatter. IDs must be inside the table: the data boundary checks that (`data/pipeline.py`).

    Returns:
      [R, L, D] in the table's dtype.
    """

    def local(rows_VD, ids_RL):
        rows_VD = jax.lax.all_gather(rows_VD, "data", axis=0, tiled=True)
        offset = jax.lax.axis_index("model") * rows_VD.shape[0]
        here_RL = (ids_RL >= offset) & (ids_RL < offset + rows_VD.shape[0])
        taken_RLD = rows_VD[jnp.where(here_RL, ids_RL - offset, 0)]
        return jax.lax.psum(jnp.where(here_RL[..., None], taken_RLD, 0), "model")

    batch = mesh_lib.spec("batch", None)
    return jax.shard_map(local, in_specs=(mesh_lib.spec("vocab", None), batch), out_specs=mesh_lib.spec("batch", None, None))(
        table_VD, tokens_RL
    )


def check_lookup() -> None:
    """Compares a lookup and its gradient on the mesh in context with NumPy; whole numbers, so they are equal or wrong.

    XLA has miscompiled this pattern on TPU before (openxla/xla#49143); a wrong row would cost a run, this costs a second.

    Raises:
      RuntimeError: they differ.
    """
    mesh = jax.sharding.get_mesh()
    rows, width = 8 * mesh.shape["model"] * mesh.shape["data"], 4
    table_VD = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    # 7 and the number of rows have no factor in common: every row is looked up, on every batch shard.
    tokens_RL = (np.arange(mesh_lib.batch_shards(mesh) * rows, dtype=np.int32) * 7 % rows).reshape(-1, rows)
    weight_RLD = (np.arange(tokens_RL.size * width, dtype=np.float32) % 5).reshape(*tokens_RL.shape, width)
    gradient_VD = np.zeros_like(table_VD)
    np.add.at(gradient_VD, tokens_RL, weight_RLD)

    def place(x, *axes):
        return jax.make_array_from_callback(x.shape, mesh_lib.sharding(mesh, *axes), lambda index: x[index])

    @jax.jit
    def differences(table_VD, tokens_RL, weight_RLD, expected_RLD, gradient_VD):
        found_RLD, pull = jax.vjp(lambda table: lookup(table, tokens_RL), table_VD)
        return jnp.sum(found_RLD != expected_RLD), jnp.sum(pull(weight_RLD)[0] != gradient_VD)

    batch = ("batch", None, None)
    wrong = differences(
        place(table_VD, "vocab", None),
        place(tokens_RL, *batch[:2]),
        place(weight_RLD, *batch),
        place(table_VD[tokens_RL], *batch),
        place(gradient_VD, "vocab", None),
    )
    if any(int(count) for count in wrong):
        raise RuntimeError(f"this compiler gets the embedding lookup wrong on {mesh}: {wrong[0]} values, {wrong[1]} gradients")


class ExtendedEmbedding(nnx.Module):
    """t text rows, a unit rows and padding, as one table [V, D]."""

    def __init__(self, vocab_size: int, width: int, row_multiple: int, rngs: nnx.Rngs):
        rows = padded_rows(vocab_size, row_multiple)
        mesh = jax.sharding.get_abstract_mesh()
        shards = mesh.shape["model"] * mesh.shape["data"]
        if rows % shards:
            raise UserError(
                f"{rows} embedding rows do not divide over {shards} shards; set TowerConfig.row_multiple to a multiple of {shards}"
            )
        if width % mesh.shape["data"]:
            raise UserError(
                f"TowerConfig.width {width} does not divide over {mesh.shape['data']} devices of the axis `data`; change one of them"
            )
        # Scaled by sqrt(D) after the lookup, as in Gemma, so that a looked-up vector has unit variance.
        self.table_VD = nnx.Param(jax.random.normal(rngs.params(), (rows, width), out_sharding=mesh_lib.spec("vocab", None)) * width**-0.5)

    def __call__(self, tokens_RL: jax.Array) -> jax.Array:
        table_VD = self.table_VD[...]
        return lookup(table_VD, tokens_RL) * jnp.sqrt(jnp.asarray(table_VD.shape[1], table_VD.dtype))
