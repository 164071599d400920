"""The loss against its float64 reference, in value and gradient, on one device and on eight."""

import jax
import numpy as np
import pytest
import references

from xretrieval import mesh as mesh_lib
from xretrieval.train.loss import contrastive_loss


def sides(batch=16, width=8, aligned=False, seed=0):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(2, batch, width))
    right = left + 1e-4 * right if aligned else right
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return unit(left), unit(right)


def ours(left, right, scale, pair_id, weight, devices):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        put = lambda x: jax.device_put(x, mesh_lib.sharding(mesh, "batch", *[None] * (x.ndim - 1)))
        function = jax.jit(jax.value_and_grad(lambda l, r, s: contrastive_loss(l, r, s, put(pair_id), weight)[0], argnums=(0, 1, 2)))
        value, gradients = function(put(left), put(right), np.float32(scale))
        return float(value), [np.asarray(g) for g in gradients]


CASES = {
    "plain": (sides(), 20.0, np.arange(16), 0.0),
    "spread_out": (sides(), 20.0, np.arange(16), 0.1),
    "duplicates": (sides(), 20.0, np.arange(16) // 3, 0.1),
    "all_duplicates": (sides(), 20.0, np.zeros(16, int), 0.1),
    "aligned_at_the_clamp": (sides(width=64, aligned=True), 100.0, np.arange(16), 0.0),
}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("case", CASES)
def test_equals_reference(case, devices):
    (left, right), scale, pair_id, weight = CASES[case]
    value, gradients = ours(left, right, scale, pair_id.astype(np.int32), weight, devices)
    want = references.contrastive_loss(left, right, scale, pair_id, weight)
    assert abs(value - want) <= 1e-6 * max(1.0, abs(want))
    wanted = [
        references.numeric_gradient(lambda x: references.contrastive_loss(x, right, scale, pair_id, weight), left),
        references.numeric_gradient(lambda x: references.contrastive_loss(left, x, scale, pair_id, weight), right),
        references.numeric_gradient(lambda s: references.contrastive_loss(left, right, s[0], pair_id, weight), [scale])[0],
    ]
    # float32 carries a logit of 100 to 1e-5 of itself; where the loss is below 1e-3, that is its gradient's relative error.
    tolerance = 1e-4 if want < 1e-3 else 2e-5
    for got, expected in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-9) + 1e-9)


def test_digits_survive_alignment():
    # The usual form, LSE minus positive, returns 0 here.
    left, right = sides(width=64, aligned=True)
    value, _ = ours(left, right, 100.0, np.arange(16, dtype=np.int32), 0.0, 1)
    want = references.contrastive_loss(left, right, 100.0, np.arange(16))
    assert 0 < want < 1e-10
    assert value == pytest.approx(want, rel=1e-3)


def test_swapping_the_sides_changes_nothing():
    left, right = sides()
    ids = np.arange(16, dtype=np.int32)
    assert ours(left, right, 20.0, ids, 0.1, 8)[0] == pytest.approx(ours(right, left, 20.0, ids, 0.1, 8)[0], rel=1e-6)
