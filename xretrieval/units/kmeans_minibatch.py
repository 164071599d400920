"""k-means in mini-batches (Sculley 2010, "Web-scale k-means clustering"), for frames that do not fit in memory."""

import jax
import numpy as np
from jax.sharding import Mesh

from xretrieval.progress import track
from xretrieval.units import kmeans_tiles as tiles
from xretrieval.units.kmeans_seeding import more_seeds, seeds, too_few


def fit_minibatch(x_NW: np.ndarray, num_clusters: int, batch_rows: int, epochs: int, seed: int) -> tuple[np.ndarray, list[float]]:
    """Moves centroids to the running mean of the rows that were nearest to them, a batch at a time.

    Args:
      x_NW: float32 [N, W], usually a mapped file; a batch of it is in memory, and the whole is read again only for clusters that no row came to.
      num_clusters: K.
      batch_rows: rows of a batch, drawn without replacement in an epoch; at least K.
      epochs: passes over the rows.
      seed: fixes every draw.

    Returns:
      (float32 [K, W] codebook, mean squared distance of a frame in each epoch, to the centroids as they were when it came).

    Raises:
      UserError: fewer (distinct) frames than clusters, or non-finite frames.
    """
    total = x_NW.shape[0]
    if total < num_clusters:
        raise too_few(total, num_clusters)
    rng = np.random.default_rng(seed)
    mesh = tiles.row_mesh(jax.devices())
    codebook_KW = seeds(x_NW, num_clusters, rng)
    if missing := num_clusters - len(codebook_KW):
        codebook_KW = np.concatenate([codebook_KW, more_seeds(x_NW, _distances(x_NW, codebook_KW, mesh), codebook_KW, missing, rng)])
    counts_K = np.zeros(num_clusters, np.int64)
    history: list[float] = []
    batches = -(-total // max(batch_rows, num_clusters))
    for _ in track(range(epochs), epochs, "k-means, epochs"):
        before_K, squared = counts_K.copy(), 0.0
        for chosen in np.array_split(rng.permutation(total), batches):
            rows_NW = np.asarray(x_NW[np.sort(chosen)], np.float32)
            centred = tiles.centred(codebook_KW)
            square_N = tiles.squares(rows_NW, centred.centre_W)
            sums_KW, found_K, score_N = tiles.one_pass(tiles.blocks(rows_NW, mesh, tiles.tile_rows(mesh)), len(rows_NW), centred, mesh)
            squared += float((square_N + 2.0 * score_N).sum(dtype=np.float64))
            counts_K += found_K
            moved_KW = sums_KW + found_K[:, None] * (centred.centre_W - codebook_KW)
            codebook_KW = (codebook_KW + moved_KW / np.maximum(counts_K, 1)[:, None]).astype(np.float32)
        history.append(squared / total)
        empty_K = counts_K == before_K
        if empty_K.any():
            distance_N = _distances(x_NW, codebook_KW[~empty_K], mesh)
            codebook_KW[empty_K] = more_seeds(x_NW, distance_N, codebook_KW[~empty_K], int(empty_K.sum()), rng)
            counts_K[empty_K] = 0
    return codebook_KW, history


def _distances(x_NW: np.ndarray, codebook_KW: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Squared distance of every row to its nearest centroid, float32 [N]."""
    centred = tiles.centred(codebook_KW)
    found = tiles.one_pass(tiles.blocks(x_NW, mesh, tiles.tile_rows(mesh)), x_NW.shape[0], centred, mesh)
    return tiles.squares(x_NW, centred.centre_W) + 2.0 * found.score_N
