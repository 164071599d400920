"""Gemma 3 on 256 chips of a TPU pod, compiled on a machine without one: bytes, operations and collectives of the train step and of its loss.

`make bench NAME=pods JSON=pods.json` compiles some dozen programs, each of which takes a minute or more on two cores. What is compiled stays in
`PODS_DIR` (pods_run), under a hash of the program and the compiler: the same command goes on where it was stopped, and compiles again what a
change of the code has changed. The peer of the loss is OpenCLIP's `local_loss` with `gather_with_grad`, compiled for the same slice.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import open_clip, rows
from xretrieval import main
from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape
from xretrieval.model.tower import ComputeConfig, TowerConfig
from xretrieval.plan import hlo, programs
from xretrieval.plan import topology as topology_lib
from xretrieval.plan.plan import rows_of
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig
from xretrieval.train.trainable import TrainableConfig

CACHE = pathlib.Path(os.environ.get("PODS_DIR", "pods_run"))
MODELS = ("gemma3_270m", "gemma3_1b", "gemma3_4b")
# v5p-512 is 512 TensorCores: 256 chips.
SLICES = {"v5e-256": "v5e:16x16", "v6e-256": "v6e:16x16", "v5p-512": "v5p:4x8x8"}
BATCHES = (4_096, 32_768, 262_144)
# The same batch a chip on more and more chips.
GROWING = {16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}
A_CHIP = 16
MODEL_AXIS = 2
TOKENS, ROW = 160, 512  # of a pair, of a row
AT_ONCE = 10_240  # tokens of a data shard's part of a microbatch, about


def tower(model: str) -> TowerConfig:
    """A released LLM's, with 1,024 units."""
    main.configure("train", [f"gin_configs/models/{model}.gin"], [], [])
    import gin

    return dataclasses.replace(gin.get_configurable("TowerConfig")(), num_units=1024, row_multiple=2048)


def run_of(model: str, batch: int, shards: int, loss: LossConfig = LossConfig()) -> programs.Run:
    """As gin_configs/runs/pod.gin has it, in so many microbatches that a part has about `AT_ONCE` tokens."""
    microbatches = 1 << max(0, round(batch * TOKENS / shards / AT_ONCE) - 1).bit_length()
    shape = Shape(ROW, rows_of(batch, shards * microbatches, TOKENS, ROW), ROW // 16)
    compute = ComputeConfig(attention="splash", dtype="bfloat16", remat=True)
    return programs.Run(tower(model), compute, loss, OptimizerConfig(), TrainableConfig(), batch, shape, microbatches)


def compiled(traced: Any, run: programs.Run, where: topology_lib.Topology, mesh: jax.sharding.Mesh) -> dict:
    """`programs.compile_traced` as JSON, from the cache where the same program was compiled by the same compiler before."""
    with jax.set_mesh(mesh):
        text = traced.lower().as_text()
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")]
    key = hashlib.sha256("\n".join([where.name, str(where.slices), *versions, text]).encode()).hexdigest()[:32]
    path = CACHE / f"{key}.json"
    if path.exists():
        return json.loads(path.read_text())
    found = programs.compile_traced(traced, run, where, mesh)
    content = {
        "memory": found.memory and dataclasses.asdict(found.memory),
        "too_much": found.too_much and dataclasses.asdict(found.too_much),
        "flops": found.count.flops,
        "attention": found.count.attention,
        "sent": found.sent,
        "by_kind": {kind: sum(one.sent for one in found.sends if one.kind == kind) for kind in {one.kind for one in found.sends}},
        "unknown_loops": found.unknown_loops + found.count.unknown_loops,
        "roofline": found.roofline and {**dataclasses.asdict(found.roofline), "bound": found.roofline.bound},
        **arrays(found.text),
        "seconds": found.seconds,
    }
    CACHE.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
    return content


def arrays(text: str) -> dict:
    """The different arrays of a compiled program, stored or only inside a fusion: {"shapes": of two axes and more, as "32,4096", "flat": of one}."""
    sizes = {sizes for _, sizes in hlo.ARRAY.findall(text) if sizes}
    return {"shapes": sorted(x for x in sizes if "," in x), "flat": sorted(int(x) for x in sizes if "," not in x)}


def peer_loss(run: programs.Run, mesh: jax.sharding.Mesh) -> Any:
    """OpenCLIP's formula with its gradient, traced; sides are rounded to bfloat16 before they are gathered, as ours are."""

    def loss(left_BE, right_BE, logit_scale):
        return open_clip.local_loss(left_BE.astype(jnp.bfloat16), right_BE.astype(jnp.bfloat16), logit_scale)

    with jax.set_mesh(mesh):
        side = jax.ShapeDtypeStruct(
            (run.batch_size, run.tower.embedding_width), jnp.float32, sharding=mesh_lib.sharding(mesh, "batch", None)
        )
        scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=mesh_lib.sharding(mesh))
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(side, side, scale)


