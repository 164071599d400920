"""k-means in mini-batches (Sculley 2010, "Web-scale k-means clustering"), for frames that do not fit in memory."""

import jax
import numpy as np

from xretrieval.progress import track
from xretrieval.units import kmeans_tiles as tiles
from xretrieval.units.kmeans_seeding import more_seeds, seeds, too_few


def fit_minibatch(x_NW: np.ndarray, num_clusters: int, batch_rows: int, epochs: int, seed: int) -> tuple[np.ndarray, list[float]]:
    """Moves centroids to the running mean of the rows that were nearest to them, a batch at a time.

    Args:
      x_NW: float32 [N, W], usually a mapped file; a batch of it is in memory.
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
    counts_K = np.zeros(num_clusters, np.int64)
    history: list[float] = []
    batches = -(-total // max(batch_rows, num_clusters))
    for _ in track(range(epochs), epochs, "k-means, epochs"):
        order_N = rng.permutation(total)
        squared = 0.0
        for chosen in np.array_split(order_N, batches):
            rows_NW = np.asarray(x_NW[np.sort(chosen)], np.float32)
            centred = tiles.centred(codebook_KW)
            square_N = tiles.squares(rows_NW, centred.centre_W)
            sums_KW, found_K, score_N = tiles.one_pass(tiles.blocks(rows_NW, mesh, tiles.tile_rows(mesh)), len(rows_NW), centred, mesh)
            distance_N = square_N + 2.0 * score_N
            if missing := num_clusters - len(codebook_KW):  # the sample that seeding saw had fewer distinct rows
                codebook_KW = np.concatenate([codebook_KW, more_seeds(rows_NW, distance_N, codebook_KW, missing, rng)])
                continue
            squared += float(distance_N.sum(dtype=np.float64))
            counts_K += found_K
            moved_KW = sums_KW + found_K[:, None] * (centred.centre_W - codebook_KW)
            codebook_KW = (codebook_KW + moved_KW / np.maximum(counts_K, 1)[:, None]).astype(np.float32)
        empty_K = counts_K == 0
        if empty_K.any():
            codebook_KW[empty_K] = more_seeds(rows_NW, distance_N, codebook_KW[~empty_K], int(empty_K.sum()), rng)
        history.append(squared / total)
    return codebook_KW, history
