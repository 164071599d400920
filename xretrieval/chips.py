"""What an accelerator chip can do at most, by its makers' data sheets: one table, for utilisation while training and for `xretrieval plan`."""

import dataclasses

from xretrieval.errors import UserError

GIB = 2**30
_CLOUD = "https://cloud.google.com/tpu/docs"  # one page a chip
# "How to Scale Your Model", chapter 2: its table of ICI bandwidth a link, and below it that of DCN a chip. Google's pages have ICI of all links of a
# chip, both ways: 400 GB/s of v5e over 4 links are 50 one way where the book has 45, and 1200 of v5p over 6 are 100 where it has 90. A plan is made
# with the lower ones. Bandwidths are in 10^9 bytes there; what they call GB of memory is GiB, as libtpu's limits show.
_BOOK = "https://jax-ml.github.io/scaling-book/tpus"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak numbers of one chip; bytes and seconds.

    Attributes:
      name: as topologies begin with it ("v5e:16x16"), or a GPU's.
      kinds: what `jax.Device.device_kind` may be.
      flops: bfloat16, dense, a second.
      hbm: bytes of memory.
      hbm_usable: what a program may take of it: for a TPU, what libtpu says when one takes more.
      hbm_bandwidth: bytes a second.
      axes: of the torus that chips form; 1 for a GPU, whose links all lead to one switch.
      ici: bytes a second, one way, along one axis (of a TPU: one link).
      dcn: bytes a second and chip, one way, to other slices (of a GPU: to other machines).
      devices: that JAX sees of a chip.
      sources: where the numbers are from.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm: float
    hbm_usable: float
    hbm_bandwidth: float
    axes: int
    ici: float
    dcn: float
    sources: tuple[str, ...]
    devices: int = 1

    @property
    def device_flops(self) -> float:
        """Of what JAX calls a device."""
        return self.flops / self.devices


_TPUS = (
    Chip(
        name="v4",
        kinds=("TPU v4",),
        flops=275e12,
        hbm=32 * GIB,
        hbm_usable=30.75 * GIB,
        hbm_bandwidth=1.2e12,  # "1200 GBps"
        axes=3,
        ici=45e9,
        dcn=6.25e9,
        sources=(f"{_CLOUD}/v4", _BOOK),
    ),
    Chip(
        name="v5e",
        kinds=("TPU v5 lite", "TPU v5e"),
        flops=197e12,
        hbm=16 * GIB,
        hbm_usable=15.75 * GIB,
        hbm_bandwidth=819e9,
        axes=2,
        ici=45e9,
        dcn=3.125e9,
        sources=(f"{_CLOUD}/v5e", _BOOK),
    ),
    Chip(
        name="v5p",
        kinds=("TPU v5", "TPU v5p"),
        flops=459e12,
        # The page's table leaves out 1 GiB that system and libtpu keep; libtpu itself gives a program more than those 95.
        hbm=96 * GIB,
        hbm_usable=95.74 * GIB,
        hbm_bandwidth=2.765e12,
        axes=3,
        ici=90e9,
        dcn=6.25e9,
        sources=(f"{_CLOUD}/v5p", _BOOK),
    ),
    Chip(
        name="v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        flops=918e12,
        hbm=32 * GIB,
        hbm_usable=31.25 * GIB,
        hbm_bandwidth=1.638e12,
        axes=2,
        ici=90e9,
        dcn=12.5e9,
        sources=(f"{_CLOUD}/v6e", _BOOK),
    ),
    Chip(
        name="ironwood",
        kinds=("TPU7x", "TPU v7x"),
        flops=2307e12,
        hbm=192 * GIB,
        hbm_usable=189.5 * GIB,
        hbm_bandwidth=7.38e12,
        axes=3,
        ici=90e9,
        dcn=12.5e9,
        devices=2,
        sources=(f"{_CLOUD}/tpu7x", _BOOK),
    ),
)
_NVIDIA = "https://www.nvidia.com/en-us/data-center"  # one page a chip; `dcn` is the machine's network cards over its 8 GPUs, from DGX's

_GPUS = (
    Chip(
        name="a100-40gb",
        kinds=("NVIDIA A100-SXM4-40GB",),
        flops=312e12,
        hbm=40e9,
        hbm_usable=40e9,
        hbm_bandwidth=1.555e12,
        axes=1,
        ici=300e9,
        dcn=25e9,
        sources=(f"{_NVIDIA}/a100", f"{_NVIDIA}/dgx-a100"),
    ),
    Chip(
        name="a100",
        kinds=("NVIDIA A100-SXM4-80GB",),
        flops=312e12,
        hbm=80e9,
        hbm_usable=80e9,
        hbm_bandwidth=2.039e12,
        axes=1,
        ici=300e9,
        dcn=25e9,
        sources=(f"{_NVIDIA}/a100", f"{_NVIDIA}/dgx-a100"),
    ),
    Chip(
        name="h100",
        kinds=("NVIDIA H100 80GB HBM3",),
        flops=989e12,
        hbm=80e9,
        hbm_usable=80e9,
        hbm_bandwidth=3.35e12,
        axes=1,
        ici=450e9,
        dcn=50e9,
        sources=(f"{_NVIDIA}/h100", f"{_NVIDIA}/dgx-h100"),
    ),
    Chip(
        name="h200",
        kinds=("NVIDIA H200",),
        flops=989e12,
        hbm=141e9,
        hbm_usable=141e9,
        hbm_bandwidth=4.8e12,
        axes=1,
        ici=450e9,
        dcn=50e9,
        sources=(f"{_NVIDIA}/h200", f"{_NVIDIA}/dgx-h200"),
    ),
)
CHIPS = (*_TPUS, *_GPUS)


def by_topology(topology: str) -> Chip:
    """The chip of a TPU topology such as "v5e:16x16"; UserError names those that there are."""
    name = topology.partition(":")[0]
    # libtpu's own names beside ours.
    name = {"v5": "v5p", "tpu7x": "ironwood"}.get(name, name)
    for chip in _TPUS:
        if chip.name == name:
            return chip
    raise UserError(
        f"topology {topology!r}: no TPU is called {name!r}; there are {', '.join(chip.name for chip in _TPUS)}, as in v5e:16x16 or v5p:4x4x8"
    )


def by_device_kind(kind: str) -> Chip | None:
    """The chip of `jax.Device.device_kind`; None for one that is not in the table, as a CPU."""
    return next((chip for chip in CHIPS if kind in chip.kinds), None)
