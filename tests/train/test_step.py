"""One train step: eight devices equal one, in loss, every parameter and every moment; bfloat16, chunked and remat are the same step."""

import jax
import numpy as np
import pytest
from train import runs

from xretrieval.errors import UserError
from xretrieval.model.tower import ComputeConfig
from xretrieval.train.optimizer import OptimizerConfig


@pytest.fixture(scope="module")
def one_device():
    return runs.steps()


def assert_same_parameters(found, expected):
    """Of two states, where the gradient is more than its rounding.

    Adam moves a parameter by up to 3e-3 a step however small its gradient is. Moments may differ by 5e-4 of the largest (below): where one is a tenth of
    it or more, that is 5e-3 of each of three moves.
    """
    squares = expected.opt_state[1][0].nu["tower"]
    for name, value in expected.params["tower"].items():
        size = np.sqrt(np.asarray(squares[name]))
        felt = size > 0.1 * size.max()
        np.testing.assert_allclose(np.asarray(found.params["tower"][name])[felt], np.asarray(value)[felt], atol=4.5e-5, err_msg=name)


QUICK = [(1, 1), (2, 2), (4, 1)]
SLOW = [(model, 2**i) for model in (1, 2, 4) for i in range(4) if 8 % (model * 2**i) == 0 and (model, 2**i) not in QUICK]


@pytest.mark.parametrize("model,replica", [*QUICK, *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in SLOW)])
def test_every_mesh_of_eight_devices_equals_one_device(one_device, model, replica):
    """Those of model = 8 are refused by name, see below."""
    losses, _, _, state = runs.steps(8, model, replica)
    np.testing.assert_allclose(losses[0], one_device[0][0], rtol=1e-6)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)  # of parameters that differ by what an update makes of rounding
    moments = jax.tree.map(np.asarray, (state.opt_state, one_device[3].opt_state))
    # Sums in another order, some 1e-6 of float32, and the third step's gradient is of other parameters.
    for got, expected in zip(*map(jax.tree.leaves, moments), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-4 * np.abs(expected).max())
    assert_same_parameters(state, one_device[3])


def test_a_mesh_that_heads_do_not_divide_over_is_refused():
    with pytest.raises(UserError, match=r"TowerConfig.heads = 4 and train.mesh_model = 8.*set train.mesh_model to a divisor of 4"):
        runs.steps(8, 8, 1)


@pytest.mark.parametrize("compute", [ComputeConfig(remat=True), ComputeConfig(attention="chunked", block=16)], ids=["remat", "chunked"])
def test_ways_of_computing_are_the_same_step(one_device, compute):
    losses, _, _, state = runs.steps(compute=compute)
    np.testing.assert_allclose(losses[0], one_device[0][0], rtol=1e-6)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)  # as above
    assert_same_parameters(state, one_device[3])


def test_bfloat16_learns_what_float32_learns(one_device):
    losses, _, after, state = runs.steps(compute=ComputeConfig(dtype="bfloat16"))
    # bfloat16 keeps 8 bits, and the logit scale of 20 enlarges what an embedding's entries lose: some percent of the loss.
    np.testing.assert_allclose(losses, one_device[0], rtol=0.05)
    assert all(x.dtype == np.float32 for x in after.values())
    assert all(x.dtype in (np.float32, np.int32) for x in jax.tree.leaves(state))


def test_nothing_is_compiled_twice():
    from xretrieval.train.step import train_step

    before = train_step._cache_size()
    # An optimizer that no other test has: this step has not been compiled before.
    runs.steps(count=5, others=True, optimizer=OptimizerConfig(warmup_steps=1, weight_decay=0.03))
    assert train_step._cache_size() == before + 1
