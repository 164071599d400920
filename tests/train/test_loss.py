"""The loss against its float64 reference, in value and gradient, on meshes of one device to eight, in tiles that divide the batch and that do not."""

import functools

import jax
import numpy as np
import pytest
import references

from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError
from xretrieval.train.loss import LossConfig, contrastive_loss

SIZE = 48


def sides(size=SIZE, width=16, noise=None, seed=0):
    """Unit vectors; with `noise`, each right one is its left one and so much of chance."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(2, size, width))
    right = right if noise is None else left + noise * right
    return [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (left, right)]


@functools.cache  # a case has its data, but not its program, for itself
def gradient_function(config, dtype):
    def value(left, right, scale, *arrays):
        return contrastive_loss(left, right, scale, *arrays, config, dtype)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))


def ours(left, right, scale, ids, config, devices=1, model=1, replica=1, place=None, dtype="float32"):
    """(value, gradients of left, right and scale, parts), on so many devices."""
    mesh = mesh_lib.make_mesh(model, replica, jax.devices()[:devices])
    place = np.arange(len(left)) if place is None else place
    with jax.set_mesh(mesh):
        put = lambda x: jax.device_put(x, mesh_lib.sharding(mesh, "batch", *[None] * (x.ndim - 1)))
        arrays = tuple(put(np.asarray(x, np.int32)) for x in ids), put(np.asarray(place, np.int32))
        (value, parts), gradients = gradient_function(config, dtype)(put(left), put(right), np.float32(scale), *arrays)
        return float(value), [np.asarray(x) for x in gradients], jax.tree.map(float, parts)


EACH = np.arange(SIZE)
CASES = {
    "plain": (sides(), 20.0, (EACH,), {}),
    "spread_out": (sides(), 20.0, (EACH // 3,), {"spread_out_weight": 0.5}),
    "margin": (sides(noise=0.5), 20.0, (EACH,), {"margin": 0.3}),
    "duplicates": (sides(), 20.0, (EACH // 3,), {}),
    "same_texts": (sides(), 20.0, (EACH, EACH % 7, np.maximum(EACH, 40)), {}),
    "all_duplicates": (sides(), 20.0, (EACH * 0,), {"spread_out_weight": 0.1}),
    "at_the_clamp": (sides(), 100.0, (EACH,), {}),
    "opposed_at_the_clamp": ([sides()[0], -sides()[0]], 100.0, (EACH,), {}),
    "aligned_at_the_clamp": (sides(width=64, noise=1e-4), 100.0, (EACH,), {}),
}
# Tiles of 7 and of 16: B = 48 over 1, 2, 4, 8 devices, with the columns shared along `model`.
MESHES = {
    "1": (1, 1, 1, 7),
    "1, one tile": (1, 1, 1, 512),
    "2": (2, 1, 1, 16),
    "4": (4, 1, 2, 7),
    "8": (8, 1, 1, 7),
    "8, replica 2, model 2": (8, 2, 2, 16),
    "8, model 4": (8, 4, 1, 5),
}


def expected(left, right, scale, ids, place, spread_out_weight=0.0, margin=0.0):
    """Value and gradients in float64; those of spread-out by differences."""
    value = references.contrastive_loss(left, right, scale, ids, place, spread_out_weight, margin)
    gradients = list(references.contrastive_gradients(left, right, scale, ids, margin))
    if spread_out_weight:
        for side in (0, 1):
            spread = lambda x, side=side: references.contrastive_loss(*[(x, right), (left, x)][side], 0.0, ids, place, spread_out_weight)
            gradients[side] = gradients[side] + references.numeric_gradient(spread, (left, right)[side])
    return value, gradients


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("case", CASES)
def test_equals_reference(case, mesh):
    (left, right), scale, ids, settings = CASES[case]
    devices, model, replica, tile = MESHES[mesh]
    place = np.random.default_rng(1).permutation(SIZE)
    config = LossConfig(tile=tile, **{"spread_out_weight": 0.0, **settings})
    value, gradients, _ = ours(left, right, scale, ids, config, devices, model, replica, place)
    want, wanted = expected(left, right, scale, ids, place, **settings)
    assert abs(value - want) <= 1e-6 * max(1.0, abs(want))
    # A logit of 100 is exact to 1e-5 in float32: where the loss is below 1e-3, it and its gradient are no more exact than exp of that.
    tolerance = 1e-4 if want < 1e-3 else 1e-5
    # Spread-out is a difference of sums of squares of unit vectors: with one pair ID in the batch, of equal ones.
    rounding = 1e-30 + 2e-7 * settings.get("spread_out_weight", 0.0)
    for got, exact in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=tolerance * np.abs(exact).max() + rounding)


def test_the_references_gradients_are_its_own():
    (left, right), scale, ids, _ = CASES["same_texts"]
    left, right, ids = left[:12], right[:12], [x[:12] for x in ids]
    found = references.contrastive_gradients(left, right, scale, ids, 0.2)
    value = lambda left, right, scale: references.contrastive_loss(left, right, scale, ids, margin=0.2)
    exact = (
        references.numeric_gradient(lambda x: value(x, right, scale), left),
        references.numeric_gradient(lambda x: value(left, x, scale), right),
    )
    np.testing.assert_allclose(found[0], exact[0], atol=1e-7)
    np.testing.assert_allclose(found[1], exact[1], atol=1e-7)
    assert found[2] == pytest.approx(references.numeric_gradient(lambda x: value(left, right, x[0]), [scale])[0], rel=1e-6)


def test_digits_survive_alignment():
    # The usual form, LSE minus positive, returns 0 here.
    left, right = sides(16, 64, noise=1e-4)
    value, _, _ = ours(left, right, 100.0, (np.arange(16),), LossConfig(spread_out_weight=0.0))
    want = references.contrastive_loss(left, right, 100.0, (np.arange(16),))
    assert 0 < want < 1e-10
    # exp of a logit near -30, whose rounding of 2e-6 is that of its exponential; several such, and similarities of 6e-8 times the scale of 100.
    assert value == pytest.approx(want, rel=1e-4)


def test_swapping_the_sides_changes_nothing():
    left, right = sides()
    ids = (EACH // 2,)
    one, other = (ours(*pair, 20.0, ids, LossConfig(tile=7), 8)[0] for pair in ((left, right), (right, left)))
    assert one == pytest.approx(other, rel=1e-6)  # sums in another order


def test_accuracy_is_of_the_similarities_alone():
    left, right = sides(noise=1.0)
    similarity = left @ right.T
    found = [np.mean(np.argmax(view, axis=1) == EACH) for view in (similarity, similarity.T)]
    assert 0 < found[0] < 1
    for margin in (0.0, 0.4):
        _, _, parts = ours(left, right, 20.0, (EACH,), LossConfig(margin=margin, tile=7), 8)
        assert [parts["accuracy_left_to_right"], parts["accuracy_right_to_left"]] == pytest.approx(found)


def test_bfloat16_errs_as_rounding_the_embeddings_does():
    left, right = sides(noise=0.5)
    config = LossConfig(spread_out_weight=0.0, tile=7)
    _, gradients, _ = ours(left, right, 20.0, (EACH,), config, 8, dtype="bfloat16")
    rounded = [np.asarray(jax.numpy.asarray(x, "bfloat16"), np.float64) for x in (left, right)]
    for got, exact in zip(gradients, references.contrastive_gradients(*rounded, 20.0, (EACH,)), strict=True):
        # Eight devices' parts are added up in bfloat16, which keeps 8 bits.
        np.testing.assert_allclose(got, exact, atol=2**-7 * np.abs(exact).max())


def test_no_array_is_as_large_as_the_logits():
    size, tile = 4096, 64
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:8])
    with jax.set_mesh(mesh):
        sds = lambda *shape, dtype="float32": jax.ShapeDtypeStruct(
            shape, dtype, sharding=mesh_lib.sharding(mesh, "batch", *[None] * (len(shape) - 1))
        )
        function = lambda l, r, s, ids, place: contrastive_loss(l, r, s, ids, place, LossConfig(tile=tile))[0]
        integers = sds(size, dtype="int32")
        lowered = jax.jit(jax.grad(function, argnums=(0, 1, 2))).lower(
            sds(size, 8), sds(size, 8), jax.ShapeDtypeStruct((), "float32"), (integers,), integers
        )
    # A device has 512 rows: its logits would be 8 MiB.
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 2**20
    # One all-gather and one reduce-scatter of embeddings; what else goes over the wire is of size B.
    text = lowered.as_text()
    assert text.count("stablehlo.reduce_scatter") == 1
    assert sum("8xf32>" in line.split("->")[1] for line in text.splitlines() if '"stablehlo.all_gather"' in line) == 1


@pytest.mark.parametrize("setting", [{"tile": 0}, {"initial_logit_scale": 0.0}, {"initial_logit_scale": 200.0}])
def test_what_cannot_be_is_refused(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        LossConfig(**setting)
