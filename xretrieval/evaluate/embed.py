"""Embedding a finite set of token sequences: each exactly once, whatever its neighbours."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import PartitionSpec

from xretrieval import mesh as mesh_lib
from xretrieval.data.vocabulary import PAD_ID
from xretrieval.errors import UserError
from xretrieval.model import tower
from xretrieval.progress import track

ROWS = 64
BUCKET = 32
LONG = 512


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _embed_rows(config, params, tokens_RL, lengths_R, compute):
    """`tower.embed_rows`, whole on every device: each of several processes has all embeddings."""
    return jax.reshard(tower.embed_rows(config, params, tokens_RL, lengths_R, compute), PartitionSpec(None, None))


def embed_sequences(
    config: tower.TowerConfig,
    params: tower.Params,
    sequences: Sequence[np.ndarray],
    label: str = "embedding",
    compute: tower.ComputeConfig | None = None,
) -> np.ndarray:
    """Embeddings of token sequences, float32 [N, E].

    A sequence is padded to the next multiple of 32 tokens and every batch to 64 rows (fewer of more than 512 tokens), so each shape compiles
    once and an embedding does not depend on what it is batched with. Call it inside a mesh (`jax.set_mesh`); of several processes, on all with the
    same sequences.

    `compute` None is float32, with dense attention up to 512 tokens and chunked attention, whose memory grows linearly, beyond.

    Raises:
      UserError: an empty sequence, one longer than the tower's positions, or a token outside the vocabulary.
    """
    lengths_N = np.array([len(s) for s in sequences], np.int32)
    for i in np.flatnonzero((lengths_N == 0) | (lengths_N > config.max_positions)):
        raise UserError(
            f"sequence {i} has {lengths_N[i]} tokens; the model takes 1 to {config.max_positions}: cut the recording or text into parts"
        )
    out_NE = np.empty((len(sequences), config.embedding_width), np.float32)
    shards = mesh_lib.batch_shards(jax.sharding.get_mesh())
    buckets_N = -(-lengths_N // BUCKET) * BUCKET
    blocks = []
    for bucket in np.unique(buckets_N):
        members = np.flatnonzero(buckets_N == bucket)
        rows = -(-min(ROWS, max(1, ROWS * LONG // bucket)) // shards) * shards
        blocks += [(int(bucket), int(rows), members[start : start + rows]) for start in range(0, len(members), rows)]
    for bucket, rows, block in track(blocks, len(blocks), label):
        tokens_RL, lengths_R = np.full((rows, bucket), PAD_ID, np.int32), np.zeros(rows, np.int32)
        for row, i in enumerate(block):
            if sequences[i].min() < 0 or sequences[i].max() >= config.vocab_size:
                raise UserError(f"sequence {i} has a token outside the vocabulary of {config.vocab_size}: wrong tokenizer for this model")
            tokens_RL[row, : lengths_N[i]], lengths_R[row] = sequences[i], lengths_N[i]
        placed = _place(tokens_RL, "batch", None), _place(lengths_R, "batch")
        how = compute or tower.ComputeConfig(attention="dense" if bucket <= LONG else "chunked")
        out_NE[block] = np.asarray(_embed_rows(config, params, *placed, how))[: len(block)]
    return out_NE


def _place(x: np.ndarray, *axes: str | None) -> jax.Array:
    # Not device_put: over several processes that compares the arrays of all by a collective of its own.
    return jax.make_array_from_callback(x.shape, mesh_lib.sharding(jax.sharding.get_mesh(), *axes), lambda index: x[index])
