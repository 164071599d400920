"""Four processes are one: their step is that of one process with four devices."""

import numpy as np
import processes

MESHES = "meshes=[(1, [0, 1, 2, 3]), (2, [0, 1, 2, 3]), (1, [2, 0, 3, 1])]"


def test_four_processes_have_the_step_of_one(tmp_path):
    four = processes.run(4, "gradients", tmp_path / "four", MESHES)
    assert processes.codes(four) == [0] * 4, four[0].err
    one = processes.run(1, "gradients", tmp_path / "one", MESHES, devices=4)
    assert processes.codes(one) == [0], one[0].err
    with np.load(tmp_path / "four/gradients.npz") as found, np.load(tmp_path / "one/gradients.npz") as expected:
        assert sorted(found) == sorted(expected)
        for name in found:
            # Four numbers are added over the devices, in gloo's order or XLA's: a difference of some roundings of the largest.
            assert np.abs(found[name] - expected[name]).max() <= 1e-6 * max(1e-3, np.abs(expected[name]).max()), name
        # And a mesh in another order has the same batch, dealt to other devices.
        for name in [name for name in found if name.startswith("2/")]:
            assert np.abs(found[name] - found[f"0{name[1:]}"]).max() <= 1e-6 * max(1e-3, np.abs(found[name]).max()), name
