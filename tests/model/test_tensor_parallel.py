"""Tensor parallelism: the same gradients as on one device, by every way of attention; a share of the work; the collectives that there should be."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from model import towers

from xretrieval import mesh as mesh_lib
from xretrieval.model import tower
from xretrieval.model.tower import ComputeConfig
from xretrieval.plan import flops

GEMMA3 = towers.CONFIGS["gemma3"]
CHUNKED = ComputeConfig(attention="chunked", block=8)


def with_adapters(config, params):
    """Adapters that add something, unlike those of the start."""
    rng = np.random.default_rng(7)
    with jax.set_mesh(towers.one_device()):
        shapes = jax.eval_shape(lambda: tower.init_adapters(config, 0, 3, 0))
    return {**params, **{name: rng.normal(size=x.shape).astype(np.float32) / 4 for name, x in shapes.items()}}


def specs(config, params):
    """Of a tower that may have adapters, on the mesh in context."""
    adapters = jax.eval_shape(lambda: tower.init_adapters(config, 0, 3, 0)) if any(".lora_" in name for name in params) else {}
    return {name: x.sharding.spec for name, x in {**tower.abstract(config), **adapters}.items()}


def gradients(config, params, compute, model, replica, devices, length=48):
    """Embeddings of packed sequences and the gradient of a weighted sum of them, in NumPy."""
    mesh = mesh_lib.make_mesh(model, replica, jax.devices()[:devices])
    tokens, segments, positions, _ = towers.pack(towers.sequences(config, count=12, longest=40), length, 8)
    count = int(segments.max())
    weight = np.random.default_rng(3).normal(size=(8, count, config.embedding_width)).astype(np.float32)
    with jax.set_mesh(mesh):
        split = specs(config, params)
        placed = {name: jax.device_put(x, jax.NamedSharding(mesh, split[name])) for name, x in params.items()}
        rows, weight = [towers.put(x, mesh) for x in (tokens, segments, positions)], towers.put(weight, mesh)

        def loss(params):
            out = tower.merge(config, params, compute)(*rows, num_segments=count, lora_scale=0.5)
            return (out * weight).sum(), out

        found, out = jax.jit(jax.grad(loss, has_aux=True))(placed)
        assert {name: x.sharding.spec for name, x in found.items()} == split
        return np.asarray(out), jax.device_get(found)


@functools.cache
def one_device(kv_heads, compute, adapted):
    config = dataclasses.replace(GEMMA3, kv_heads=kv_heads)
    params = towers.random_params(config)
    params = with_adapters(config, params) if adapted else params
    # One reference for both ways: they are held against each other, and against float64, in test_tower.py.
    length = 128 if compute.attention == "splash" else 48
    return config, params, gradients(config, params, dataclasses.replace(compute, attention="dense"), 1, 1, 1, length)


CASES = [
    (ComputeConfig(), 1, False, (4, 1, 8)),  # one key/value head for four shards
    (ComputeConfig(), 2, True, (2, 2, 8)),  # a head for each, adapters
    (CHUNKED, 2, False, (4, 1, 4)),  # a head for two shards; `data` is one device
]
MORE = [
    (compute, kv_heads, adapted, sizes)
    for compute in (ComputeConfig(), CHUNKED)
    for kv_heads in (1, 2, 4)
    for adapted in (False, True)
    for sizes in ((2, 2, 8), (4, 1, 8), (4, 2, 8), (4, 1, 4))
    if (compute, kv_heads, adapted, sizes) not in CASES
]
MORE.append((ComputeConfig(attention="splash", block=128), 2, False, (4, 1, 8)))


@pytest.mark.parametrize("compute,kv_heads,adapted,sizes", [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)])
def test_shards_have_the_gradients_of_one_device(compute, kv_heads, adapted, sizes):
    config, params, (want, want_gradients) = one_device(kv_heads, compute, adapted)
    got, got_gradients = gradients(config, params, compute, *sizes, 128 if compute.attention == "splash" else 48)
    # Unit vectors, and sums in another order: some 1e-7; gradients through three layers, some 1e-6 of their largest entry.
    np.testing.assert_allclose(got, want, atol=2e-6)
    for name, gradient in want_gradients.items():
        np.testing.assert_allclose(got_gradients[name], gradient, atol=2e-5 * np.abs(gradient).max(), err_msg=name)


def gradient(model, devices, kv_heads):
    """The traced gradient of a tower whose matrices are most of its work."""
    config = dataclasses.replace(GEMMA3, width=64, mlp_hidden=256, head_dim=16, heads=8, kv_heads=kv_heads)
    mesh = mesh_lib.make_mesh(model, 1, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        tokens = jax.ShapeDtypeStruct((8, 64), "int32", sharding=mesh_lib.sharding(mesh, "batch", None))
        lengths = jax.ShapeDtypeStruct((8,), "int32", sharding=mesh_lib.sharding(mesh, "batch"))
        function = jax.jit(jax.grad(lambda params, *rows: tower.embed_rows(config, params, *rows).sum()))
        return function.trace(tower.abstract(config), tokens, lengths)


@pytest.mark.parametrize("kv_heads,most", [(8, 0.2505), (1, 0.28)])
def test_a_chip_does_its_share_of_the_products(kv_heads, most):
    """At equal shards of data. What is not split: pooling; with fewer key/value heads than shards, a head's two products."""
    alone, shared = (flops.count(gradient(model, 2 * model, kv_heads).jaxpr).flops for model in (1, 4))
    assert 0.25 <= shared / alone < most


def test_the_compiled_program_does_its_share_of_the_work():
    """What XLA counts in the program of one of eight devices, beside one of two; norms and residuals are whole on each."""
    alone, shared = (gradient(model, 2 * model, 8).lower().compile().cost_analysis()["flops"] for model in (1, 4))
    assert 0.25 < shared / alone < 0.30


def collectives(jaxpr):
    """(primitive, axes, shape of the result) of all collectives."""
    for equation in jaxpr.eqns:
        axes = equation.params.get("axes", equation.params.get("axis_name"))
        if equation.primitive.name in ("psum_invariant", "all_gather", "reduce_scatter"):
            axes = (axes,) if isinstance(axes, str) else tuple(axes)
            yield from ((equation.primitive.name, axes, x.aval.shape) for x in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from collectives(inner)


def test_the_collectives_of_a_layer_are_those_that_are_meant():
    """The scanned layer and the lookup each count once."""
    found = list(collectives(gradient(2, 8, 2).jaxpr.jaxpr))
    of = lambda kind, *axes: [shape for name, over, shape in found if (name, over) == (kind, axes)]
    activations = (2, 64, 64)
    # Forwards after each half and the lookup; backwards before each half.
    assert of("psum_invariant", "model").count(activations) == 5
    # q, k, v, o, gate, up, down and two tables.
    assert len(of("reduce_scatter", "data")) == 9
    assert len(of("all_gather", "data")) == 9
    assert not of("all_gather", "model")


def test_one_device_sends_nothing_from_a_layer():
    """A collective over one device is a copy; those of the lookup are left."""
    assert len([name for name, *_ in collectives(gradient(1, 1, 2).jaxpr.jaxpr)]) == 7
