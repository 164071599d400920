"""The largest global batch that fits, in few compilations: memory grows nearly in proportion to the batch."""

import dataclasses
from typing import Any

import jax

from xretrieval.plan import programs
from xretrieval.plan.report import Plan, size

_COMPILATIONS = 6
_CLOSE = 1.03  # a batch that fits ends the search where one so little larger does not, or where so little memory is left


def largest(plan: Plan, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """{"largest": pairs, or None where nothing fitted; "tried": [(pairs, whether they fit)], of which the first is the plan's own batch}.

    A batch has as many rows a pair as the plan's has. The number of rows of a data shard is what is looked for: a line through the memory of two
    batches says where it meets the limit, and the batch there is compiled; so on between the last that fits and the first that does not.
    """
    run, own = plan.run, _memory(plan.step)
    limit = plan.topology.chip.hbm_usable / plan.topology.chip.devices
    points, tried = {run.batch_size: own}, [(run.batch_size, own <= limit)]
    for _ in range(_COMPILATIONS):
        fits = max((b for b, used in points.items() if used <= limit), default=0)
        over = min((b for b, used in points.items() if used > limit), default=None)
        batch = _next(points, fits, over, plan, limit, mesh.size * run.microbatches)
        if batch is None:
            break
        rows = max(1, -(-batch * run.shape.rows // run.batch_size))
        other = dataclasses.replace(run, batch_size=batch, shape=run.shape._replace(rows=rows))
        used = _memory(programs.compile_traced(programs.trace_step(other, mesh), other, plan.topology, mesh))
        points[batch] = used
        tried.append((batch, used <= limit))
        print(f"{batch:,} pairs: {size(used)} of {size(limit)} a device", flush=True)
    return {"largest": max((batch for batch, fits in tried if fits), default=None), "tried": tried}


def _memory(compiled: programs.Compiled) -> float:
    """Bytes a device, fitting or not; the compiler counts the program itself where it refuses one."""
    return compiled.memory.peak if compiled.memory else compiled.too_much.used + 1  # type: ignore[union-attr]


def _next(points: dict[int, float], fits: int, over: int | None, plan: Plan, limit: float, step: int) -> int | None:
    """The next batch to compile, a multiple of `step`; None where it could be little larger than the last that fits."""
    if fits and (points[fits] * _CLOSE >= limit or (over is not None and over <= fits * _CLOSE)):
        return None
    if over is not None and over - fits <= step:
        return None
    base = plan.state.device
    if fits and over:
        low, high = points[fits], points[over]
        wanted = fits + (over - fits) * (limit - low) / max(high - low, 1.0)
    else:
        known = fits or over or step
        wanted = known * (limit - base) / max(points[known] - base, 1.0)
    lower, upper = fits + step, over - step if over is not None else 64 * max(fits, step)
    return int(min(max(wanted * 0.99 // step * step, lower), upper))
