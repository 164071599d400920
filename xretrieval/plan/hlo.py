"""The text of a compiled program: which operations there are, and how often the loops around them run."""

import dataclasses
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "c64": 64, "c128": 128}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: its name, type, opcode, and the rest of the line, operands first."""

    name: str
    type: str
    opcode: str
    rest: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """A computation that the instruction names: `body=%x`."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing(self.rest, 0)])

    def arrays(self) -> list[int]:
        """Bytes of each array of the type, without what is only a flag or a handle of an asynchronous operation."""
        return [bytes_of(dtype, sizes) for dtype, sizes in ARRAY.findall(re.sub(r"/\*.*?\*/", "", self.type))]


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, each a list of instructions, and which is run first."""

    computations: dict[str, list[Instruction]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction that is run: how often, in which computation, and in which fusion's if it is inside one."""

    instruction: Instruction
    times: int
    computation: str
    fusion: str | None
    known: bool  # False inside a loop whose number of turns could not be read; it counts as one turn


def bytes_of(dtype: str, sizes: str) -> int:
    """Of an array of an HLO type, as f32[8,128]."""
    bits = _BITS.get(dtype) or int((re.search(r"\d+", dtype) or ["32"])[0])
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8


def parse(text: str) -> Program:
    """Of `compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry, here = "", None
    for line in text.splitlines():
        header = _HEADER.match(line) if line and not line[0].isspace() else None
        if header:
            here = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif here is not None and (start := _INSTRUCTION.match(line)):
            begin = start.end()
            end = _closing(line, begin + 1) + 1 if line[begin] == "(" else line.index(" ", begin)
            opcode, _, rest = line[end:].strip().partition("(")
            here.append(Instruction(start[2], line[begin:end], opcode, rest, bool(start[1])))
    return Program(computations, entry)


def _closing(text: str, begin: int) -> int:
    """Where the parenthesis that is open at `begin` closes."""
    depth = 1
    for place in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text)


def visits(program: Program) -> Iterator[Visit]:
    """Every instruction that is run, with how often."""
    yield from _visits(program, program.entry, 1, None, True)


def _visits(program: Program, name: str, times: int, fusion: str | None, known: bool) -> Iterator[Visit]:
    by_name = {instruction.name: instruction for instruction in program.computations[name]}
    for instruction in by_name.values():
        yield Visit(instruction, times, name, fusion, known)
        if instruction.opcode == "while":
            turns = trip_count(program, instruction, by_name)
            body = instruction.attribute("body") or ""
            yield from _visits(program, body, times * (1 if turns is None else turns), None, known and turns is not None)
        elif instruction.opcode == "fusion":
            yield from _visits(program, instruction.attribute("calls") or "", times, instruction.name, known)
        elif instruction.opcode in ("call", "async-start"):
            yield from _visits(program, instruction.attribute("to_apply") or instruction.attribute("calls") or "", times, fusion, known)
        elif instruction.opcode == "conditional":
            for branch in _branches(instruction):
                yield from _visits(program, branch, times, fusion, known)


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    names = re.findall(r"[\w.\-]+", listed[1]) if listed else []
    return names or [name for key in ("true_computation", "false_computation") if (name := instruction.attribute(key))]


def trip_count(program: Program, loop: Instruction, around: dict[str, Instruction]) -> int | None:
    """How often a `while` runs: as XLA notes it, or from a condition i < n with i counted up from a constant by one; None where neither is there.

    JAX's scan counts up by one, and XLA keeps that when it moves work between turns, but it may begin at another number than 0.
    """
    noted = re.search(r'known_trip_count[\\"]*:\{[\\"]*n[\\"]*:[\\"]*(\d+)', loop.rest)
    if noted:
        return int(noted[1])
    condition = {i.name: i for i in program.computations[loop.attribute("condition") or ""]}
    root = next(i for i in condition.values() if i.root)
    if root.opcode != "compare" or "direction=LT" not in root.rest:
        return None
    counter, limit = (condition.get(name) for name in root.operands)
    if counter is None or limit is None or counter.opcode != "get-tuple-element" or limit.opcode != "constant":
        return None
    place = int((re.search(r"index=(\d+)", counter.rest) or ["", "0"])[1])
    start = around.get(loop.operands[0])
    first = _constant(start.operands[place], around) if start is not None and start.opcode == "tuple" else None
    return int(limit.rest.split(")")[0]) - (first or 0)


def _constant(name: str, around: dict[str, Instruction]) -> int | None:
    """The number behind copies; None where it is not one."""
    found = around.get(name)
    while found is not None and found.opcode in ("copy", "bitcast", "copy-start", "copy-done"):
        found = around.get(found.operands[0])
    return int(found.rest.split(")")[0]) if found is not None and found.opcode == "constant" else None
