"""Collectives read out of compiled programs: small ones whose count and bytes are known, and the forms that only XLA for TPU writes."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from xretrieval import mesh as mesh_lib
from xretrieval.plan import hlo
from xretrieval.plan.collectives import Collective, collectives, group_of

ROWS, WIDTH = 64, 32
BYTES = ROWS * WIDTH * 4


def compiled(function, in_specs, out_specs, shape=(ROWS, WIDTH), model=2):
    """What a function inside `shard_map` over 8 devices (data 4 x model 2) sends, as [(kind, axes, group, payload, count)]."""
    mesh = mesh_lib.make_mesh(model=model)
    x = jax.ShapeDtypeStruct(shape, "float32", sharding=jax.NamedSharding(mesh, in_specs))
    with jax.set_mesh(mesh):
        mapped = jax.jit(jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False))
        found, unknown = collectives(hlo.parse(mapped.lower(x).compile().as_text()), mesh)
    assert unknown == 0
    return [(one.kind, one.axes, one.group, one.payload, one.count) for one in found]


def test_each_kind_with_its_axis_and_bytes():
    one, both = P("data", None), P(("data", "model"), None)
    found = compiled(lambda x: jax.lax.all_gather(x, "data", axis=0, tiled=True), one, P(None, None))
    assert found == [("all-gather", "data", 4, BYTES, 1)]
    found = compiled(lambda x: jax.lax.all_gather(x, ("data", "model"), axis=0, tiled=True), both, P(None, None))
    assert found == [("all-gather", "data+model", 8, BYTES, 1)]
    found = compiled(lambda x: jax.lax.psum(x, "model"), P(None, "model"), P(None, None))
    assert found == [("all-reduce", "model", 2, BYTES // 2, 1)]
    found = compiled(lambda x: jax.lax.psum_scatter(x, "data", scatter_dimension=0, tiled=True), P(None, None), one)
    assert found == [("reduce-scatter", "data", 4, BYTES, 1)]
    around = [(i, (i + 1) % 4) for i in range(4)]
    found = compiled(lambda x: jax.lax.ppermute(x, "data", around), one, one)
    assert found == [("collective-permute", "data", 2, BYTES // 4, 1)]
    found = compiled(lambda x: jax.lax.all_to_all(x, "data", 1, 0, tiled=True), one, one)
    assert found == [("all-to-all", "data", 4, BYTES // 4, 1)]


def test_in_a_scan_it_counts_as_often_as_the_scan_runs():
    def turns(x):
        def outer(x, _):
            # Not linear, or XLA moves the sum out of the loop.
            return jax.lax.scan(lambda x, _: (jax.lax.psum(x * x, "data"), None), x, length=3)[0], None

        return jax.lax.scan(outer, x, length=5)[0]

    assert compiled(turns, P("data", None), P("data", None)) == [("all-reduce", "data", 4, BYTES // 4, 15)]


def test_a_loop_of_unknown_length_is_told():
    mesh = mesh_lib.make_mesh()

    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 100.0, lambda x: jax.lax.psum(x * x, "data"), x)

    x = jax.ShapeDtypeStruct((ROWS, WIDTH), "float32", sharding=jax.NamedSharding(mesh, P("data", None)))
    with jax.set_mesh(mesh):
        text = (
            jax.jit(jax.shard_map(until, in_specs=P("data", None), out_specs=P("data", None), check_vma=False)).lower(x).compile().as_text()
        )
    found, unknown = collectives(hlo.parse(text), mesh)
    assert [one.count for one in found] == [1]
    assert unknown == 1


def test_bytes_on_a_ring():
    sent = functools.partial(Collective, axes="data", group=4, ids=(0, 1, 2, 3), payload=400, between=False, count=10)
    assert sent(kind="all-gather").sent == sent(kind="reduce-scatter").sent == 3000
    assert sent(kind="all-reduce").sent == 6000
    assert sent(kind="collective-permute").sent == 4000


@pytest.mark.parametrize(
    "written,ids",
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", (0, 2)),
        ("replica_groups={}, to_apply=%add", tuple(range(8))),
        ("replica_groups=[4,2]<=[8], dimensions={0}", (0, 1)),
        ("replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}", (0, 2, 4, 6)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}", (0, 2, 4, 6)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}", (0, 1)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}, dimensions={0}", (0, 4)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}, dimensions={0}", (0, 1, 2, 3)),
    ],
)
def test_the_ways_in_which_groups_are_written(written, ids):
    assert group_of(written, 8) == ids


TPU = """
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[64,32]) -> f32[8,32] {
  %input = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,32]{1,0:T(8,128)} all-reduce(%input), channel_id=1, replica_groups=mesh['axis_0'=8] {'axis_0'}, to_apply=%add
  %partition-id = u32[] partition-id()
  ROOT %slice = f32[8,32]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.1, %partition-id), dynamic_slice_sizes={8,32}
}

