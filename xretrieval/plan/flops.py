"""Operations of a program on one device, counted in its jaxpr.

XLA's own analysis counts the body of a loop once, however often it runs, and a Pallas kernel not at all. Counted are the matrix products (a
multiplication and an addition are 2), inside loops as often as they run, with what remat does again. What is elementwise is not counted.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax


@dataclasses.dataclass
class Count:
    """Of one device.

    Attributes:
      flops: of all products.
      bf16_flops: what they cost a matrix unit that multiplies bfloat16: a product of float32 at "highest" precision is 6 passes, at "high" 3.
      attention: of `flops`, those inside Pallas kernels.
      bytes: what products and kernels read and write, if each operand comes from memory once and each result goes there once.
      unknown_loops: loops whose number of turns depends on data; counted as one turn.
    """

    flops: float = 0.0
    bf16_flops: float = 0.0
    attention: float = 0.0
    bytes: float = 0.0
    unknown_loops: int = 0

    def add(self, other: "Count", times: float = 1) -> None:
        self.flops += times * other.flops
        self.bf16_flops += times * other.bf16_flops
        self.attention += times * other.attention
        self.bytes += times * other.bytes
        self.unknown_loops += other.unknown_loops


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How splash attention cuts a row: its kernel skips a tile in which nothing may be seen, though its grid has it.

    Attributes:
      a_row: tiles along a row.
      heads: of one device.
      causal: nothing after itself is seen.
    """

    a_row: int
    heads: int
    causal: bool

    def live(self, grid: tuple[int, ...]) -> float:
        """The share of a grid's tiles that are computed. Its last axes are heads and tiles of queries and of keys; a local layer's is shrunk."""
        whole = math.prod(grid[-3:]) == self.heads * self.a_row**2
        return (self.a_row + 1) / (2 * self.a_row) if self.causal and whole else 1.0


def count(jaxpr: Any, tiles: Tiles | None = None, platform: str = "tpu") -> Count:
    """Counts a (closed) jaxpr, as `jax.jit(f).trace(...).jaxpr`, for one device.

    Arrays that are split, by their explicit sharding or inside `shard_map`, count with the part of one device. Of a `cond` the dearer branch
    counts, of `platform_dependent` that of `platform`.
    """
    total = Count()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        total.add(_equation(eqn, tiles, platform))
    return total


def _equation(eqn: Any, tiles: Tiles | None, platform: str) -> Count:
    name, params, out = eqn.primitive.name, eqn.params, Count()
    if name == "dot_general":
        out.flops = _product(eqn)
        out.bf16_flops = out.flops * _passes(eqn)
        out.bytes = sum(_bytes(v.aval) for v in (*eqn.invars, *eqn.outvars))
    elif name == "pallas_call":
        grid = params["grid_mapping"].grid
        body = count(params["jaxpr"], tiles, platform)
        live = tiles.live(grid) if tiles else 1.0
        out.flops = out.attention = body.flops * math.prod(grid) * live
        out.bf16_flops = body.bf16_flops * math.prod(grid) * live
        out.bytes = sum(_bytes(v.aval) for v in (*eqn.invars, *eqn.outvars))
    elif name == "cond":
        branches = [count(branch, tiles, platform) for branch in params["branches"]]
        chosen = _of_platform(params.get("branches_platforms"), platform)
        out.add(branches[chosen] if chosen is not None else max(branches, key=lambda branch: branch.flops))
    elif name == "while":
        out.add(count(params["body_jaxpr"], tiles, platform))
        out.unknown_loops += 1
    else:
        times = params["length"] if name == "scan" else 1
        for inner in _inner(params.values()):
            out.add(count(inner, tiles, platform), times)
    return out


def _of_platform(platforms: Any, platform: str) -> int | None:
    """The branch that is `platform`'s: the one that names it, or the default, which names none."""
    if platforms is None:
        return None
    named = [i for i, names in enumerate(platforms) if names is not None and platform in names]
    return named[0] if named else platforms.index(None)


def _inner(values: Iterable[Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else (value,))]
    return [item for item in flat if hasattr(getattr(item, "jaxpr", item), "eqns")]


def _local(aval: Any) -> tuple[int, ...]:
    """The shape of one device's part."""
    sharding = getattr(aval, "sharding", None)
    if sharding is None or sharding.mesh.empty:
        return aval.shape
    sizes, shape = sharding.mesh.shape, list(aval.shape)
    for axis, entry in enumerate(sharding.spec):
        names = (entry,) if isinstance(entry, str) else entry or ()
        shape[axis] //= math.prod(sizes[name] for name in names)
    return tuple(shape)


def _product(eqn: Any) -> float:
    """2 x the left side's elements x the right side's that are neither summed over nor of a batch."""
    left, right = (_local(v.aval) for v in eqn.invars)
    (_, summed), (_, batch) = eqn.params["dimension_numbers"]
    return 2.0 * math.prod(left) * math.prod(size for axis, size in enumerate(right) if axis not in (*summed, *batch))


def _passes(eqn: Any) -> int:
    precision = eqn.params["precision"]
    precision = precision[0] if isinstance(precision, tuple) else precision
    if eqn.invars[0].aval.dtype != "float32":
        return 1
    return {jax.lax.Precision.HIGHEST: 6, jax.lax.Precision.HIGH: 3}.get(precision, 1)


def _bytes(aval: Any) -> float:
    """Of one device's part; 0 for a token or a semaphore."""
    size = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return float(math.prod(_local(aval)) * size) if size and hasattr(aval, "shape") else 0.0
