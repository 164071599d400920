"""A TPU slice by its name, as libtpu knows it: devices to compile for, where there are none."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import numpy as np

from xretrieval import chips
from xretrieval.errors import UserError

# Our names of chips -> libtpu's, which also takes v5e, v5p, v4 and v6e as they are.
_LIBTPU = {"ironwood": "tpu7x"}
# Where JAX sees one device of two cores: what a TPU VM of these chips runs. libtpu's default for v4 are two devices of half the memory.
_MEGACORE = ("v4", "v5p")
_HOST = (2, 2, 1)  # chips of a host, as they lie in the slice; one of v5e and v6e may have 8, but its slices come in these
_MOST_CHIPS = {"v4": 4096, "v5e": 256, "v5p": 6144, "v6e": 256, "ironwood": 9216}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more equal slices.

    Attributes:
      name: as it was given, "v5e:16x16".
      chip: its kind of chip.
      shape: chips along each axis of a slice.
      slices: how many, joined by the data centre's network.
    """

    name: str
    chip: chips.Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    def wraps(self, axis: int) -> bool:
        """Whether the axis is a ring: at 16 where chips have two axes; where they have three, in slices of whole cubes of 4 x 4 x 4.

        "Slices smaller than a full cube [...] don't have wrap-around links" (cloud.google.com/tpu/docs/v5p): all sides count, not the axis alone.
        """
        return all(side % 4 == 0 for side in self.shape) if self.chip.axes == 3 else self.shape[axis] == 16

    def devices(self) -> list:
        """The devices, as `jax.devices()` would give them there.

        Raises:
          UserError: libtpu is missing, or refuses the shape.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                "the package libtpu, the compiler for TPUs, is not installed: pip install -e '.[tpu]' in the repository (Linux on x86-64)"
            )
        from jax.experimental import topologies

        flat = (*self.shape, 1)[:3]
        options: dict[str, Any] = {
            "chips_per_host_bounds": _HOST,
            "wrap": tuple(self.wraps(i) if i < len(self.shape) else False for i in range(3)),
        }
        if self.chip.name in _MEGACORE:
            options["chip_config_name"] = "megacore"
        name = f"{_LIBTPU.get(self.chip.name, self.chip.name)}:{'x'.join(map(str, flat[: len(self.shape)]))}"
        try:
            found = topologies.get_topology_desc(name, platform="tpu", num_slices=self.slices, **options).devices
        except Exception as error:  # libtpu's own kinds
            line = " ".join(str(error).split())
            raise UserError(f"topology {self.name!r}: libtpu refuses it: {line[:200]}") from error
        if self.slices > 1 and {getattr(device, "slice_index", 0) for device in found} != set(range(self.slices)):
            raise UserError(f"topology {self.name!r}: libtpu gave other slices than {self.slices}")
        return found


def use_compiler_alone() -> None:
    """Sets what JAX and libtpu read when they are imported: that no TPU is to be looked for, and that other processes may compile as well."""
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    # Of the machine that there is not; else libtpu complains that it cannot find out.
    os.environ.update(TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-16")


def parse(name: str, slices: int = 1) -> Topology:
    """The topology of a name such as "v5e:16x16" or "v5p:8x8x4".

    Raises:
      UserError: no such chip, or a shape that no slice of it has, naming those that there are.
    """
    chip = chips.by_topology(name)
    if slices < 1:
        raise UserError(f"--slices {slices}: give 1 or more")
    sizes = name.partition(":")[2]
    example = "4x4, 8x8, 16x16" if chip.axes == 2 else "2x2x1, 4x4x4, 8x8x4"
    if not re.fullmatch(r"\d+(x\d+)*", sizes) or sizes.count("x") != chip.axes - 1:
        raise UserError(f"topology {name!r}: a slice of {chip.name} has {chip.axes} axes, as in {example}")
    shape = tuple(int(size) for size in sizes.split("x"))
    wrong = [size for size, host in zip(shape, _HOST, strict=False) if size < 1 or size % host]
    if wrong or math.prod(shape) > _MOST_CHIPS[chip.name]:
        raise UserError(
            f"topology {name!r}: there is no such slice; axes are multiples of {'x'.join(map(str, _HOST[: chip.axes]))}, the chips of a host, and "
            f"{_MOST_CHIPS[chip.name]} chips of {chip.name} are the most; as in {example}"
        )
    if chip.axes == 2 and not (shape[0].bit_count() == 1 and shape[1] in (shape[0], 2 * shape[0])):
        raise UserError(f"topology {name!r}: there is no such slice; those of {chip.name} are 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16")
    return Topology(name, chip, shape, slices)


def bandwidth(topology: Topology, coordinates_N3: np.ndarray) -> tuple[float, int]:
    """(bytes a second, one way, that each chip of a group has for a ring over the group; the most hops of it), by where its chips lie.

    An axis that the group spans whole, and that wraps, is used in both directions.
    """
    rate, hops = 0.0, 0
    for axis, length in enumerate(topology.shape):
        there = len(np.unique(coordinates_N3[:, axis]))
        if there > 1:
            ring = there == length and topology.wraps(axis)
            rate += topology.chip.ici * (2 if ring else 1)
            hops += there // 2 if ring else there - 1
    return rate or topology.chip.ici * topology.chip.axes * 2, max(hops, 1)
