"""The mesh: slices along `replica`, and what it does not divide is refused by name before anything is made."""

import importlib.util

import jax
import numpy as np
import pytest

from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError
from xretrieval.model import tower

FITS = {"text_size": 10, "width": 16, "heads": 4, "kv_heads": 4, "head_dim": 8, "mlp_hidden": 32, "row_multiple": 8}


@pytest.mark.parametrize(
    "change,model,replica,message",
    [
        ({"heads": 3, "kv_heads": 3}, 2, 1, r"TowerConfig.heads = 3 and train.mesh_model = 2: .*set train.mesh_model to a divisor of 3"),
        ({"mlp_hidden": 36}, 8, 1, r"TowerConfig.mlp_hidden = 36 and train.mesh_model = 8: .*a divisor of 36"),
        ({"heads": 24, "kv_heads": 6}, 4, 1, r"TowerConfig.kv_heads = 6 and train.mesh_model = 4: neither divides the other"),
        ({"kv_heads": 1, "head_dim": 4}, 1, 1, r"TowerConfig.kv_heads \* TowerConfig.head_dim = 4 .*1 x 8 does not divide it"),
        (
            {"mlp_hidden": 36},
            2,
            1,
            r"TowerConfig.mlp_hidden = 36 and train.mesh_model = 2: .*leave 4 devices to the axis `data`, and 2 x 4",
        ),
        ({"dense": (12, 8)}, 1, 1, r"TowerConfig.dense, width 12 .* 8 does not divide it"),
        ({"row_multiple": 12}, 2, 1, r"TowerConfig.row_multiple = 12 .*leave 4 devices .*set it to 24"),
    ],
)
def test_a_tower_that_the_mesh_does_not_divide_is_refused(change, model, replica, message):
    config = tower.TowerConfig(**{**FITS, **change, "heads": change.get("heads", 8)})
    with jax.set_mesh(mesh_lib.make_mesh(model, replica)), pytest.raises(UserError, match=message):
        tower.abstract(config)


def test_what_divides_is_made():
    """Each of the refused ones with what its message says to set."""
    for change, model, replica in [({"heads": 3, "kv_heads": 3}, 1, 1), ({"row_multiple": 24}, 2, 1), ({"dense": (12, 8)}, 1, 2)]:
        with jax.set_mesh(mesh_lib.make_mesh(model, replica)):
            tower.abstract(tower.TowerConfig(**{**FITS, **change}))


@pytest.mark.parametrize(
    "model,replica,message",
    [(3, 1, "does not divide 8 devices"), (2, 8, "train.mesh_replica = 8 x train.mesh_model = 2"), (0, 1, "train.mesh_model = 0")],
)
def test_a_mesh_that_the_devices_do_not_make_is_refused(model, replica, message):
    with pytest.raises(UserError, match=message):
        mesh_lib.make_mesh(model, replica)


def test_a_batch_that_does_not_divide_is_refused():
    mesh_lib.check_batch(24, mesh_lib.make_mesh(2, 2))
    with pytest.raises(UserError, match="train.batch_size = 12 does not divide over 8 devices"):
        mesh_lib.check_batch(12, mesh_lib.make_mesh(2, 2))
    mesh_lib.check_batch(24, mesh_lib.make_mesh(2, 2), 3)
    with pytest.raises(UserError, match=r"train.batch_size = 24 .* 4 data shards of train.microbatches = 4; set it to a multiple of 16$"):
        mesh_lib.check_batch(24, mesh_lib.make_mesh(2, 2), 4)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed here (extra `tpu`)")
def test_slices_lie_along_replica():
    from jax.experimental import topologies

    devices = topologies.get_topology_desc("v5e:4x4", platform="tpu", num_slices=2).devices
    for model, replica in ((1, 2), (2, 2), (4, 4)):
        mesh = mesh_lib.make_mesh(model, replica, devices)
        assert mesh.axis_types == (jax.sharding.AxisType.Explicit,) * 3
        assert dict(mesh.shape) == {"replica": replica, "data": 32 // model // replica, "model": model}
        of_slice = np.vectorize(lambda device: device.slice_index)(mesh.devices).reshape(replica, -1)
        assert (of_slice == of_slice[:, :1]).all(), "one slice for all of a replica"
        assert len(np.unique(of_slice)) == 2
    for replica in (1, 3):
        with pytest.raises(UserError, match="train.mesh_replica"):
            mesh_lib.make_mesh(1, replica, devices)
