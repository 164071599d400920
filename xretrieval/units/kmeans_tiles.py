"""Rows against a codebook, a tile at a time on every device: the N x K distance matrix is never whole.

Scores are half the squared distance less |x|²/2, both sides centred on one point so that a mean far from zero costs no digits:
|c|²/2 - x·c, one matmul. Tiles are the same rows however many devices there are.
"""

import collections
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xretrieval.errors import UserError

T = TypeVar("T")
_ROWS = PartitionSpec("rows")
_WHOLE = PartitionSpec()
# Rows of a tile. On a CPU its scores (K = 1024: 4 MiB) stay in the cache; an accelerator wants larger matmuls.
_TILE_CPU, _TILE_ACCELERATOR = 1_024, 16_384
SMALLEST_TILE = 64
_STRETCH = 1_024  # rows that the host looks at at once
_AHEAD = 4  # blocks that are under way
_UNIT_ROUNDOFF = 2.0**-24  # of float32
_SMALLEST_NORMAL = 2.0**-126


class Centred(NamedTuple):
    """A codebook as the tiles want it: the `centre_W` that is taken from every row, centroids less it, |c|²/2, and what bounds a score's error.

    A score in float32 is wrong by at most (`slope` * |x| + `offset`) / 2, x centred: the textbook bound of a dot product of W terms in any order
    (Higham 2002, section 3.1), with the roundings before and after it, and the six bfloat16 passes of a TPU, in 16 more.
    """

    centre_W: np.ndarray
    centroids_KW: np.ndarray
    bias_K: np.ndarray
    slope: np.float32
    offset: np.float32


def centred(codebook_KW: np.ndarray, centre_W: np.ndarray | None = None) -> Centred:
    """The codebook, centred on float32 `centre_W`, by default its own mean."""
    exact_KW = codebook_KW.astype(np.float64)
    if centre_W is None:
        centre_W = exact_KW.mean(0).astype(np.float32)
    exact_KW -= centre_W
    square_K = np.einsum("kw,kw->k", exact_KW, exact_KW)
    terms = codebook_KW.shape[1] + 16
    slope = 2 * _UNIT_ROUNDOFF * terms * np.sqrt(square_K.max())
    offset = 2 * _UNIT_ROUNDOFF * 8 * square_K.max() + terms * _SMALLEST_NORMAL
    with np.errstate(over="ignore"):  # infinity leaves every row open
        return Centred(centre_W, exact_KW.astype(np.float32), (0.5 * square_K).astype(np.float32), np.float32(slope), np.float32(offset))


def row_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, `rows`, over all devices or those given."""
    chosen = jax.devices() if devices is None else list(devices)
    return Mesh(np.array(chosen), ("rows",), axis_types=(AxisType.Auto,))


def on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def tile_rows(mesh: Mesh) -> int:
    """Rows of one device's tile."""
    return _TILE_CPU if on_cpu(mesh) else _TILE_ACCELERATOR


class Block(NamedTuple):
    """A tile for every device, padded with zeros behind `filled` rows that begin at `first`."""

    x_NW: jax.Array
    first: int
    filled: int


def blocks(x_NW: np.ndarray, mesh: Mesh, tile: int) -> Iterator[Block]:
    """The rows of float [N, W], or of a mapped file of them, as float32 on the devices."""
    size = tile * mesh.size
    for first in range(0, x_NW.shape[0], size):
        rows = np.asarray(x_NW[first : first + size], np.float32)
        count = rows.shape[0]
        if count < size:
            rows = np.concatenate([rows, np.zeros((size - count, rows.shape[1]), np.float32)])
        yield Block(jax.device_put(rows, NamedSharding(mesh, _ROWS)), first, count)


