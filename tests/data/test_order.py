"""The order of a mixture: exact rates, every example once an epoch, no state."""

import numpy as np
import pytest

from xretrieval.data.order import SLOTS, MixtureOrder, permute
from xretrieval.errors import UserError


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, 65_537])
def test_permute_is_a_permutation(size):
    out = permute(np.arange(size), size, 12345)
    assert sorted(out) == list(range(size))
    if size > 100:
        assert (out != np.arange(size)).mean() > 0.9
        assert (out != permute(np.arange(size), size, 54321)).mean() > 0.9


def test_rates_are_exact_and_epochs_complete():
    order = MixtureOrder.create(["a", "b", "c"], [2.0, 1.0, 0.0], [1000, 30, 5], seed=3)
    task, example = order.at(np.arange(SLOTS))
    assert abs((task == 0).sum() - SLOTS * 2 / 3) <= 1
    assert not (task == 2).any()
    of_b = example[task == 1]
    for epoch in range(3):
        assert sorted(of_b[epoch * 30 : epoch * 30 + 30]) == list(range(30))
    assert (of_b[:30] != of_b[30:60]).any()


def test_order_is_a_function_of_the_position():
    order = MixtureOrder.create(["a", "b"], [1.0, 1.0], [100, 70], seed=0)
    positions = np.arange(200_000, 200_400)
    whole = order.at(positions)
    pieces = [order.at(part) for part in np.split(positions, 4)]
    for k in range(2):
        assert (whole[k] == np.concatenate([piece[k] for piece in pieces])).all()


@pytest.mark.parametrize(
    "rates,sizes,message",
    [([1, -1], [3, 3], "at least 0"), ([1, 1], [3, 0], "no examples"), ([0, 0], [3, 3], "all mixture rates"), ([1, 1e-9], [3, 3], "slot")],
)
def test_bad_rates_are_refused(rates, sizes, message):
    with pytest.raises(UserError, match=message):
        MixtureOrder.create(["a", "b"], rates, sizes, seed=0)
