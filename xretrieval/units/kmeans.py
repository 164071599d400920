"""k-means in JAX: Lloyd's iterations over tiles from a k-means++ start; rows are sharded over all devices."""

from collections.abc import Sequence

import jax
import numpy as np

from xretrieval.errors import UserError
from xretrieval.progress import track
from xretrieval.units import kmeans_tiles as tiles
from xretrieval.units.assignment import assign as assign
from xretrieval.units.kmeans_seeding import more_seeds, seeds

_CENTRE_ROWS = 65_536


def fit(
    x_NW: np.ndarray, num_clusters: int, iterations: int, seed: int, devices: Sequence[jax.Device] | None = None
) -> tuple[np.ndarray, list[float]]:
    """Lloyd's algorithm (Lloyd 1982) from a k-means++ start.

    Args:
      x_NW: float32 [N, W] frames, in memory or a mapped file: a CPU reads it a tile at a time, an accelerator holds it.
      num_clusters: K.
      iterations: at most so many; it stops when inertia falls by less than 1e-4 of itself.
      seed: fixes every draw.
      devices: that rows are sharded over, all by default; their number changes nothing but the order of float32 sums.

    Returns:
      (float32 [K, W] codebook, mean squared distance of a frame before each iteration's update).

    Raises:
      UserError: fewer (distinct) frames than clusters, or non-finite frames.
    """
    if x_NW.shape[0] < num_clusters:
        raise UserError(f"k-means: {x_NW.shape[0]} frames for {num_clusters} clusters; lower fit_units.num_units or sample more sound")
    rng = np.random.default_rng(seed)
    mesh = tiles.row_mesh(devices)
    # Any point would do that is not far from the rows.
    centre_W = np.asarray(x_NW[:_CENTRE_ROWS], np.float64).mean(0).astype(np.float32)
    square_N = tiles.squares(x_NW, centre_W)
    held = None if tiles.on_cpu(mesh) else list(tiles.blocks(x_NW, mesh, tiles.tile_rows(mesh)))

    def one_pass(codebook_KW: np.ndarray) -> tiles.Pass:
        rows = tiles.blocks(x_NW, mesh, tiles.tile_rows(mesh)) if held is None else held
        return tiles.one_pass(rows, x_NW.shape[0], tiles.centred(codebook_KW, centre_W), mesh)

    codebook_KW = seeds(x_NW, num_clusters, rng)
    if missing := num_clusters - len(codebook_KW):
        distance_N = square_N + 2.0 * one_pass(codebook_KW).score_N
        codebook_KW = np.concatenate([codebook_KW, more_seeds(x_NW, distance_N, codebook_KW, missing, rng)])
    history: list[float] = []
    for _ in track(range(iterations), iterations, "k-means"):
        sums_KW, counts_K, score_N = one_pass(codebook_KW)
        history.append(float(square_N.mean(dtype=np.float64) + 2.0 * score_N.mean(dtype=np.float64)))
        empty_K = counts_K == 0
        codebook_KW = np.where(empty_K[:, None], codebook_KW, sums_KW / np.maximum(counts_K, 1)[:, None] + centre_W).astype(np.float32)
        if empty_K.any():
            codebook_KW[empty_K] = more_seeds(x_NW, square_N + 2.0 * score_N, codebook_KW[~empty_K], int(empty_K.sum()), rng)
        elif len(history) > 1 and history[-2] - history[-1] < 1e-4 * history[-1]:
            break
    return codebook_KW, history
