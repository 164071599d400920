"""Four processes are one: their step is that of one process with four devices."""

import numpy as np
import processes
import pytest

# Split over `model` too, and the devices lie in another order than their processes.
MIXED = (2, [2, 0, 3, 1])
PLAIN = (1, [0, 1, 2, 3])


@pytest.mark.parametrize("mesh", [MIXED, pytest.param(PLAIN, marks=pytest.mark.slow)])
def test_four_processes_have_the_step_of_one(tmp_path, mesh):
    four = processes.run(4, "gradients", tmp_path / "four", f"mesh={mesh}")
    assert processes.codes(four) == [0] * 4, four[0].err
    one = processes.run(1, "gradients", tmp_path / "one", f"mesh={mesh}", devices=4)
    assert processes.codes(one) == [0], one[0].err
    with np.load(tmp_path / "four/gradients.npz") as found, np.load(tmp_path / "one/gradients.npz") as expected:
        assert sorted(found) == sorted(expected)
        for name in found:
            # The same mesh; gloo may add up in another order than one process does: some roundings of the largest.
            assert np.abs(found[name] - expected[name]).max() <= 1e-6 * np.abs(expected[name]).max(), name
