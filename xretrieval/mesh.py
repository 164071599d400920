"""The device mesh, and the one table from logical axis to mesh axis."""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xretrieval.errors import UserError

AXES = ("replica", "data", "model")

# `replica` crosses slices and repeats the parameters; `data` splits the batch and the parameters; `model` splits what is inside a layer (tensor
# parallelism) and the vocabulary. Moments and gradients are split as their parameters: tests/train/test_sharding.py holds every one.
RULES: dict[str, str | tuple[str, ...] | None] = {
    # of activations
    "batch": ("replica", "data"),
    "heads": "model",
    # of parameters: rows of tables, the side of a layer's matrices that is not the width, what has no other side than the width
    "vocab": ("model", "data"),
    "features": ("model", "data"),
    "embed": "data",
}


def make_mesh(model: int = 1, replica: int = 1, devices=None) -> Mesh:
    """An Explicit mesh over all devices (or `devices`); `data` takes what `replica` x `model` leaves.

    Slices of TPUs lie along `replica` alone: what goes over `data` and `model` stays on the links between chips.

    Raises:
      UserError: a size that is no whole number, or that does not divide the devices; `replica` is no multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    for name, size in (("mesh_model", model), ("mesh_replica", replica)):
        if not isinstance(size, int) or size < 1:
            raise UserError(f"train.{name} = {size!r}: give a whole number, 1 or more")
    if len(devices) % (model * replica):
        raise UserError(
            f"train.mesh_replica = {replica} x train.mesh_model = {model} does not divide {len(devices)} devices; change one of them"
        )
    # Only TPUs come in slices; where there is one alone, its devices may not say so.
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    if replica % slices:
        raise UserError(f"train.mesh_replica = {replica} is no multiple of the {slices} slices; set it to {slices}")
    inside = (replica // slices, len(devices) // (model * replica), model)
    # An axis of the mesh may be a part of one of the torus, as model=2 of 4.
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
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


def several(*names: str) -> tuple[str, ...]:
    """Those of the named axes that have more than one device, in the mesh in context."""
    return tuple(name for name in names if jax.sharding.get_abstract_mesh().shape[name] > 1)


def trimmed(whole: PartitionSpec) -> PartitionSpec:
    """The spec without axes of one device, of the mesh in context."""
    return PartitionSpec(*(several(*([entry] if isinstance(entry, str) else entry or ())) or None for entry in whole))


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


def check_batch(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """UserError where a batch does not split evenly; devices along `model` share the columns of the loss."""
    if batch_size % mesh.size:
        raise UserError(f"train.batch_size = {batch_size} does not divide over {mesh.size} devices; set it to a multiple of {mesh.size}")
    shards = batch_shards(mesh)
    if batch_size % (shards * microbatches):
        raise UserError(
            f"train.batch_size = {batch_size} does not divide over {shards} data shards of train.microbatches = {microbatches}; set it to a multiple of "
            f"{math.lcm(shards * microbatches, mesh.size)}"
        )


def sharding(mesh: Mesh, *logical_axes: str | None) -> NamedSharding:
    return NamedSharding(mesh, spec(*logical_axes))


def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What `jax.eval_shape` gave, with its sharding on the mesh in context; a scalar, which has none while tracing, is whole on every device."""
    spec = x.sharding.spec if x.sharding is not None else PartitionSpec()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(jax.sharding.get_mesh(), spec))
