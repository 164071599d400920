"""The extended embedding table: text rows, unit rows, padding rows; vocabulary-parallel lookup."""

import jax
import jax.numpy as jnp
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
        # Scaled by sqrt(D) after the lookup, as in Gemma, so that a looked-up vector has unit variance.
        self.table_VD = nnx.Param(jax.random.normal(rngs.params(), (rows, width), out_sharding=mesh_lib.spec("vocab", None)) * width**-0.5)

    def __call__(self, tokens_RL: jax.Array) -> jax.Array:
        table_VD = self.table_VD[...]
        return lookup(table_VD, tokens_RL) * jnp.sqrt(jnp.asarray(table_VD.shape[1], table_VD.dtype))
