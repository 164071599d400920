"""Where k-means begins: k-means++ on a sample of the rows, and the same draws again for clusters that came out empty."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from xretrieval.errors import UserError
from xretrieval.units.assignment import assign

# Rows of the sample, a cluster.
_ROWS_PER_CLUSTER = 16


def too_few(distinct: int, num_clusters: int) -> UserError:
    return UserError(
        f"k-means: only {distinct} distinct frames for {num_clusters} clusters; lower fit_units.num_units or sample more sound"
    )


@functools.partial(jax.jit, static_argnames="most")
def _plus_plus(x_NW: jax.Array, distance_N: jax.Array, number: jax.Array, seed: jax.Array, most: int) -> jax.Array:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007, sections 2.2 and 5).

    Of 2 + ln K rows, each drawn with probability proportional to its squared distance, the one that leaves the least sum of distances is next. On 1,024
    clusters of features it is worth 5 % of the inertia that Lloyd's iterations end at.

    Args:
      x_NW: the rows.
      distance_N: squared distance of each to the centroids that are there already; where there are none, more than any distance.
      number: of draws, at most `most`.

    Returns:
      int32 [most], the places of the drawn rows, -1 behind the last that differs from all before it.
    """
    x_NW = x_NW - jnp.mean(x_NW, axis=0)
    square_N = jnp.sum(x_NW**2, axis=1)
    trials = 2 + int(math.log(most))

    def draw(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        distance_N, drawn_K = carry
        # Gumbel's maximum is a draw from what is not normalised.
        gumbel_RN = jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), k), (trials, distance_N.shape[0]))
        place_R = jnp.argmax(jnp.log(distance_N) + gumbel_RN, axis=1).astype(jnp.int32)
        dot_RN = jnp.dot(x_NW[place_R], x_NW.T, precision=jax.lax.Precision.HIGHEST)
        to_row_RN = square_N[place_R][:, None] + square_N - 2.0 * dot_RN
        place = place_R[jnp.argmin(jnp.sum(jnp.minimum(distance_N, jnp.maximum(to_row_RN, 0.0)), axis=1))]
        there = distance_N[place] > 0.0
        # Sums of squared differences: a row's distance to its own copy is zero to the last bit.
        to_row_N = jnp.sum((x_NW - x_NW[place]) ** 2, axis=1)
        return jnp.minimum(distance_N, to_row_N), drawn_K.at[k].set(jnp.where(there, place, -1))

    return jax.lax.fori_loop(0, number, draw, (distance_N, jnp.full(most, -1, jnp.int32)))[1]


def seeds(x_NW: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct rows of a random sample, drawn by k-means++, float32 [K, W]; fewer where the sample has no more.

    Raises:
      UserError: a row holds NaN or infinity.
    """
    size = min(x_NW.shape[0], _ROWS_PER_CLUSTER * num_clusters)
    sample_NW = np.asarray(x_NW[np.sort(rng.choice(x_NW.shape[0], size, replace=False))], np.float32)
    # On one device, whatever the mesh: the draws must not depend on its size.
    far_N = np.full(size, np.finfo(np.float32).max)
    drawn_K = _plus_plus(sample_NW, far_N, num_clusters, rng.integers(2**31), num_clusters)
    return sample_NW[np.asarray(drawn_K)[np.asarray(drawn_K) >= 0]]


def more_seeds(x_NW: np.ndarray, distance_N: np.ndarray, codebook_KW: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Further rows, each unlike the centroids and the others, float32 [number, W].

    Candidates are drawn with probability proportional to their squared distance, then by k-means++ among them, so that no two of them share a cluster
    that one of them could serve.

    Args:
      x_NW: float [N, W] rows.
      distance_N: their squared distance to the nearest centroid, to float32's rounding.
      codebook_KW: float32 centroids that stay.
      number: of rows wanted.
      rng: of the draws.

    Raises:
      UserError: so many distinct rows there are not.
    """
    size = min(x_NW.shape[0], max(256, 1 << (4 * number - 1).bit_length()))
    with np.errstate(divide="ignore"):
        key_N = np.log(np.maximum(distance_N, 0.0)) + rng.gumbel(size=distance_N.shape)
    # Where most rows are copies of centroids, their distances, zero but for rounding, may win every draw; the farthest rows cannot lose.
    for order_N in (key_N, distance_N):
        candidates = np.sort(np.argpartition(order_N, -size)[-size:])
        sample_NW = np.asarray(x_NW[candidates], np.float32)
        near_NW = codebook_KW[assign(sample_NW, codebook_KW)].astype(np.float64)
        exact_N = np.square(sample_NW - near_NW).sum(1).astype(np.float32)
        drawn_K = np.asarray(_plus_plus(sample_NW, exact_N, number, rng.integers(2**31), size))
        drawn_K = drawn_K[drawn_K >= 0]
        if drawn_K.size == number:
            return sample_NW[drawn_K]
    raise too_few(len(codebook_KW) + drawn_K.size, len(codebook_KW) + number)
