import numpy as np
import pytest

from xretrieval.errors import UserError
from xretrieval.evaluate import retrieval
from xretrieval.evaluate.retrieval import retrieval_metrics


def brute_force(query_QE, candidate_NE, query_ids, candidate_ids):
    """Ranks by sorting every pool in Python, negatives before positives where scores are equal."""
    ranks = []
    for query_E, query_id in zip(query_QE, query_ids, strict=True):
        scored = [(-float(np.dot(query_E, c)), name == query_id) for c, name in zip(candidate_NE, candidate_ids, strict=True)]
        ordered = sorted(scored)
        first = next(i for i, (_, positive) in enumerate(ordered) if positive)
        ranks.append(1 + sum(not positive for _, positive in ordered[:first]))
    ranks = np.array(ranks)
    return {
        **{f"R@{k}": np.mean(ranks <= k) for k in (1, 5, 10)},
        "MRR": np.mean(1 / ranks),
        "chance": np.mean([sum(name == query_id for name in candidate_ids) / len(candidate_ids) for query_id in query_ids]),
    }


def unit_rows(rng, n, width):
    x_NE = rng.standard_normal((n, width))
    return x_NE / np.linalg.norm(x_NE, axis=1, keepdims=True)


@pytest.mark.parametrize("positives", [1, 3])
@pytest.mark.parametrize("tile_bytes", [1, 10_000, 2**26])
def test_equals_brute_force_whatever_the_tile(monkeypatch, positives, tile_bytes):
    monkeypatch.setattr(retrieval, "_TILE_BYTES", tile_bytes)
    rng = np.random.default_rng(positives)
    candidate_NE = unit_rows(rng, 60 * positives, 16)
    candidate_ids = [f"s{i}" for i in range(60)] * positives
    query_ids = [f"s{i}" for i in rng.permutation(60)[:40]]
    query_QE = np.stack([candidate_NE[int(name[1:])] for name in query_ids]) + 0.4 * rng.standard_normal((40, 16))
    found = retrieval_metrics((query_QE.astype(np.float32), candidate_NE.astype(np.float32)), query_ids, candidate_ids)
    expected = brute_force(
        query_QE.astype(np.float32).astype(float), candidate_NE.astype(np.float32).astype(float), query_ids, candidate_ids
    )
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    assert 0.2 < found["R@1"] < 0.95
    assert found["pool_size"] == 60 * positives
    assert found["queries"] == 40
    assert found["chance"] == pytest.approx(1 / 60)
    from_scores = retrieval_metrics(query_QE @ candidate_NE.T, query_ids, candidate_ids)
    assert from_scores == pytest.approx(found)


def test_other_positives_are_not_ahead_of_the_best_one():
    scores_QN = np.array([[0.9, 0.8, 0.7, 0.6]])
    assert retrieval_metrics(scores_QN, ["a"], ["b", "a", "a", "c"], k=(1, 2))["MRR"] == 0.5
    assert retrieval_metrics(scores_QN, ["a"], ["a", "a", "a", "c"], k=(1,))["R@1"] == 1.0


def test_ties_count_against_the_model():
    ids = list(range(50))
    assert retrieval_metrics(np.zeros((50, 50)), ids, ids) == pytest.approx(
        {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "MRR": 1 / 50, "queries": 50, "pool_size": 50, "chance": 1 / 50}
    )
    # Equal vectors whose scores BLAS may add up in another order.
    point_NE = np.tile(unit_rows(np.random.default_rng(0), 1, 257), (50, 1)).astype(np.float32)
    assert retrieval_metrics((point_NE, point_NE), ids, ids)["R@10"] == 0.0


def test_what_differs_in_float32_is_not_a_tie():
    query_QE = np.array([[1.0, 0.0]], np.float32)
    candidate_NE = np.array([[1.0, 0.0], [np.nextafter(np.float32(1), np.float32(0)), 0.0]], np.float32)
    assert retrieval_metrics((query_QE, candidate_NE), ["a"], ["a", "b"])["R@1"] == 1.0
    assert retrieval_metrics((query_QE, candidate_NE), ["a"], ["b", "a"])["R@1"] == 0.0


@pytest.mark.parametrize("side", [0, 1])
def test_an_embedding_that_is_not_finite_is_an_error(side):
    pair = [np.ones((4, 3)), np.ones((4, 3))]
    pair[side][2, 1] = np.nan
    with pytest.raises(UserError, match=r"(query|candidate) embeddings: 1 rows, the first of them 2"):
        retrieval_metrics(tuple(pair), range(4), range(4))
    scores_QN = np.ones((4, 4))
    scores_QN[3, 0] = np.inf
    with pytest.raises(UserError, match="scores: 1 rows, the first of them 3"):
        retrieval_metrics(scores_QN, range(4), range(4))


def test_pools_that_cannot_be_evaluated_are_errors():
    with pytest.raises(UserError, match="1 of 2 queries, such as 'z', have no positive"):
        retrieval_metrics(np.ones((2, 2)), ["a", "z"], ["a", "b"])
    with pytest.raises(UserError, match="nothing to evaluate: 0 queries"):
        retrieval_metrics(np.ones((0, 2)), [], ["a", "b"])
    with pytest.raises(UserError, match=r"scores have the shape \[2, 3\], the ids call for \[2, 2\]"):
        retrieval_metrics(np.ones((2, 3)), ["a", "b"], ["a", "b"])
