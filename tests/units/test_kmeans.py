"""k-means against float64 NumPy."""

import itertools

import numpy as np
import pytest

from xretrieval.errors import UserError
from xretrieval.units import kmeans


def test_lloyd_equals_numpy():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(c, 0.3, (300, 5)) for c in (-3, 0, 3)]).astype(np.float32)
    codebook, history = kmeans.fit(x, 7, 60, seed=0)
    distance = ((x[:, None].astype(np.float64) - codebook[None]) ** 2).sum(-1)
    assert (kmeans.assign(x, codebook) == distance.argmin(1)).all()
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(history))
    # A fixed point of Lloyd's iteration, up to its stopping rule.
    again = np.stack([x[distance.argmin(1) == k].mean(0) for k in range(7)])
    assert abs(((x - again[distance.argmin(1)]) ** 2).sum(1).mean() - distance.min(1).mean()) < 1e-2 * distance.min(1).mean()


def test_assignment_does_not_depend_on_the_batch():
    rng = np.random.default_rng(1)
    x, codebook = rng.normal(size=(500, 12)).astype(np.float32), rng.normal(size=(32, 12)).astype(np.float32)
    whole = kmeans.assign(x, codebook)
    assert (whole == np.concatenate([kmeans.assign(part, codebook) for part in np.split(x, [1, 70, 333])])).all()


def test_too_few_frames_is_an_error():
    with pytest.raises(UserError, match="4 frames for 8 clusters"):
        kmeans.fit(np.zeros((4, 2), np.float32), 8, 5, 0)