%started (p: bf16[8,32]) -> (bf16[8,32], bf16[64,32]) {
  %p = bf16[8,32]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[64,32]{1,0} all-gather(%p), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="7"}
  ROOT %start = (bf16[8,32]{1,0}, bf16[64,32]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (p.1: bf16[8,32]) -> bf16[64,32] {
  %p.1 = bf16[8,32]{1,0} parameter(0)
  %all-gather.2 = bf16[64,32]{1,0} all-gather(%p.1), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="7"}
  ROOT %end = bf16[64,32]{1,0} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%body (t: (s32[], f32[64,32], bf16[8,32])) -> (s32[], f32[64,32], bf16[8,32]) {
  %t = (s32[]{:T(128)}, f32[64,32]{1,0}, /*index=2*/bf16[8,32]{1,0}) parameter(0)
  %x = f32[64,32]{1,0} get-tuple-element(%t), index=1
  %y = bf16[8,32]{1,0} get-tuple-element(%t), index=2
  %one = f32[8,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %two = (bf16[8,32]{1,0}, bf16[64,32]{1,0}) fusion(%y), kind=kCustom, calls=%started
  %three = bf16[64,32]{1,0} fusion(%y), kind=kCustom, calls=%done
  ROOT %out = (s32[], f32[64,32]{1,0}, bf16[8,32]{1,0}) tuple(%t, %x, %y)
}

%condition (t.1: (s32[], f32[64,32], bf16[8,32])) -> pred[] {
  %t.1 = (s32[], f32[64,32]{1,0}, bf16[8,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t.1), index=0
  %n = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x.1: f32[64,32], y.1: bf16[8,32]) -> f32[64,32] {
  %x.1 = f32[64,32]{1,0} parameter(0)
  %y.1 = bf16[8,32]{1,0} parameter(1)
  %first = s32[] constant(FIRST)
  %copied = s32[] copy(%first)
  %start.1 = (s32[], f32[64,32]{1,0}, bf16[8,32]{1,0}) tuple(%copied, %x.1, %y.1)
  %loop = (s32[], f32[64,32]{1,0}, bf16[8,32]{1,0}) while(%start.1), condition=%condition, body=%body
  %after-all = token[] after-all()
  %sent = (f32[64,32]{1,0}, u32[], token[]) send(%x.1, %after-all), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %result = f32[64,32]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize("first", [0, 1])
def test_what_only_a_tpu_writes(first):
    """A reduce-scatter inside a fusion, an all-gather in two fusions, a loop that begins at 1, an array handed to the host for another slice."""
    mesh = mesh_lib.make_mesh(replica=1, devices=jax.devices())
    found, unknown = collectives(hlo.parse(TPU.replace("FIRST", str(first))), mesh, slices=2)
    turns = 6 - first
    assert {(one.kind, one.payload, one.between, one.count) for one in found} == {
        ("reduce-scatter", BYTES, False, turns),
        ("all-gather", BYTES // 2, False, turns),
        ("all-reduce", BYTES, True, 1),
    }
    assert unknown == 0


ASYNCHRONOUS = """
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[64,32], y: f32[16,32]) -> f32[16,32] {
  %x = f32[64,32]{1,0} parameter(0)
  %y = f32[16,32]{1,0} parameter(1)
  STARTED
  ROOT %result = f32[16,32]{1,0} copy(%y)
}
"""
_GROUPS = "channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}"


@pytest.mark.parametrize(
    "started,kind,payload",
    [
        (
            f"((f32[64,32]{{1,0}}), f32[16,32]{{1,0}}) reduce-scatter-start(%x), {_GROUPS}, dimensions={{0}}, to_apply=%add",
            "reduce-scatter",
            BYTES,
        ),
        (
            f"((f32[64,32]{{1,0}}, f32[16,32]{{1,0}}), (f32[16,32]{{1,0}}, f32[4,32]{{1,0}})) reduce-scatter-start(%x, %y), {_GROUPS}, "
            "dimensions={0}, to_apply=%add",
            "reduce-scatter",
            BYTES + BYTES // 4,
        ),
        (f"(f32[16,32]{{1,0}}, f32[64,32]{{1,0}}) all-gather-start(%y), {_GROUPS}, dimensions={{0}}", "all-gather", BYTES),
        (f"f32[64,32]{{1,0}} all-reduce-start(%x), {_GROUPS}, to_apply=%add", "all-reduce", BYTES),
        (f"((f32[64,32]{{1,0}}), f32[64,32]{{1,0}}) all-to-all-start(%x), {_GROUPS}, dimensions={{0}}", "all-to-all", BYTES),
        (
            "(f32[16,32]{1,0}, f32[16,32]{1,0}, u32[], u32[]) collective-permute-start(%y), channel_id=1, source_target_pairs={{0,2},{2,0}}",
            "collective-permute",
            BYTES // 4,
        ),
    ],
    ids=lambda value: value.split("(%")[0].split()[-1] if isinstance(value, str) else "",
)
def test_what_is_started_counts_its_result_and_once(started, kind, payload):
    """As XLA writes them: (operands, results, flags), but for an all-reduce. What is scattered is as large as the whole that went in."""
    mesh = mesh_lib.make_mesh(model=2)
    name = started.split("(%")[0].split()[-1].removesuffix("-start")
    done = f"%done = f32[16,32]{{1,0}} {name}-done(%started)"
    found, unknown = collectives(hlo.parse(ASYNCHRONOUS.replace("STARTED", f"%started = {started}\n  {done}")), mesh)
    assert [(one.kind, one.axes, one.payload, one.count) for one in found] == [(kind, "data", payload, 1)]
    assert unknown == 0


def test_bytes_of_a_type():
    assert [hlo.bytes_of(*x) for x in (("f32", "8,128"), ("bf16", "3"), ("pred", "4"), ("s4", "10"), ("u32", ""))] == [4096, 6, 4, 5, 4]
    program = hlo.parse(TPU)
    assert program.entry == "main"
    loop = next(i for i in program.computations["main"] if i.opcode == "while")
    assert loop.operands == ["start.1"]
    assert np.sum(loop.arrays()) == 4 + BYTES + 8 * 32 * 2
