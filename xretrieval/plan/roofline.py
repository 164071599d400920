"""The least time that a step can take on a chip, by each thing that could bound it."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from xretrieval.plan.collectives import Collective
from xretrieval.plan.flops import Count
from xretrieval.plan.topology import Topology, bandwidth

_HOP = 1e-6  # seconds; the floor of a collective, a hop


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step.

    Attributes:
      compute: products at the chip's peak.
      hbm: what products read and write, and arguments and outputs once; a lower bound, for what is elementwise comes on top.
      ici: collectives inside a slice, one after another, each at the bandwidth of the axes that its group spans.
      dcn: what crosses slices.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def bound(self) -> str:
        """The one that takes longest."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]

    @property
    def seconds(self) -> float:
        """Where all of them overlap: no step is quicker."""
        return max(dataclasses.astuple(self))


def roofline(topology: Topology, mesh: Mesh, count: Count, streamed: int, found: list[Collective]) -> Roofline:
    """By the chip's peak numbers.

    Args:
      topology: the slices.
      mesh: over their devices.
      count: of one device.
      streamed: bytes a device of arguments and outputs.
      found: collectives of one device.
    """
    chip, devices = topology.chip, list(mesh.devices.flat)
    ici = dcn = 0.0
    for one in found:
        if one.between:
            dcn += one.sent / (chip.dcn / chip.devices)
        else:
            rate, hops = bandwidth(topology, np.array([devices[i].coords for i in one.ids]))
            ici += max(one.sent / rate, one.count * hops * _HOP)
    return Roofline(
        compute=count.bf16_flops / chip.device_flops,
        hbm=(count.bytes + streamed) / (chip.hbm_bandwidth / chip.devices),
        ici=ici,
        dcn=dcn,
    )
