"""One of several processes that save two steps together, damage a file of the newer one, and restore: prints the step that is taken and its entries."""

import pathlib
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from xretrieval import distributed
from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError
from xretrieval.train import manifest
from xretrieval.train.checkpoint import Checkpoints
from xretrieval.train.state import TrainState


def state(mesh, number):
    """A matrix split over all processes, and a scalar on each."""
    rows_ND = np.arange(64 * mesh.size * 8, dtype=np.float32).reshape(-1, 8) + number

    def placed(value, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return TrainState({"tower": {"rows_ND": placed(rows_ND, "data", None)}, "log_logit_scale": placed(np.float32(number))}, {}, ())


def main(folder: pathlib.Path, harm: str) -> None:
    mesh = mesh_lib.make_mesh()
    with jax.set_mesh(mesh):
        with Checkpoints(folder, "run") as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, state(mesh, step))
        assert [save.step for save in checkpoints.saved] == [1, 2]
        distributed.barrier("saved")
        names = manifest.files_of(folder / "checkpoints/2")
        assert {f"state/ocdbt.process_{i}/manifest.ocdbt" for i in range(jax.process_count())} <= set(names)
        if distributed.first():
            # Of each process one file: the first two parts of the list are those that processes 0 and 1 hash.
            for name in {"none": [], "first": names[:1], "second": names[1:2]}[harm]:
                path = folder / "checkpoints/2" / name
                path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        distributed.barrier("damaged")
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(mesh, 0))
        found, taken = Checkpoints(folder, "run").restore_newest(abstract)
        for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(state(mesh, taken.step)), strict=True):
            for mine, wanted in zip(got.addressable_shards, expected.addressable_shards, strict=True):
                np.testing.assert_array_equal(mine.data, wanted.data)
        print(f"taken: {taken.step}", flush=True)
        poisoned = jax.tree.map(lambda x: x * np.float32(np.nan), state(mesh, 3))
        checkpoints.save(3, poisoned)
        try:
            checkpoints.wait()
        except UserError as error:
            print(f"refused: {error}", flush=True)


if __name__ == "__main__":
    with distributed.session():
        main(pathlib.Path(sys.argv[1]), sys.argv[2])
