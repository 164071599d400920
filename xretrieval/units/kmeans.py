"""k-means in JAX: k-means++ seeding, Lloyd iterations over tiles; the N x K distance matrix is never whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from xretrieval.errors import UserError
from xretrieval.progress import track

TILE = 4096


@jax.jit
def _distances(x_NW: jax.Array, codebook_KW: jax.Array) -> jax.Array:
    """Squared Euclidean distances less |x|², [N, K]: the same order, one matmul."""
    dot_NK = jnp.dot(x_NW, codebook_KW.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(codebook_KW**2, axis=1) - 2.0 * dot_NK


@jax.jit
def _assign_tile(x_NW: jax.Array, codebook_KW: jax.Array) -> jax.Array:
    return jnp.argmin(_distances(x_NW, codebook_KW), axis=1).astype(jnp.int32)


def assign(x_NW: np.ndarray, codebook_KW: np.ndarray, tile: int = 64) -> np.ndarray:
    """The nearest centroid of each row, int32 [N]; the lowest ID wins a tie.

    Every tile has one shape whatever N is, so a frame's ID does not depend on how many frames come with it.
    """
    out_N = np.empty(x_NW.shape[0], np.int32)
    for start in range(0, x_NW.shape[0], tile):
        block = x_NW[start : start + tile]
        padded = np.zeros((tile, x_NW.shape[1]), np.float32)
        padded[: block.shape[0]] = block
        out_N[start : start + tile] = np.asarray(_assign_tile(padded, codebook_KW))[: block.shape[0]]
    return out_N


@functools.partial(jax.jit, donate_argnums=(2, 3, 4))
def _accumulate(x_NW, weight_N, sums_KW, counts_K, inertia, codebook_KW):
    """Adds one tile's sums, counts and inertia; rows of weight 0 are padding."""
    distance_NK = _distances(x_NW, codebook_KW)
    nearest_N = jnp.argmin(distance_NK, axis=1)
    sums_KW = sums_KW.at[nearest_N].add(x_NW * weight_N[:, None])
    best_N = jnp.min(distance_NK, axis=1) + jnp.sum(x_NW**2, axis=1)
    return sums_KW, counts_K.at[nearest_N].add(weight_N), inertia + jnp.sum(weight_N * best_N)


def _tiles(x_NW: np.ndarray):
    for start in range(0, x_NW.shape[0], TILE):
        block = x_NW[start : start + TILE]
        padded = np.zeros((TILE, x_NW.shape[1]), np.float32)
        padded[: block.shape[0]] = block
        yield padded, (np.arange(TILE) < block.shape[0]).astype(np.float32)


def seed_plus_plus(x_NW: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007): each next centroid is drawn with probability proportional to its squared distance."""
    norm_N = np.einsum("nw,nw->n", x_NW, x_NW, dtype=np.float64)
    codebook_KW = np.empty((num_clusters, x_NW.shape[1]), np.float32)
    codebook_KW[0] = x_NW[rng.integers(x_NW.shape[0])]
    distance_N = np.full(x_NW.shape[0], np.inf)
    for k in range(1, num_clusters):
        last_W = codebook_KW[k - 1]
        distance_N = np.minimum(distance_N, np.maximum(0.0, norm_N - 2.0 * (x_NW @ last_W) + last_W @ last_W))
        total = distance_N.sum()
        if total <= 0.0:
            raise UserError(
                f"k-means: only {k} distinct frames for {num_clusters} clusters; lower fit_units.num_units or sample more sound"
            )
        codebook_KW[k] = x_NW[rng.choice(x_NW.shape[0], p=distance_N / total)]
    return codebook_KW


def fit(x_NW: np.ndarray, num_clusters: int, iterations: int, seed: int) -> tuple[np.ndarray, list[float]]:
    """Lloyd's algorithm from a k-means++ start (seeded on at most 20,000 rows).

    Args:
      x_NW: float32 [N, W] frames.
      num_clusters: K.
      iterations: at most so many; it stops when inertia falls by less than 1e-4 of itself.
      seed: fixes the seeding and the re-seeding of empty clusters.

    Returns:
      (float32 [K, W] codebook, mean squared distance a frame after each iteration).

    Raises:
      UserError: fewer (distinct) frames than clusters, or non-finite frames.
    """
    if x_NW.shape[0] < num_clusters:
        raise UserError(f"k-means: {x_NW.shape[0]} frames for {num_clusters} clusters; lower fit_units.num_units or sample more sound")
    if not np.isfinite(x_NW).all():
        raise UserError("k-means: the features hold NaN or infinity; check the recordings with `xretrieval data check`")
    rng = np.random.default_rng(seed)
    sample = rng.permutation(x_NW.shape[0])[:20_000]
    codebook_KW = seed_plus_plus(x_NW[sample], num_clusters, rng)
    history: list[float] = []
    for _ in track(range(iterations), iterations, "k-means"):
        sums_KW = jnp.zeros((num_clusters, x_NW.shape[1]), jnp.float32)
        counts_K, inertia = jnp.zeros(num_clusters, jnp.float32), jnp.float32(0.0)
        for tile_NW, weight_N in _tiles(x_NW):
            sums_KW, counts_K, inertia = _accumulate(tile_NW, weight_N, sums_KW, counts_K, inertia, codebook_KW)
        counts, history_now = np.asarray(counts_K), float(inertia) / x_NW.shape[0]
        codebook_KW = np.where(counts[:, None] > 0, np.asarray(sums_KW) / np.maximum(counts, 1.0)[:, None], codebook_KW)
        empty = np.flatnonzero(counts == 0)
        codebook_KW[empty] = x_NW[rng.integers(x_NW.shape[0], size=empty.size)]
        history.append(history_now)
        if len(history) > 1 and not empty.size and history[-2] - history_now < 1e-4 * history_now:
            break
    return codebook_KW.astype(np.float32), history