def _scores(x_NW: jax.Array, codebook: Centred) -> jax.Array:
    """Centroids come first: XLA:CPU vectorises reductions over an axis that is not the last."""
    dot_KN = jax.lax.dot_general(codebook.centroids_KW, x_NW, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
    return jnp.asarray(codebook.bias_K)[:, None] - dot_KN


def _lowest(score_KN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the first centroid of the lowest score, that score). An argmin in two passes: XLA:CPU runs its own one value after another."""
    best_N = jnp.min(score_KN, axis=0)
    id_KN = jax.lax.broadcasted_iota(jnp.int32, score_KN.shape, 0)
    return jnp.min(jnp.where(score_KN == best_N, id_KN, score_KN.shape[0] - 1), axis=0), best_N


def _scattered(sums_KW: jax.Array, x_NW: jax.Array, id_N: jax.Array) -> jax.Array:
    return sums_KW.at[id_N].add(x_NW, mode="drop")


def _multiplied(sums_KW: jax.Array, x_NW: jax.Array, id_N: jax.Array) -> jax.Array:
    """As `_scattered`, by a matmul: a GPU scatters in no fixed order, a TPU slowly."""
    one_hot_KN = (jnp.arange(sums_KW.shape[0])[:, None] == id_N).astype(jnp.float32)
    return sums_KW + jnp.dot(one_hot_KN, x_NW, precision=jax.lax.Precision.HIGHEST)


class _Totals(NamedTuple):
    """Of each device, the sums of its centred rows by cluster, float32 [devices, K, W], and their numbers, int32 [devices, K]."""

    sums_DKW: jax.Array
    counts_DK: jax.Array


def _no_totals(mesh: Mesh, num_clusters: int, width: int) -> _Totals:
    place = NamedSharding(mesh, _ROWS)
    return _Totals(
        jnp.zeros((mesh.size, num_clusters, width), jnp.float32, device=place),
        jnp.zeros((mesh.size, num_clusters), jnp.int32, device=place),
    )


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="totals")
def _accumulate(totals: _Totals, x_NW: jax.Array, count: jax.Array, codebook: Centred, mesh: Mesh) -> tuple[_Totals, jax.Array]:
    """Adds a block's rows to the totals of their nearest centroids.

    Returns:
      (totals, the score of each row at its nearest centroid, float32 [N]; that of padding means nothing).
    """

    def local(totals: _Totals, x_NW: jax.Array, count: jax.Array, codebook: Centred):
        x_NW = x_NW - codebook.centre_W
        id_N, best_N = _lowest(_scores(x_NW, codebook))
        place_N = jax.lax.axis_index("rows") * x_NW.shape[0] + jnp.arange(x_NW.shape[0])
        id_N = jnp.where(place_N < count, id_N, codebook.bias_K.shape[0])
        add = _scattered if on_cpu(mesh) else _multiplied
        sums_KW = add(totals.sums_DKW[0], x_NW, id_N)
        return _Totals(sums_KW[None], totals.counts_DK.at[0, id_N].add(1, mode="drop")), best_N

    return jax.shard_map(local, mesh=mesh, in_specs=(_ROWS, _ROWS, _WHOLE, _WHOLE), out_specs=(_ROWS, _ROWS))(totals, x_NW, count, codebook)


@functools.partial(jax.jit, static_argnames="mesh")
def _all_devices(totals: _Totals, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """(float32 [K, W] sums, int32 [K] numbers of rows) over all devices."""

    def local(totals: _Totals):
        return jax.lax.psum((totals.sums_DKW[0], totals.counts_DK[0]), "rows")

    return jax.shard_map(local, mesh=mesh, in_specs=(_ROWS,), out_specs=_WHOLE)(totals)


def under_way(results: Iterable[T]) -> Iterator[T]:
    """The results of dispatched work in their order, each a few later than its dispatch, so that the host neither waits nor runs far ahead."""
    pending: collections.deque[T] = collections.deque()
    for result in results:
        pending.append(result)
        if len(pending) > _AHEAD:
            yield pending.popleft()
    yield from pending


class Pass(NamedTuple):
    """Of all rows: sums by cluster of centred rows, float32 [K, W], their numbers, int32 [K], and each row's score at its nearest centroid, float32 [N]."""

    sums_KW: np.ndarray
    counts_K: np.ndarray
    score_N: np.ndarray


def one_pass(rows: Iterable[Block], total: int, codebook: Centred, mesh: Mesh) -> Pass:
    """Every row to its nearest centroid, by float32 scores."""
    totals = _no_totals(mesh, *codebook.centroids_KW.shape)
    score_N = np.empty(total, np.float32)

    def dispatched() -> Iterator[tuple[Block, jax.Array]]:
        nonlocal totals
        for block in rows:
            totals, best_N = _accumulate(totals, block.x_NW, np.int32(block.filled), codebook, mesh)
            yield block, best_N

    for block, best_N in under_way(dispatched()):
        score_N[block.first : block.first + block.filled] = np.asarray(best_N)[: block.filled]
    sums_KW, counts_K = _all_devices(totals, mesh)
    return Pass(np.asarray(sums_KW), np.asarray(counts_K), score_N)


@functools.partial(jax.jit, static_argnames="mesh")
def nearest(x_NW: jax.Array, codebook: Centred, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """(int32 [N] nearest centroid, whether float32 was enough to know it: no other score is within the error's bound)."""

    def local(x_NW: jax.Array, codebook: Centred):
        x_NW = x_NW - codebook.centre_W
        score_KN = _scores(x_NW, codebook)
        id_N, best_N = _lowest(score_KN)
        norm_N = jnp.sqrt(jnp.dot(x_NW * x_NW, jnp.ones(x_NW.shape[1]), precision=jax.lax.Precision.HIGHEST))
        margin_N = codebook.slope * norm_N + codebook.offset
        return id_N, jnp.sum((score_KN <= best_N + margin_N).astype(jnp.int32), axis=0) == 1

    return jax.shard_map(local, mesh=mesh, in_specs=(_ROWS, _WHOLE), out_specs=_ROWS)(x_NW, codebook)


def squares(x_NW: np.ndarray, centre_W: np.ndarray) -> np.ndarray:
    """|x - centre|² of each row, float32 [N].

    Raises:
      UserError: a row holds NaN or infinity.
    """
    square_N = np.empty(x_NW.shape[0], np.float32)
    for first in range(0, x_NW.shape[0], _STRETCH):
        rows_NW = np.asarray(x_NW[first : first + _STRETCH], np.float32) - centre_W
        square_N[first : first + _STRETCH] = np.einsum("nw,nw->n", rows_NW, rows_NW)
    if not np.isfinite(square_N).all():
        raise UserError(
            "k-means: the features hold NaN, infinity or numbers too large to square; check the recordings with `xretrieval data check`"
        )
    return square_N
