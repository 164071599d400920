"""The table of chips: found by what JAX and libtpu call them, and consistent in itself."""

import pytest

from xretrieval import chips
from xretrieval.errors import UserError


@pytest.mark.parametrize(
    "topology,name",
    [("v5e:16x16", "v5e"), ("v5p:4x4x8", "v5p"), ("v5:4x4x8", "v5p"), ("tpu7x:4x4x4", "ironwood"), ("ironwood:4x4x4", "ironwood")],
)
def test_by_topology(topology, name):
    assert chips.by_topology(topology).name == name


@pytest.mark.parametrize("topology", ["v7:4x4", "", "h100:8", "v5e16x16"])
def test_a_topology_that_is_none_names_those_that_there_are(topology):
    with pytest.raises(UserError, match="v4, v5e, v5p, v6e, ironwood"):
        chips.by_topology(topology)


def test_by_device_kind_is_exact():
    # "TPU v5" is v5p while "TPU v5 lite" is v5e; an H100 for PCIe is another chip than the one in the table.
    found = {kind: chips.by_device_kind(kind) for kind in ("TPU v5", "TPU v5 lite", "NVIDIA H200", "NVIDIA H100 PCIe", "cpu")}
    assert {kind: chip and chip.name for kind, chip in found.items()} == {
        "TPU v5": "v5p",
        "TPU v5 lite": "v5e",
        "NVIDIA H200": "h200",
        "NVIDIA H100 PCIe": None,
        "cpu": None,
    }


def test_no_kind_is_two_chips_and_each_has_its_sources():
    kinds = [kind for chip in chips.CHIPS for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    for chip in chips.CHIPS:
        assert 0.95 * chip.hbm < chip.hbm_usable <= chip.hbm
        assert all(source.startswith("https://") for source in chip.sources)
        # Numbers of one order: a wrong exponent is the likely slip.
        assert 1e14 < chip.flops < 1e16
        assert 5e11 < chip.hbm_bandwidth < 1e13
        assert chip.dcn < chip.ici < chip.hbm_bandwidth


@pytest.mark.parametrize(
    "name,tflops,gibibytes,gigabytes_a_second,network_gigabits",
    [
        ("v4", 275, 32, 1200, 50),  # the network's as the book has it
        ("v5e", 197, 16, 819, 25),  # 6.4 Tbit/s of 256 chips
        ("v5p", 459, 96, 2765, 50),  # "96 GiB of physical" memory
        ("v6e", 918, 32, 1638, 100),
        ("ironwood", 2307, 192, 7380, 100),
    ],
)
def test_numbers_in_the_units_of_google_s_pages(name, tflops, gibibytes, gigabytes_a_second, network_gigabits):
    chip = chips.by_topology(f"{name}:")
    assert (chip.flops, chip.hbm, chip.hbm_bandwidth) == (tflops * 1e12, gibibytes * 2**30, gigabytes_a_second * 1e9)
    assert chip.dcn == network_gigabits * 1e9 / 8


def test_flops_of_a_device():
    assert chips.by_topology("ironwood:2x2x1").device_flops == 2307e12 / 2
