"""Retrieval metrics in NumPy: how often the right candidate is found, against what luck would find."""

from collections.abc import Hashable, Sequence

import numpy as np

from xretrieval.errors import UserError

# float64 scores of one tile of queries.
_TILE_BYTES = 64 * 2**20
# Scores of equal vectors differ by the order in which BLAS adds; relative to the norms, this is far above that and far below float32.
_TIE = 1e-9


def retrieval_metrics(
    scores: np.ndarray | tuple[np.ndarray, np.ndarray],
    query_ids: Sequence[Hashable],
    candidate_ids: Sequence[Hashable],
    k: Sequence[int] = (1, 5, 10),
) -> dict[str, float | int]:
    """Recall at k and mean reciprocal rank of queries against one pool of candidates.

    A candidate with the id of the query is a positive; there may be several, and the rank is that of the best one (the other positives
    do not count as ahead of it). Ties are broken against the model: a negative with the score of the best positive ranks before it, so
    that embeddings that have collapsed to a point find nothing.

    Args:
      scores: float [Q, N], greater is better, or the embeddings (query_QE, candidate_NE), whose scores are then dot products in float64,
        a tile of queries at a time.
      query_ids: Q ids.
      candidate_ids: N ids.
      k: cut-offs.

    Returns:
      `R@k` for each k and `MRR`, in [0, 1], mean over queries; `queries` Q; `pool_size` N; `chance`, the R@1 of a random order.

    Raises:
      UserError: a score or an embedding is not finite, the pool or the queries are empty, or a query has no positive in the pool.
    """
    query_Q, candidate_N = _codes(query_ids, candidate_ids)
    rank_Q = _ranks(scores, query_Q, candidate_N)
    positives_N = np.bincount(candidate_N, minlength=candidate_N.max() + 1)
    metrics: dict[str, float | int] = {f"R@{cutoff}": float(np.mean(rank_Q <= cutoff)) for cutoff in k}
    metrics["MRR"] = float(np.mean(1.0 / rank_Q))
    metrics["queries"] = len(query_Q)
    metrics["pool_size"] = len(candidate_N)
    metrics["chance"] = float(np.mean(positives_N[query_Q] / len(candidate_N)))
    return metrics


def _codes(query_ids: Sequence[Hashable], candidate_ids: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Ids as small integers, int64 [Q] and [N]."""
    if not len(query_ids) or not len(candidate_ids):
        raise UserError(
            f"nothing to evaluate: {len(query_ids)} queries and {len(candidate_ids)} candidates; check the split and the languages"
        )
    codes: dict[Hashable, int] = {}
    candidate_N = np.array([codes.setdefault(name, len(codes)) for name in candidate_ids])
    alone = [name for name in query_ids if name not in codes]
    if alone:
        raise UserError(
            f"{len(alone)} of {len(query_ids)} queries, such as {alone[0]!r}, have no positive among the {len(candidate_ids)} candidates"
        )
    return np.array([codes[name] for name in query_ids]), candidate_N


def _ranks(scores: np.ndarray | tuple[np.ndarray, np.ndarray], query_Q: np.ndarray, candidate_N: np.ndarray) -> np.ndarray:
    """Rank of the best positive of each query, int64 [Q], 1 is best."""
    rank_Q = np.empty(len(query_Q), np.int64)
    tile = max(1, _TILE_BYTES // (8 * len(candidate_N)))
    if isinstance(scores, tuple):
        query_QE, candidate_NE = (np.asarray(x, np.float64) for x in scores)
        _check_shape("query embeddings", query_QE, (len(query_Q), candidate_NE.shape[-1]))
        _check_shape("candidate embeddings", candidate_NE, (len(candidate_N), query_QE.shape[-1]))
        _check_finite("query embeddings", query_QE)
        _check_finite("candidate embeddings", candidate_NE)
        tie_Q = _TIE * np.linalg.norm(query_QE, axis=1) * np.linalg.norm(candidate_NE, axis=1).max()
    else:
        _check_shape("scores", scores, (len(query_Q), len(candidate_N)))
        tie_Q = np.zeros(len(query_Q))
    for first in range(0, len(query_Q), tile):
        rows = slice(first, first + tile)
        if isinstance(scores, tuple):
            scores_QN = query_QE[rows] @ candidate_NE.T
        else:
            scores_QN = np.asarray(scores[rows], np.float64)
            _check_finite("scores", scores_QN, first)
        positive_QN = query_Q[rows, None] == candidate_N
        best_Q = np.where(positive_QN, scores_QN, -np.inf).max(axis=1)
        ahead_QN = ~positive_QN & (scores_QN >= (best_Q - tie_Q[rows])[:, None])
        rank_Q[rows] = 1 + ahead_QN.sum(axis=1)
    return rank_Q


def _check_shape(name: str, x: np.ndarray, shape: tuple[int, int]) -> None:
    if x.shape != shape:
        raise UserError(f"{name} have the shape {list(x.shape)}, the ids call for {list(shape)}")


def _check_finite(name: str, x_NE: np.ndarray, first: int = 0) -> None:
    bad_N = ~np.isfinite(x_NE).all(axis=1)
    if bad_N.any():
        raise UserError(
            f"{name}: {bad_N.sum()} rows, the first of them {first + bad_N.argmax()}, hold NaN or infinity; the model has diverged"
        )
