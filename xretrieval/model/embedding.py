"""The extended embedding: the t text rows of an LLM and a unit rows beside them, one ID space, vocabulary-parallel lookup.

The rows are two arrays, so that what trains, learning rates and gradient norms can tell units from text by name, and an imported table stays as
it is. Each is padded to a multiple that the mesh divides; padding rows are never looked up, so they never get a gradient.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xretrieval import mesh as mesh_lib

Tables = tuple[jax.Array, ...]


def padded_rows(rows: int, multiple: int) -> int:
    """Rows rounded up to a multiple."""
    return -(-rows // multiple) * multiple


def lookup(tables: Tables, tokens_RL: jax.Array, sizes: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Rows of tables that are split over ('model', 'data'), for tokens that are split over the batch axes.

    One `shard_map`: rows are rounded to `dtype` and gathered over `data`, each `model` shard takes those it holds, and one sum over `model`
    joins them. Backwards, each device adds up its own tokens in the tables' dtype, and one reduce-scatter over `data` shares the sums.

    Args:
      tables: [V, D] each; table k holds the IDs that follow those of the tables before it.
      tokens_RL: int32; inside the vocabulary: the data boundary checks that (`data/pipeline.py`), JAX would clamp.
      sizes: how many IDs each table holds, without its padding rows.
      dtype: of the result.

    Returns:
      [R, L, D].
    """

    def local(tables, ids_RL):
        out_RLD, begin = jnp.zeros((), dtype), 0
        for table_VD, size in zip(tables, sizes, strict=True):
            own_RL = (ids_RL >= begin) & (ids_RL < begin + size)
            out_RLD = out_RLD + _take(table_VD, jnp.where(own_RL, ids_RL - begin, -1), dtype)
            begin += size
        return jax.lax.psum(out_RLD, "model")

    rows, batch = mesh_lib.spec("vocab", None), mesh_lib.spec("batch", None)
    return jax.shard_map(local, in_specs=((rows,) * len(tables), batch), out_specs=mesh_lib.spec("batch", None, None))(tables, tokens_RL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _take(rows_VD, ids_RL, dtype):
    """This device's part of a lookup: zeros where an ID is another `model` shard's, or negative."""
    gathered_VD = jax.lax.all_gather(rows_VD.astype(dtype), "data", axis=0, tiled=True)
    return gathered_VD.at[_here(ids_RL, gathered_VD.shape[0])].get(mode="fill", fill_value=0)


def _here(ids_RL, rows: int):
    """Places in this `model` shard's rows; beyond them where the ID is not here."""
    place_RL = ids_RL - jax.lax.axis_index("model") * rows
    return jnp.where((ids_RL >= 0) & (place_RL >= 0) & (place_RL < rows), place_RL, rows)


def _take_forward(rows_VD, ids_RL, dtype):
    return _take(rows_VD, ids_RL, dtype), (rows_VD, ids_RL)


def _take_backward(dtype, saved, gradient_RLD):
    rows_VD, ids_RL = saved
    rows = rows_VD.shape[0] * jax.lax.axis_size("data")
    # In the table's own dtype: thousands of tokens add up in one row.
    zeros_VD = jnp.zeros((rows, rows_VD.shape[1]), rows_VD.dtype)
    sums_VD = zeros_VD.at[_here(ids_RL, rows)].add(gradient_RLD.astype(rows_VD.dtype), mode="drop")
    sums_VD = jax.lax.psum_scatter(sums_VD, "data", scatter_dimension=0, tiled=True)
    return jax.lax.psum(sums_VD, "replica"), None


_take.defvjp(_take_forward, _take_backward)


def check_lookup(dtype=jnp.float32) -> None:
    """Compares a lookup and its gradient on the mesh in context with NumPy; whole numbers, so they are equal or wrong.

    XLA has miscompiled this pattern on TPU before (openxla/xla#49143); a wrong row would cost a run, this costs a second.

    Raises:
      RuntimeError: they differ.
    """
    mesh = jax.sharding.get_mesh()
    shards, width = mesh.shape["model"] * mesh.shape["data"], 4
    text, units = 8 * shards, 8 * shards
    sizes = text - 3, units - 5  # the last rows are padding
    ids = sum(sizes)
    table_VD = (np.arange((text + units) * width) % 127).astype(np.float32).reshape(-1, width)
    tables = table_VD[:text], table_VD[text:]
    tokens_RL = _every_id(mesh_lib.batch_shards(mesh), ids)
    rows_RL = np.where(tokens_RL < sizes[0], tokens_RL, tokens_RL - sizes[0] + text)
    weight_RLD = (np.arange(tokens_RL.size * width, dtype=np.float32) % 5).reshape(*tokens_RL.shape, width)
    gradient_VD = np.zeros_like(table_VD)
    np.add.at(gradient_VD, rows_RL, weight_RLD)

    def place(x, *axes):
        return jax.make_array_from_callback(x.shape, mesh_lib.sharding(mesh, *axes), lambda index: x[index])

    @jax.jit
    def differences(tables, tokens_RL, weight_RLD, expected_RLD, gradients):
        found_RLD, pull = jax.vjp(lambda tables: lookup(tables, tokens_RL, sizes, dtype), tables)
        found = pull(weight_RLD.astype(dtype))[0]
        return jnp.sum(found_RLD.astype(jnp.float32) != expected_RLD), [jnp.sum(a != b) for a, b in zip(found, gradients, strict=True)]

    batch = ("batch", None, None)
    values, gradients = differences(
        tuple(place(x, "vocab", None) for x in tables),
        place(tokens_RL, *batch[:2]),
        place(weight_RLD, *batch),
        place(table_VD[rows_RL], *batch),
        tuple(place(x, "vocab", None) for x in (gradient_VD[:text], gradient_VD[text:])),
    )
    wrong = int(values), sum(int(count) for count in gradients)
    if any(wrong):
        raise RuntimeError(f"this compiler gets the embedding lookup wrong on {mesh}: {wrong[0]} values, {wrong[1]} gradients")


def _every_id(shards: int, ids: int) -> np.ndarray:
    """int32 [shards, ids]: every ID on every batch shard, on each from the next place on."""
    return ((np.arange(ids)[None, :] + np.arange(shards)[:, None]) % ids).astype(np.int32)


class ExtendedEmbedding(nnx.Module):
    """E: text rows [t, D] and, where there are units, unit rows [a, D], each padded."""

    def __init__(self, text_size: int, num_units: int, width: int, row_multiple: int, scaled: bool, rngs: nnx.Rngs):
        self.sizes = (text_size, num_units) if num_units else (text_size,)
        self.scaled = scaled
        # Where they are scaled by sqrt(D) after the lookup, a looked-up vector has unit variance.
        scale = width**-0.5 if scaled else 1.0

        def rows(size: int) -> nnx.Param:
            shape = (padded_rows(size, row_multiple), width)
            drawn_VD = jax.random.normal(rngs.params(), shape, out_sharding=mesh_lib.spec("vocab", None)) * scale
            # Padding is zeros, which neither a gradient nor weight decay moves.
            used_V1 = jax.reshard(jnp.arange(shape[0])[:, None] < size, mesh_lib.spec("vocab", None))
            return nnx.Param(jnp.where(used_V1, drawn_VD, 0.0))

        self.text_VD = rows(text_size)
        if num_units:
            self.units_AD = rows(num_units)

    def __call__(self, tokens_RL: jax.Array, dtype) -> jax.Array:
        tables = (self.text_VD[...], self.units_AD[...]) if len(self.sizes) > 1 else (self.text_VD[...],)
        x_RLD = lookup(tables, tokens_RL, self.sizes, dtype)
        # In the compute dtype, as the released models do it: Gemma's sqrt(1152) is 34 in bfloat16.
        return x_RLD * jnp.asarray(x_RLD.shape[-1] ** 0.5, dtype) if self.scaled else x_RLD
