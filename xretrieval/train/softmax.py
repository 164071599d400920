"""Bidirectional in-batch softmax over the global batch, in tiles.

The logits of a step are never whole anywhere. Each device holds its b left sides and, after one all-gather, all B right ones, and walks over these
in tiles of some hundred columns. One walk gives the sums of its rows and its part of the sums of all columns; the backward pass walks again,
makes each tile anew and turns it into both gradients: 4 products of b x B x E where a loss that keeps its logits does 3, one that computes each
direction apart 6 (OpenCLIP's `local_loss`) or 10 (Inf-CL). On the wire: the right sides forwards, their gradient backwards, sums of size B.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from xretrieval import mesh as mesh_lib

# Of a similarity that does not count: far below any other, far above float32's least. exp of it, times a scale, is exactly 0, and nothing becomes NaN.
NEVER = -1e9

Ids = tuple[jax.Array, ...]


class Sums(NamedTuple):
    """What the walk forwards leaves for the one backwards; [b] of this device's rows, [N] of the columns it walks over.

    `row` and `column` are log sum_{j != i} exp(S_ij - S_ii), of all negatives on all devices.
    """

    right_NE: jax.Array
    positive_b: jax.Array
    positive_N: jax.Array
    ids_N: Ids
    row_b: jax.Array
    column_b: jax.Array
    column_N: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def softmax(left_BE: jax.Array, right_BE: jax.Array, logit_scale: jax.Array, ids: Ids, margin: float, tile: int, dtype):
    """(mean of both directions' losses, float32 [2]: the share of pairs that a search from the left and from the right would find).

    Arguments are those of `loss.contrastive_loss`.
    """
    return _softmax_forward(left_BE, right_BE, logit_scale, ids, margin, tile, dtype)[0]


def _softmax_forward(left_BE, right_BE, logit_scale, ids, margin: float, tile: int, dtype):
    function = functools.partial(_walk_forward, margin=margin, tile=tile, dtype=dtype)
    inputs, scalar, sums = _specs(ids)
    loss, found_2, sums = jax.shard_map(function, in_specs=inputs, out_specs=(scalar, scalar, sums))(left_BE, right_BE, logit_scale, ids)
    return (loss, found_2), (left_BE, right_BE, logit_scale, ids, sums)


def _softmax_backward(margin: float, tile: int, dtype, saved, cotangents):
    left_BE, right_BE, logit_scale, ids, sums = saved
    function = functools.partial(_walk_backward, tile=tile, dtype=dtype)
    inputs, _, kept = _specs(ids)
    gradients = jax.shard_map(function, in_specs=(*inputs, kept), out_specs=inputs[:3])(left_BE, right_BE, logit_scale, ids, sums)
    return *(gradient * cotangents[0] for gradient in gradients), None


def _specs(ids: Ids) -> tuple[tuple, PartitionSpec, Any]:
    """Of (left, right, scale, ids), of a scalar, and of `Sums`."""
    sides, batch, scalar = mesh_lib.spec("batch", None), mesh_lib.spec("batch"), PartitionSpec()
    # What differs from device to device is one longer array over all axes, so that nothing moves between the two walks.
    columns = PartitionSpec(mesh_lib.AXES)
    sums: Any = Sums(*[PartitionSpec(mesh_lib.AXES, None), batch, columns, (columns,) * len(ids), batch, batch, columns])  # type: ignore[arg-type]
    return (sides, sides, scalar, (batch,) * len(ids)), scalar, sums


softmax.defvjp(_softmax_forward, _softmax_backward)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y, summed in float32; "highest" because a TPU rounds float32 operands to bfloat16 otherwise."""
    return jnp.matmul(x, y, precision="highest", preferred_element_type=jnp.float32)


def _own_columns(x_b: jax.Array) -> jax.Array:
    """The part of this device's pairs that its `model` shard has as columns: shards along `model` hold the same rows and share the columns."""
    share = x_b.shape[0] // jax.lax.axis_size("model")
    return jax.lax.dynamic_slice_in_dim(x_b, jax.lax.axis_index("model") * share, share)


def _all_columns(x_b: jax.Array) -> jax.Array:
    """Every data shard's part of x."""
    return jax.lax.all_gather(_own_columns(x_b), ("replica", "data"), axis=0, tiled=True)


def _start(shape: tuple[int, ...], value: float = 0.0) -> jax.Array:
    """float32 of one value, as an array that may come to differ from device to device: what a walk starts from."""
    return jax.lax.pcast(jnp.full(shape, value, jnp.float32), mesh_lib.AXES, to="varying")


def _over_tiles(walk: Callable, carry: Any, columns: tuple, tile: int) -> tuple[Any, Any]:
    """`jax.lax.scan` of walk(carry, columns of one tile) over whole tiles, then the rest, which is a shorter one; outputs come by column."""
    size = columns[0].shape[0]
    whole, parts = size - size % tile, []
    if whole:
        tiles = jax.tree.map(lambda x: x[:whole].reshape(whole // tile, tile, *x.shape[1:]), columns)
        carry, out = jax.lax.scan(walk, carry, tiles)
        parts.append(jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), out))
    if whole < size:
        carry, out = walk(carry, jax.tree.map(lambda x: x[whole:], columns))
        parts.append(out)
    return carry, jax.tree.map(lambda *x: jnp.concatenate(x) if len(x) > 1 else x[0], *parts)


def _negatives(ids_b: Ids, ids_T: Ids) -> jax.Array:
    """[b, T]: the pairs differ in every ID."""
    return functools.reduce(jnp.logical_and, [row[:, None] != column[None, :] for row, column in zip(ids_b, ids_T, strict=True)])


def _positives(left_bE: jax.Array, right_bE: jax.Array, margin: float) -> jax.Array:
    """Similarity of each pair, less the margin; of the same rounded values that the tiles are made of."""
    return jnp.sum(left_bE.astype(jnp.float32) * right_bE.astype(jnp.float32), axis=1) - margin


def _walk_forward(left_bE, right_bE, logit_scale, ids_b, margin: float, tile: int, dtype):
    """On one device: the loss and accuracies over all, and what the walk backwards needs."""
    left_bE, right_bE = left_bE.astype(dtype), right_bE.astype(dtype)
    positive_b = _positives(left_bE, right_bE, margin)
    right_NE, positive_N, ids_N = _all_columns(right_bE), _all_columns(positive_b), tuple(map(_all_columns, ids_b))

    def walk(carry, columns):
        most_b, sum_b = carry
        right_TE, ids_T = columns
        similarity_bT = jnp.where(_negatives(ids_b, ids_T), _product(left_bE, right_TE.T), NEVER)
        higher_b, most_T = jnp.maximum(most_b, jnp.max(similarity_bT, axis=1)), jnp.max(similarity_bT, axis=0)
        row_b = jnp.sum(jnp.exp(logit_scale * (similarity_bT - higher_b[:, None])), axis=1)
        column_T = jnp.sum(jnp.exp(logit_scale * (similarity_bT - most_T[None, :])), axis=0)
        return (higher_b, sum_b * jnp.exp(logit_scale * (most_b - higher_b)) + row_b), (most_T, column_T)

    start = _start(positive_b.shape, NEVER), _start(positive_b.shape)
    (most_b, row_b), (most_N, column_N) = _over_tiles(walk, start, (right_NE, ids_N), tile)
    rows, columns = (logit_scale * (most_b - positive_b), row_b), (logit_scale * (most_N - positive_N), column_N)
    # A row's columns lie with the shards along `model`, a column's rows with those of the batch.
    most_b, row_b = _log_sum(rows, ("model",))
    most_N, column_N = _log_sum(columns, ("replica", "data"))
    # Each device has all columns; those of its own pairs are its part of the mean.
    own_most_b, own_column_b = _place_own(most_N), _place_own(column_N)
    # Without the margin: whether a search would have found the pair.
    found_2 = [jnp.sum(most < logit_scale * margin) for most in (most_b, own_most_b)]
    lost = jnp.sum(jax.nn.softplus(row_b)) + jnp.sum(jax.nn.softplus(own_column_b))
    size = left_bE.shape[0] * jax.lax.axis_size(("replica", "data"))
    loss = jax.lax.psum(lost, ("replica", "data")) / (2 * size)
    accuracies_2 = jax.lax.psum(jnp.stack(found_2).astype(jnp.float32), ("replica", "data")) / size
    return loss, accuracies_2, Sums(right_NE, positive_b, positive_N, ids_N, row_b, own_column_b, column_N)


def _log_sum(most_and_total: tuple[jax.Array, jax.Array], axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """(max, log sum exp) over devices of what each has as its max and the sum of exp above it."""
    most, total = most_and_total
    everywhere = jax.lax.pmax(most, axes)
    return everywhere, everywhere + jnp.log(jax.lax.psum(total * jnp.exp(most - everywhere), axes))


def _place_own(x_N: jax.Array) -> jax.Array:
    """[b]: this device's pairs out of what the shards along `model` have by column."""
    share, parts = x_N.shape[0] // jax.lax.axis_size(("replica", "data")), jax.lax.axis_size("model")
    own = jax.lax.dynamic_slice_in_dim(x_N, jax.lax.axis_index(("replica", "data")) * share, share)
    return _join_shares(own, parts)


def _join_shares(own: jax.Array, parts: int) -> jax.Array:
    """The shares of all `model` shards behind one another, as a sum of arrays that are nought elsewhere: then all are known to hold the same."""
    begin = jax.lax.axis_index("model") * own.shape[0]
    return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(_start((parts * own.shape[0], *own.shape[1:])), own, begin, axis=0), "model")


def _walk_backward(left_bE, right_bE, logit_scale, ids_b, sums: Sums, tile: int, dtype):
    """On one device: gradients of the loss with respect to its left sides, its right sides, and the logit scale.

    With P = softmax of each row, Q of each column, both over the negatives and the positive: dL/dS_ij = (P_ij + Q_ij) / 2B off the diagonal, and on
    it minus the sums of these: never P_ii - 1, which has no digits once pairs are aligned. That of the scale is the sum of these times the
    similarities; taken from the mean positive one, so that it keeps its digits where all similarities are near each other.
    """
    left_bE, right_bE = left_bE.astype(dtype), right_bE.astype(dtype)
    batch = left_bE.shape[0] * jax.lax.axis_size(("replica", "data"))
    middle = jax.lax.psum(jnp.sum(sums.positive_b), ("replica", "data")) / batch
    row_b, column_N = (logit_scale * p + jax.nn.softplus(s) for p, s in ((sums.positive_b, sums.row_b), (sums.positive_N, sums.column_N)))

    left_Eb = left_bE.T

    def walk(carry, columns):
        left_gradient_bE, scale_gradient_b = carry
        right_TE, column_T, ids_T = columns
        similarity_bT = _product(left_bE, right_TE.T)
        logits_bT = logit_scale * similarity_bT
        p_and_q_bT = jnp.exp(logits_bT - row_b[:, None]) + jnp.exp(logits_bT - column_T[None, :])
        g_bT = jnp.where(_negatives(ids_b, ids_T), p_and_q_bT, 0.0)
        scale_gradient_b += jnp.sum(g_bT * (similarity_bT - middle), axis=1)
        g_bT = g_bT.astype(dtype)
        # As [E, T], and the barrier keeps it so: on a CPU the product of a transposed g takes a fifth longer.
        right_gradient_ET = jax.lax.optimization_barrier(_product(left_Eb, g_bT).astype(dtype))
        return (left_gradient_bE + _product(g_bT, right_TE), scale_gradient_b), right_gradient_ET.T

    start = _start(left_bE.shape), _start(row_b.shape)
    columns = (sums.right_NE, column_N, sums.ids_N)
    (left_gradient_bE, scale_gradient_b), right_gradient_NE = _over_tiles(walk, start, columns, tile)
    left_gradient_bE = jax.lax.psum(left_gradient_bE, "model")
    shares = jax.lax.psum_scatter(right_gradient_NE, ("replica", "data"), scatter_dimension=0, tiled=True)
    right_gradient_bE = _join_shares(shares.astype(jnp.float32), jax.lax.axis_size("model"))
    diagonal_b = jax.nn.sigmoid(sums.row_b) + jax.nn.sigmoid(sums.column_b)
    of_positives = jax.lax.psum(jnp.sum(diagonal_b * (sums.positive_b - middle)), ("replica", "data"))
    factor, diagonal_b1 = 1 / (2 * batch), diagonal_b[:, None]
    return (
        factor * logit_scale * (left_gradient_bE - diagonal_b1 * right_bE.astype(jnp.float32)),
        factor * logit_scale * (right_gradient_bE - diagonal_b1 * left_bE.astype(jnp.float32)),
        factor * (jax.lax.psum(jnp.sum(scale_gradient_b), mesh_lib.AXES) - of_positives),
    )
