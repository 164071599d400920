"""A collective that is known to have been wrong, held against NumPy on the devices and processes of a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

_COLUMNS = 64


def check_reduce_scatter(chunk_bytes: int) -> None:
    """A reduce-scatter over the axis `data` of the mesh in context, in chunks of `chunk_bytes` a device.

    Over gloo, which joins processes on CPUs, it has been wrong without a word for chunks of 4 MiB and right for smaller ones (jax-ml/jax#40830). The
    numbers are whole and below 2^24, so float32 adds them exactly in any order.

    Raises:
      RuntimeError: it is wrong on this process.
    """
    mesh = jax.sharding.get_mesh()
    size = mesh.shape["data"]
    rows = size * max(1, chunk_bytes // (4 * _COLUMNS))
    found_VD = _summed(rows)
    expected_VD = _numbers(rows) * (size * (size + 1) // 2)
    for shard in found_VD.addressable_shards:
        wrong = int((np.asarray(shard.data) != expected_VD[shard.index]).sum())
        if wrong:
            raise RuntimeError(
                f"a reduce-scatter over {size} devices in chunks of {chunk_bytes:,} bytes has {wrong:,} wrong numbers on {shard.device}: the "
                f"gradients of this run would be wrong; use another release of jaxlib"
            )


def _numbers(rows: int) -> np.ndarray:
    return (np.arange(rows * _COLUMNS, dtype=np.int32) % 1021).astype(np.float32).reshape(rows, _COLUMNS)


@functools.partial(jax.jit, static_argnames="rows")
def _summed(rows: int) -> jax.Array:
    """The sum over `data` of arrays that differ from device to device by a factor; [rows, columns], split over `data`."""

    def local():
        x_VD = (jnp.arange(rows * _COLUMNS, dtype=jnp.int32) % 1021).astype(jnp.float32).reshape(rows, _COLUMNS)
        return jax.lax.psum_scatter(x_VD * (jax.lax.axis_index("data") + 1), "data", scatter_dimension=0, tiled=True)

    return jax.shard_map(local, in_specs=(), out_specs=PartitionSpec("data", None))()
