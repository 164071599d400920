"""The device mesh, and the one table from logical axis to mesh axis."""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xretrieval.errors import UserError

AXES = ("replica", "data", "model")

# `replica` crosses slices, `data` splits the batch and the parameters, `model` splits vocabulary and heads.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("replica", "data"),
    "vocab": ("model", "data"),
    "embed": "data",
    "heads": "model",
    "mlp": "model",
}


def make_mesh(model: int = 1, replica: int = 1, devices=None) -> Mesh:
    """An Explicit mesh over all devices (or `devices`); `data` takes what `replica` x `model` leaves.

    Slices of TPUs lie along `replica` alone, so that the other axes stay on the links between chips.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % (model * replica):
        raise UserError(
            f"a mesh of replica={replica} x model={model} does not divide {len(devices)} devices; change train.mesh_model or train.mesh_replica"
        )
    shape = (replica, len(devices) // (model * replica), model)
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"})
    if replica % max(slices, 1):
        raise UserError(f"{slices} slices and a mesh of replica={replica}: set train.mesh_replica to a multiple of {slices}")
    # An axis of the mesh may be a part of one of the torus, as model=2 of 4; `jax.make_mesh` takes that on v5e alone.
    if slices > 1:
        inside, across = (replica // slices, *shape[1:]), (slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * 3)


def spec(*logical_axes: str | None) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes (None: not split).

    Raises:
      ValueError: two of the axes want the same mesh axis.
    """
    entries = [RULES[axis] if axis is not None else None for axis in logical_axes]
    used = [name for entry in entries if entry for name in ((entry,) if isinstance(entry, str) else entry)]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {logical_axes} collide on a mesh axis: {entries}")
    return PartitionSpec(*entries)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the batch is split."""
    return math.prod(mesh.shape[name] for name in spec("batch")[0])


def local_shards(mesh: Mesh, parts: int = 1) -> tuple[int, ...]:
    """Which shards of the batch have a device of this process, in order: those that it must read; of shards that come in `parts`, their parts.

    On a torus the devices of one host need not follow each other along an axis, and where `model` crosses hosts, some read the same part.
    """
    position = {name: i for i, name in enumerate(mesh.axis_names)}
    batch_axes = [position[name] for name in spec("batch")[0]]
    others = [i for i in position.values() if i not in batch_axes]
    devices_SM = mesh.devices.transpose([*batch_axes, *others]).reshape(batch_shards(mesh), -1)
    here = jax.process_index()
    held = [s for s, devices_M in enumerate(devices_SM) if any(device.process_index == here for device in devices_M)]
    return tuple(s * parts + part for s in held for part in range(parts))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """UserError where a batch does not split evenly; devices along `model` share the columns of the loss."""
    if batch_size % mesh.size:
        raise UserError(f"batch_size {batch_size} does not divide over {mesh.size} devices; change train.batch_size")


def sharding(mesh: Mesh, *logical_axes: str | None) -> NamedSharding:
    return NamedSharding(mesh, spec(*logical_axes))


def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What `jax.eval_shape` gave, with its sharding on the mesh in context; a scalar, which has none while tracing, is whole on every device."""
    spec = x.sharding.spec if x.sharding is not None else PartitionSpec()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(jax.sharding.get_mesh(), spec))
