"""The reduce-scatter that is held against NumPy: exact in float32 on any number of devices, over all batch axes, and heard where it is wrong."""

import jax
import numpy as np
import pytest

from xretrieval import canary
from xretrieval import mesh as mesh_lib

CHUNK = 4 << 20


def test_sums_are_exact_in_float32_and_memory_is_bounded_on_any_number_of_devices():
    factors = 0
    for devices in range(1, 4097):
        factors += (devices - 1) % 8 + 1
        rows, modulus, total = canary.sizes(devices, CHUNK)
        assert total == factors
        assert (modulus - 1) * total < 2**24, devices
        assert modulus > 900  # few numbers that repeat would hide parts that changed places
        assert rows % devices == 0
        assert rows * 64 * 4 <= 2**30
        assert rows * 64 < 2**31, "int32"
        assert rows * 64 * 4 == devices * CHUNK or devices > 256


@pytest.mark.parametrize("model, replica", [(1, 1), (2, 1), (1, 2), (2, 4), (1, 8), (8, 1)])
def test_every_mesh_gets_it_right(model, replica):
    with jax.set_mesh(mesh_lib.make_mesh(model, replica)):
        assert canary.check_reduce_scatter(256 << 10) == 256 << 10


@pytest.mark.parametrize("model, replica", [(1, 1), (2, 2), (1, 8)])
def test_one_wrong_number_is_heard(model, replica, monkeypatch):
    right = canary._summed

    def wrong(rows, modulus):
        x_VD = right(rows, modulus)
        whole_VD = np.array(x_VD)
        whole_VD[-1, 3] += 1
        return jax.make_array_from_callback(whole_VD.shape, x_VD.sharding, lambda index: whole_VD[index])

    monkeypatch.setattr(canary, "_summed", wrong)
    shards = 8 // model
    with (
        jax.set_mesh(mesh_lib.make_mesh(model, replica)),
        pytest.raises(RuntimeError, match=f"over {shards} devices in chunks of 262,144 bytes has 1 wrong"),
    ):
        canary.check_reduce_scatter(256 << 10)


@pytest.mark.parametrize("lost", range(8))
def test_a_device_that_is_left_out_is_heard_whichever_it_is(lost, monkeypatch):
    psum_scatter = jax.lax.psum_scatter
    without = lambda x, axes, **how: psum_scatter(x * (jax.lax.axis_index(axes) != lost), axes, **how)
    monkeypatch.setattr(jax.lax, "psum_scatter", without)
    canary._summed.clear_cache()
    try:
        with jax.set_mesh(mesh_lib.make_mesh(1, 2)), pytest.raises(RuntimeError, match="wrong numbers"):
            canary.check_reduce_scatter(4 << 10)
    finally:
        canary._summed.clear_cache()
