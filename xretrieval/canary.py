"""A collective that is known to have been wrong, held against NumPy on the devices and processes of a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from xretrieval import mesh as mesh_lib

_COLUMNS = 64
_FACTORS = 8  # devices that follow each other differ by a factor, and the sum grows with their number alone, not with its square
_MOST_BYTES = 1 << 30  # that a device sends: a chunk to each of the others


def check_reduce_scatter(chunk_bytes: int) -> int:
    """A reduce-scatter as the loss does it, over all batch axes of the mesh in context, in chunks of `chunk_bytes` a device.

    Over gloo, which joins processes on CPUs, it has been wrong without a word for chunks of 4 MiB and right for smaller ones (jax-ml/jax#40830).
    Every sum of the numbers is whole and below 2^24, so float32 adds them exactly in any order.

    Returns:
      Bytes of the chunks: fewer than `chunk_bytes` where all chunks of a device would be more than 1 GiB.

    Raises:
      RuntimeError: it is wrong on this process.
    """
    size = mesh_lib.batch_shards(jax.sharding.get_mesh())
    rows, modulus, factors = sizes(size, chunk_bytes)
    chunk = rows // size * _COLUMNS * 4
    for shard in _summed(rows, modulus).addressable_shards:
        begin, end, _ = shard.index[0].indices(rows)
        expected_VD = np.arange(begin * _COLUMNS, end * _COLUMNS, dtype=np.int64).reshape(-1, _COLUMNS) % modulus * factors
        wrong = int((np.asarray(shard.data) != expected_VD).sum())
        if wrong:
            raise RuntimeError(
                f"a reduce-scatter over {size} devices in chunks of {chunk:,} bytes has {wrong:,} wrong numbers on {shard.device}: the "
                f"gradients of this run would be wrong; use another release of jaxlib"
            )
    return chunk


def sizes(devices: int, chunk_bytes: int) -> tuple[int, int, int]:
    """(rows of all chunks, what the numbers stay below before a device's factor, sum of the factors) of a reduce-scatter over so many devices."""
    rows = devices * max(1, min(chunk_bytes, _MOST_BYTES // devices) // (4 * _COLUMNS))
    rounds, rest = divmod(devices, _FACTORS)
    factors = rounds * (_FACTORS * (_FACTORS + 1) // 2) + rest * (rest + 1) // 2
    return rows, min(1021, (1 << 24) // factors), factors


@functools.partial(jax.jit, static_argnames=("rows", "modulus"))
def _summed(rows: int, modulus: int) -> jax.Array:
    """The sum over the batch axes of arrays that differ from device to device by a factor; [rows, columns], split over these axes."""
    split = mesh_lib.spec("batch", None)

    def local():
        x_VD = (jnp.arange(rows * _COLUMNS, dtype=jnp.int32) % modulus).astype(jnp.float32).reshape(rows, _COLUMNS)
        factor = jax.lax.axis_index(split[0]) % _FACTORS + 1
        return jax.lax.psum_scatter(x_VD * factor, split[0], scatter_dimension=0, tiled=True)

    return jax.shard_map(local, in_specs=(), out_specs=split)()
