"""Bytes of a compiled program on one device, and what the compiler says where they are too many."""

import dataclasses
import re
from typing import Any

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# libtpu says it in one of these ways.
_TOO_MUCH = (
    re.compile(r"Used (?P<used>[\d.]+)(?P<u>[KMGT]?)B? of (?P<limit>[\d.]+)(?P<l>[KMGT]?)B? hbm"),
    re.compile(r"\((?P<used>[\d.]+)(?P<u>[KMGT]?)B?\) exceeds available HBM \((?P<limit>[\d.]+)(?P<l>[KMGT]?)B?\)"),
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Of one device.

    Attributes:
      arguments: state and batch.
      aliased: of the outputs, what takes the place of an argument.
      outputs: the others.
      temporaries: activations, gradients, gathered weights, at their most.
      code: the program.
    """

    arguments: int
    aliased: int
    outputs: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """All of them together."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class TooMuch:
    """A program that the compiler refused: bytes a device that it needs, and that there are."""

    used: int
    limit: int


def of(compiled: Any) -> Memory:
    """What the compiler planned."""
    found = compiled.memory_analysis()
    return Memory(
        arguments=found.argument_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def too_much(error: BaseException) -> TooMuch | None:
    """What a compiler's error says of memory; None where it is about something else."""
    for pattern in _TOO_MUCH:
        if found := pattern.search(str(error)):
            return TooMuch(*(int(float(found[name]) * _UNITS[found[unit]]) for name, unit in (("used", "u"), ("limit", "l"))))
    return None
