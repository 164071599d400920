"""What a compiled program sends between chips: kind, mesh axis, how often, how many bytes."""

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from xretrieval.plan import hlo

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
# Between slices the program hands arrays to its host, which says what is to become of them.
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """Operations of one kind, axis and size.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes that a group spans, as "data" or "replica+data".
      group: devices of a group; between slices, how many slices.
      ids: the devices of one group, by their place in the mesh; of the first slice's where there are several.
      payload: bytes of the array that every device of a group comes to hold, or held, whole (of what is sent, for a permutation).
      between: over the network between slices, not over links between chips.
      count: how often in one run of the program.
    """

    kind: str
    axes: str
    group: int
    ids: tuple[int, ...]
    payload: int
    between: bool
    count: int

    @property
    def sent(self) -> float:
        """Bytes that one device sends in all of them, on a ring: every part but its own once; twice where they are summed and spread again."""
        share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / self.group
        return self.count * self.payload * share * (2 if self.kind == "all-reduce" else 1)


def collectives(program: hlo.Program, mesh: Mesh, slices: int = 1) -> tuple[list[Collective], int]:
    """(all of a program, largest first; how many are in loops whose number of turns could not be read, which count as one turn).

    An asynchronous one that a TPU spreads over several fusions counts once, by its `chain_id`. Groups of one device send nothing and are left out.
    """
    found: dict[Collective, int] = {}
    seen, unknown = set(), 0
    for visit in hlo.visits(program):
        instruction = visit.instruction
        chain = re.search(r'chain_id="?(\d+)', instruction.rest)
        if chain and visit.fusion and instruction.opcode in KINDS:
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            part = chain[1], channel and channel[1], instruction.opcode, visit.times
            if part in seen:
                continue
            seen.add(part)
        one = _between(instruction, slices) if instruction.opcode == "send" else _inside(instruction, visit, mesh, mesh.size // slices)
        if one:
            unknown += not visit.known
            found[one] = found.get(one, 0) + visit.times
    out = [dataclasses.replace(one, count=count) for one, count in found.items()]
    return sorted(out, key=lambda one: -one.sent), unknown


def _inside(instruction: hlo.Instruction, visit: hlo.Visit, mesh: Mesh, devices: int) -> Collective | None:
    """What a collective operation is, once; None for any other, and for groups of one device."""
    kind = _kind(instruction, visit)
    if kind is None:
        return None
    ids = _permuted(instruction.rest) if kind == "collective-permute" else group_of(instruction.rest, devices)
    if len(ids) < 2:
        return None
    return Collective(kind, _axes(ids, mesh), len(ids), ids, _payload(instruction, len(ids)), between=False, count=1)


def _between(instruction: hlo.Instruction, slices: int) -> Collective | None:
    """The same of an array that goes to the host to be exchanged with other slices."""
    found = _BETWEEN.search(instruction.rest)
    if not found:
        return None
    kind = {"ONE_TO_ONE": "collective-permute"}.get(found[1], found[1].lower().replace("_", "-"))
    # Of what is gathered each slice sends its part.
    payload = instruction.arrays()[0] * (slices if kind == "all-gather" else 1)
    return Collective(kind, "replica", slices, (), payload, between=True, count=1)


def _kind(instruction: hlo.Instruction, visit: hlo.Visit) -> str | None:
    """The kind of an instruction that sends; a TPU's reduce-scatter is an all-reduce inside a fusion of that name."""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in KINDS:
        return None
    return "reduce-scatter" if opcode == "all-reduce" and "all-reduce-scatter" in visit.computation else opcode


def _payload(instruction: hlo.Instruction, group: int) -> int:
    """`Collective.payload` of an operation, or of its start where it is asynchronous."""
    sizes, opcode = instruction.arrays(), instruction.opcode
    if opcode.endswith("-start") and opcode != "all-reduce-start":  # that one's type is its results alone
        # (operands, results, flags): as many results as operands.
        operands = len(instruction.operands)
        sizes = sizes[operands : 2 * operands]
    # Of what is scattered the result is a part. A TPU's all-reduce inside a fusion of that name has the whole.
    return sum(sizes) * (group if opcode.startswith("reduce-scatter") else 1)


def group_of(attributes: str, devices: int) -> tuple[int, ...]:
    """The first of an operation's replica groups, in any of the three ways in which XLA writes them; none written is all devices."""
    named = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes)
    if named:
        return _named_group(*named.groups())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        groups, dims, order = ([int(x) for x in part.split(",")] if part else None for part in iota.groups())
        ids = np.arange(math.prod(dims or ())).reshape(dims or ())
        return tuple((ids.transpose(order) if order else ids).reshape(groups or ())[0].tolist())
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return tuple(int(x) for x in listed[1].split(",")) if listed else tuple(range(devices))


def _named_group(axes: str, used: str) -> tuple[int, ...]:
    """mesh['a'=16,'b'=2] {'a'}: the devices along `a`. An axis may be used in part: 'a':(2)4 is its middle factor 4, after 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    strides, stride = {}, 1
    for name in reversed(sizes):
        strides[name] = stride
        stride *= sizes[name]
    ids = np.zeros(1, np.int64)
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", used):
        count = int(part or sizes[name])
        step = strides[name] * (sizes[name] // (int(before or 1) * count))
        ids = (ids[:, None] + step * np.arange(count)[None, :]).ravel()
    return tuple(ids.tolist())


def _permuted(attributes: str) -> tuple[int, ...]:
    """The first pair of devices of a permutation that are not the same."""
    listed = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    pairs = re.findall(r"\{(\d+),(\d+)", listed[1] + "}") if listed else []
    return next(((int(a), int(b)) for a, b in pairs if a != b), ())


def _axes(ids: Iterable[int], mesh: Mesh) -> str:
    """The mesh axes along which the devices of a group differ."""
    places = np.array(np.unravel_index(list(ids), tuple(mesh.shape.values())))
    return "+".join(name for name, along in zip(mesh.axis_names, places, strict=True) if len(set(along.tolist())) > 1)
