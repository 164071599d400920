"""Embedding of long sequences: the same as any other way, in batches that hold no more tokens than those of short ones."""

import dataclasses

import jax
import numpy as np
from model import towers

from xretrieval.evaluate import embed

CONFIG = dataclasses.replace(towers.CONFIGS["gemma3"], max_positions=1200)


def test_long_sequences(monkeypatch):
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, CONFIG.vocab_size, length).astype(np.int32) for length in (1150, 30, 600, 1140, 512)]
    params, mesh = towers.random_params(CONFIG), towers.one_device()
    shapes, function = [], embed._embed_rows
    monkeypatch.setattr(embed, "_embed_rows", lambda *arguments: shapes.append(arguments[2].shape) or function(*arguments))
    with jax.set_mesh(mesh):
        placed = towers.place(CONFIG, params, mesh)
        together = embed.embed_sequences(CONFIG, placed, sequences)
        alone = np.concatenate([embed.embed_sequences(CONFIG, placed, [sequence]) for sequence in sequences])
    assert (together == alone).all()
    assert {length for _, length in shapes} == {32, 512, 608, 1152}
    assert all(rows * length <= embed.ROWS * embed.LONG for rows, length in shapes)
    # Chunked attention there, dense attention here: other sums of float32.
    dense = towers.embed(CONFIG, params, sequences, 1152)
    np.testing.assert_allclose(together, dense, atol=5e-6)