def logits_held(found: dict, batch: int, mesh: jax.sharding.Mesh, width: int | None = None) -> int:
    """How many different arrays of the program may be logits of all b pairs of a device, with all C that it compares them with: B, or B / model.

    Of the loss alone, told by its embedding `width`: every array of b x C elements and more, however its axes are cut or joined, but embeddings,
    which have an axis of just that width. Of a step, where the tower has as large arrays: those of exactly b x C elements whose axes are b and
    C, in any order and each in one piece or several ([C / tile, b, tile]), or which have one axis alone.

    What it cannot see: in a step, an axis that joins a part of b with a part of C, padding, or both directions in one array; in either, arrays
    of fewer elements than b x C, a part of the logits at a time.
    """
    own, wide = batch // mesh_lib.batch_shards(mesh), {batch, batch // mesh.shape["model"]}
    axes = [[int(size) for size in shape.split(",")] for shape in found["shapes"]] + [[size] for size in found["flat"]]
    if width is not None:
        return sum(math.prod(sizes) >= own * min(wide) and width not in sizes for sizes in axes)
    return sum(any(_is_cut(sizes, own, other) for other in wide) for sizes in axes)


def _is_cut(sizes: list[int], own: int, wide: int) -> bool:
    """Whether some axes make up `own` and the rest `wide`, or one alone has both."""
    if math.prod(sizes) != own * wide:
        return False
    some = (chosen for count in range(len(sizes) + 1) for chosen in itertools.combinations(sizes, count))
    return len(sizes) == 1 or any(math.prod(chosen) == own for chosen in some)


def loss_rows(model: str, name: str, batch: int) -> Iterator[dict]:
    where = topology_lib.parse(SLICES[name])
    mesh = programs.mesh_of(where, MODEL_AXIS, 1)
    # OpenCLIP has no spread-out term.
    run = run_of(model, batch, mesh_lib.batch_shards(mesh), LossConfig(spread_out_weight=0.0))
    ours = compiled(programs.trace_loss(run, mesh), run, where, mesh)
    peer = compiled(peer_loss(run, mesh), run, where, mesh)
    label, peer_name = f"{model}, {batch:,} pairs, {name}: loss", "OpenCLIP's local_loss and gather_with_grad in JAX"
    yield rows.row(f"{label}: bytes sent, a chip", ours["sent"], peer["sent"], peer_name, 0.5)
    held = [logits_held(found, batch, mesh, run.tower.embedding_width) for found in (ours, peer)]
    if held[1]:  # where the peer does not fit, there is no program to look at
        yield rows.row(f"{label}: arrays of b x B", *held, peer_name, 0.0)
    if ours["memory"] and peer["memory"] and peer["memory"]["temporaries"]:
        yield rows.row(f"{label}: temporary bytes, a chip", *(x["memory"]["temporaries"] for x in (ours, peer)), peer_name, None)


def step_rows(model: str, name: str, batch: int) -> Iterator[dict]:
    where = topology_lib.parse(SLICES[name])
    mesh = programs.mesh_of(where, MODEL_AXIS, 1)
    run = run_of(model, batch, mesh_lib.batch_shards(mesh))
    found, state = compiled(programs.trace_step(run, mesh), run, where, mesh), programs.state_of(run, mesh)
    label = f"{model}, {batch:,} pairs, {name}: step"
    usable = where.chip.hbm_usable
    if found["too_much"]:
        yield rows.row(f"{label}: bytes a chip", found["too_much"]["used"], usable, "the chip's memory", 1.0)
        return
    memory = found["memory"]
    yield rows.row(f"{label}: bytes a chip", sum(memory.values()) - memory["aliased"], usable, "the chip's memory", 1.0)
    ideal = state.whole / where.chips
    yield rows.row(f"{label}: state bytes a chip, by its shards", state.device, ideal, "split evenly", 1.05)
    tokens, pairs = run.microbatches * run.shape.rows * ROW, batch // mesh_lib.batch_shards(mesh)
    yield rows.row(
        f"{label}: state bytes a chip, as laid out", memory["arguments"] - 4 * (3 * tokens + 6 * pairs), ideal, "split evenly", 1.05
    )
    yield rows.row(f"{label}: arrays of b x B", logits_held(found, batch, mesh), 1, "one", 0.0)
    times = found["roofline"]
    others = max(times["hbm"], times["ici"], times["dcn"])
    yield rows.row(f"{label}: seconds at best, matrix units; bound by {times['bound']}", times["compute"], others, "memory and links", None)


def growing_rows(model: str) -> Iterator[dict]:
    """The same batch a chip on more chips. On a ring of n a device sends (n - 1) / n of an array: the peer's bytes are as if sent on a ring of ours."""
    first: tuple[dict, float] | None = None
    for chips, name in GROWING.items():
        where = topology_lib.parse(name)
        mesh = programs.mesh_of(where, MODEL_AXIS, 1)
        shards = mesh_lib.batch_shards(mesh)
        run = run_of(model, A_CHIP * chips, shards)
        found, share = compiled(programs.trace_step(run, mesh), run, where, mesh), (shards - 1) / shards
        first = first or (found, share)
        label, peer_name = f"{model}, {A_CHIP} pairs a chip, {name}", f"on {GROWING[16]}"
        yield rows.row(f"{label}: operations, a chip", found["flops"], first[0]["flops"], peer_name, 1.05)
        yield rows.row(f"{label}: bytes sent, a chip", found["sent"], first[0]["sent"] * share / first[1], f"{peer_name}, same ring", 1.05)


def run() -> list[dict]:
    every = [(model, name, batch) for batch in BATCHES for model in MODELS for name in SLICES]
    found = [row for case in every for row in loss_rows(*case)]
    found += [row for model in MODELS[:2] for row in growing_rows(model)]
    return found + [row for case in every for row in step_rows(*case)]


if __name__ == "__main__":
    topology_lib.use_compiler_alone()
    jax.config.update("jax_platforms", "cpu")  # what it sets for a JAX that is imported later
    rows.main(run)
