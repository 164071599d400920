"""The name of the machine that a figure was measured on."""

import os
import platform

import pytest

from xretrieval import machine

EPYC = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t\t: 18\n"
)


@pytest.mark.parametrize(
    "cpuinfo,name",
    [
        (EPYC, "AMD EPYC (family 25, model 17)"),
        ("processor\t: 0\nmodel name\t: ARMv8\n", "ARMv8"),
        ("processor\t: 0\nBogoMIPS\t: 243.75\n", platform.machine()),
        ("", platform.machine()),
    ],
    ids=["with family and model", "with a name alone", "without a name", "none"],
)
def test_a_processor_is_named_by_what_there_is(cpuinfo, name):
    assert machine._processor(cpuinfo) == name


def test_cores_and_python():
    said = machine.describe()
    assert said.startswith(f"{len(os.sched_getaffinity(0))} cores, ")
    assert said.endswith(f", Python {platform.python_version()}")
