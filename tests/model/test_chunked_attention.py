"""Which tiles chunked attention visits: those that some query can see, and no others between which none can."""

import jax.numpy as jnp
import numpy as np
import pytest

from xretrieval.model.chunked_attention import _reach, _Tiles

BLOCK = 8


def row(seed):
    rng, segments, at = np.random.default_rng(seed), np.zeros(96, np.int32), 0
    for segment in range(1, 20):
        length = int(rng.integers(1, 30))
        if at + length > 90:
            break
        segments[at : at + length], at = segment, at + length
    return segments


@pytest.mark.parametrize("window", [1, 5, 2**30])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_equals_brute_force(seed, causal, window):
    segments = row(seed)
    low, high = _reach(jnp.asarray(segments), jnp.int32(window), _Tiles(1.0, 0.0, causal, BLOCK))
    distance = np.arange(96)[:, None] - np.arange(96)[None, :]
    sees = (segments[:, None] == segments[None, :]) & (segments > 0)[:, None] & (np.abs(distance) < window)
    if causal:
        sees &= distance >= 0
    tiles = sees.reshape(12, BLOCK, 12, BLOCK).any(axis=(1, 3))
    for index in range(12):
        wanted = np.flatnonzero(tiles[index])
        visited = np.arange(int(low[index]), int(high[index]))
        # A tile is left out only where nothing is seen; the range from the first to the last that is, is what a loop can visit.
        assert visited.tolist() == (list(range(wanted[0], wanted[-1] + 1)) if len(wanted) else []), index


def test_most_tiles_of_a_packed_row_are_skipped():
    segments = row(0)
    low, high = _reach(jnp.asarray(segments), jnp.int32(2**30), _Tiles(1.0, 0.0, True, BLOCK))
    assert int((high - low).sum()) < 12 * 13 // 2 // 2, "half of what causality alone leaves"
