"""The nearest centroid of each row, exactly: what float32 cannot decide is decided in float64.

A row's ID depends on the row and the codebook alone. Float32 scores come with a bound of their error; where a second centroid is within it, the row
is done again in float64. So batches, padding, devices and kinds of devices cannot change an ID, although they change the last bits of a score.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from xretrieval.errors import UserError
from xretrieval.units import kmeans_tiles as tiles

_EXACT_ROWS = 1_024  # that are done again at once


def assign(x_NW: np.ndarray, codebook_KW: np.ndarray, devices: Sequence[jax.Device] | None = None) -> np.ndarray:
    """The nearest centroid of each row by Euclidean distance, as float64 would find it; the lowest ID wins a tie.

    Args:
      x_NW: float32 [N, W] rows.
      codebook_KW: float32 [K, W] centroids.
      devices: whose work it is; by default all devices where there is a tile for each, else the first.

    Returns:
      int32 [N], the same for any batch, padding and devices.

    Raises:
      UserError: the widths differ, or a row holds NaN or infinity.
    """
    _check(x_NW, codebook_KW)
    id_N, known_N = _float32(x_NW, codebook_KW, devices)
    undecided = np.flatnonzero(~known_N)
    for first in range(0, undecided.size, _EXACT_ROWS):
        chosen = undecided[first : first + _EXACT_ROWS]
        id_N[chosen] = _exact(np.asarray(x_NW[chosen], np.float64), codebook_KW)
    return id_N


def undecided_rate(x_NW: np.ndarray, codebook_KW: np.ndarray) -> float:
    """The share of rows whose nearest centroid the bound of float32's error leaves open, and `assign` finds in float64."""
    _check(x_NW, codebook_KW)
    return 1.0 - float(_float32(x_NW, codebook_KW, None)[1].mean())


def tie_rate(x_NW: np.ndarray, codebook_KW: np.ndarray) -> float:
    """The share of rows whose two nearest centroids are equally far within float32's rounding: distances in float64 that differ by at most 2^-23 of them.

    Another implementation, in float32, may give such a row another ID.
    """
    _check(x_NW, codebook_KW)
    _, known_N = _float32(x_NW, codebook_KW, None)
    undecided = np.flatnonzero(~known_N)
    ties = 0
    for first in range(0, undecided.size, _EXACT_ROWS):
        for _, _, distances in _candidates(np.asarray(x_NW[undecided[first : first + _EXACT_ROWS]], np.float64), codebook_KW, 2.0**-22):
            two = np.sort(distances)[:2]
            ties += two.size == 2 and two[1] - two[0] <= 2.0**-23 * two[1]
    return ties / max(1, x_NW.shape[0])


def _check(x_NW: np.ndarray, codebook_KW: np.ndarray) -> None:
    if x_NW.ndim != 2 or codebook_KW.ndim != 2 or x_NW.shape[1] != codebook_KW.shape[1] or not codebook_KW.size:
        raise UserError(
            f"k-means: features of shape {list(x_NW.shape)} for a codebook of shape {list(codebook_KW.shape)}; both must be as wide"
        )


def _float32(x_NW: np.ndarray, codebook_KW: np.ndarray, devices: Sequence[jax.Device] | None) -> tuple[np.ndarray, np.ndarray]:
    """(IDs, whether they are certain) of all rows."""
    total = x_NW.shape[0]
    id_N, known_N = np.empty(total, np.int32), np.empty(total, bool)
    mesh = tiles.row_mesh(devices)
    tile = tiles.tile_rows(mesh)
    if devices is None and total < tile * mesh.size:
        mesh = tiles.row_mesh(jax.devices()[:1])
    codebook = tiles.centred(codebook_KW)
    whole = total - total % (tile * mesh.size)
    # What is left of a tile is rounded up to a power of two: a few shapes to compile, and a query is not padded to a whole tile.
    rest = max(tiles.SMALLEST_TILE, 1 << (-(-(total - whole) // mesh.size) - 1).bit_length())

    def dispatched() -> Iterator[tuple[int, int, tuple[jax.Array, jax.Array]]]:
        for start, rows_NW, size in ((0, x_NW[:whole], tile), (whole, x_NW[whole:], rest)):
            for block in tiles.blocks(rows_NW, mesh, size):
                yield start + block.first, block.filled, tiles.nearest(block.x_NW, codebook, mesh)

    for first, count, (ids, known) in tiles.under_way(dispatched()):
        id_N[first : first + count] = np.asarray(ids)[:count]
        known_N[first : first + count] = np.asarray(known)[:count]
    return id_N, known_N


def _exact(x_NW: np.ndarray, codebook_KW: np.ndarray) -> np.ndarray:
    """int32 [N] of float64 rows."""
    id_N = np.empty(x_NW.shape[0], np.int32)
    for row, ids, distances in _candidates(x_NW, codebook_KW, 0.0):
        id_N[row] = ids[np.argmin(distances)]
    return id_N


def _candidates(x_NW: np.ndarray, codebook_KW: np.ndarray, share: float) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(row, centroids within `share` of the least distance and float64's rounding, their squared distances) of float64 rows.

    The last step is a sum of squared differences of one row, so its bits do not depend on the rows beside it.
    """
    centre_W = codebook_KW.mean(0, dtype=np.float64)
    centroids_KW = codebook_KW - centre_W
    x_c_NW = x_NW - centre_W
    square_N, square_K = (np.einsum("nw,nw->n", v, v) for v in (x_c_NW, centroids_KW))
    distance_NK = square_N[:, None] + square_K - 2.0 * (x_c_NW @ centroids_KW.T)
    if not np.isfinite(distance_NK).all():
        raise UserError(
            "k-means: the features hold NaN, infinity or numbers too large to square; check the recordings with `xretrieval data check`"
        )
    rounding_N = (x_NW.shape[1] + 16) * 2.0**-50 * (square_N + square_K.max())
    least_N = distance_NK.min(1)
    close_NK = distance_NK <= (least_N * (1.0 + share) + rounding_N)[:, None]
    for row in range(x_NW.shape[0]):
        ids = np.flatnonzero(close_NK[row])
        yield row, ids, np.square(x_NW[row] - codebook_KW[ids].astype(np.float64)).sum(1)
