"""`xretrieval plan` from the command line: programs compiled for a v5e slice, on a machine without one."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xretrieval import main
from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape
from xretrieval.errors import UserError
from xretrieval.model.tower import ComputeConfig, TowerConfig
from xretrieval.plan import memory, programs, report, search, topology
from xretrieval.plan.plan import rows_of
from xretrieval.plan.topology import parse
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig
from xretrieval.train.trainable import TrainableConfig

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed here (extra `tpu`): nothing was compiled for a TPU"
)
ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
    **{"text_size": 700, "width": 256, "layers": 3, "heads": 2, "kv_heads": 1, "head_dim": 128, "mlp_hidden": 512, "max_positions": 512},
    # No local layers: they would be a second kernel, and twice the time to compile.
    **{"window": 0, "global_every": 1, "row_multiple": 256},
}
FLAGS = [f"--gin.TowerConfig.{name}={value}" for name, value in SMALL.items()] + ["--gin.plan_pod.num_units=100", "--set", "MODEL_AXIS=1"]
BATCH = 1024


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """(exit code, JSON) of the pod's run file with a small tower, for v5e:4x4."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    files = ["--gin_file", str(ROOT / "gin_configs/runs/pod.gin")]
    code = main.main(["plan", *files, *FLAGS, "--set", f"BATCH={BATCH}", "--topology", "v5e:4x4", "--json", str(path)])
    return code, json.loads(path.read_text())


def run_of(**changes) -> programs.Run:
    compute = ComputeConfig(attention="splash", dtype="bfloat16", remat=True)
    tower = TowerConfig(num_units=100, **SMALL)
    run = programs.Run(tower, compute, LossConfig(), OptimizerConfig(), TrainableConfig(), BATCH, Shape(512, 21, 32), 1)
    return dataclasses.replace(run, **changes)


@needs_libtpu
def test_it_fits_and_the_state_is_split_over_all_chips(planned):
    code, plan = planned
    assert code == 0
    assert plan["topology"]["chips"] == plan["mesh"]["data"] == 16
    used = plan["step"]["memory"]
    assert used["arguments"] + used["outputs"] + used["temporaries"] + used["code"] == used["peak"] < plan["chip"]["hbm_usable"]
    # Parameters and both moments lie on their shards; norms and what a tile of 8 x 128 rounds up are small.
    batch = 3 * 4 * 21 * 512 + 6 * 4 * BATCH // 16
    assert plan["state"]["ideal"] <= plan["state"]["device"] <= used["arguments"] - batch < 1.15 * plan["state"]["ideal"]
    # The outputs take the place of the arguments: the state is donated.
    assert used["aliased"] > 0.9 * plan["state"]["device"]


@needs_libtpu
def test_every_layer_gathers_its_weights_forwards_and_again_backwards(planned):
    _, plan = planned
    # Seven matrices a layer, in bfloat16, twice (remat), each whole on every chip; and their gradients.
    tower = run_of().tower
    layers = 3 * SMALL["layers"] * tower.width * (4 * 128 + 2 * 128 + 3 * tower.mlp_hidden) * 2
    # Both tables, 768 and 256 rows: gathered in bfloat16, gradients summed in float32. Of the loss there is what it sends alone.
    tables = 1024 * tower.width * (2 + 4)
    loss = sum(one["payload"] * one["count"] for one in plan["loss"]["collectives"])
    whole = sum(one["payload"] * one["count"] for one in plan["step"]["collectives"])
    # Norms, metrics and the gradient's norm are the rest.
    assert layers + tables + loss <= whole <= 1.05 * (layers + tables + loss)
    assert {one["axes"] for one in plan["step"]["collectives"]} == {"data"}
    assert plan["step"]["unknown_loops"] == 0


@needs_libtpu
def test_the_loss_alone_gathers_one_side_in_bfloat16(planned):
    _, plan = planned
    gathered = [one for one in plan["loss"]["collectives"] if one["kind"] == "all-gather"]
    assert [(one["payload"], one["count"]) for one in gathered] == [(BATCH * SMALL["width"] * 2, 1)]
    assert 0 < plan["loss"]["sent"] < plan["step"]["sent"]


@needs_libtpu
def test_roofline_names_what_binds(planned):
    _, plan = planned
    times = {name: plan["step"]["roofline"][name] for name in ("compute", "hbm", "ici", "dcn")}
    assert times["dcn"] == 0
    assert times[plan["step"]["roofline"]["bound"]] == max(times.values())
    assert times["compute"] == plan["step"]["count"]["bf16_flops"] / plan["chip"]["flops"]
    # The embed step runs the layers once, where a train step with remat runs them four times over.
    assert 3.8 < plan["step"]["count"]["flops"] / plan["embed"]["count"]["flops"] < 5.5


@needs_libtpu
def test_the_attention_kernel_itself_is_compiled_and_the_dense_way_too():
    where = parse("v5e:4x4")
    mesh = programs.mesh_of(where, 1, 1)
    tiny = run_of(tower=dataclasses.replace(run_of().tower, layers=1), shape=Shape(256, 2, 8))
    splash = programs.compile_traced(programs.trace_embed(tiny, mesh), tiny, where, mesh)
    dense_run = dataclasses.replace(tiny, compute=ComputeConfig())
    dense = programs.compile_traced(programs.trace_embed(dense_run, mesh), dense_run, where, mesh)
    assert ("tpu_custom_call" in splash.text, "tpu_custom_call" in dense.text) == (True, False)
    assert splash.count.attention > 0 == dense.count.attention


@needs_libtpu
def test_what_does_not_fit_says_by_how_much_and_what_to_change():
    where = parse("v5e:2x2")
    mesh = mesh_lib.make_mesh(devices=where.devices()[:1])
    huge = jax.ShapeDtypeStruct((1 << 18, 1 << 15), "float32", sharding=mesh_lib.sharding(mesh))
    traced = jax.jit(lambda x: (x + 1, x @ jnp.ones((1 << 15, 8)))).trace(huge)
    found = programs.compile_traced(traced, run_of(), where, mesh)
    assert found.memory is None
    # An argument and a result of 32 GiB each.
    assert found.too_much.limit == where.chip.hbm_usable
    assert 32 * 2**30 <= found.too_much.used < 80 * 2**30
    state = programs.State(1, 1, 16 * 2**20, 2**20)
    plan = report.Plan(where, dict(mesh.shape), run_of(), state, found, found, found)
    assert any("microbatches" in line for line in report.advice(plan))
    bare = dataclasses.replace(plan, run=run_of(compute=ComputeConfig()))
    assert [line.split(" = ")[0] for line in report.advice(bare)[:3]] == [
        "ComputeConfig.dtype",
        "ComputeConfig.remat",
        "ComputeConfig.attention",
    ]
    # Where the state alone is too much, no batch helps.
    large = dataclasses.replace(plan, state=dataclasses.replace(state, device=2**40))
    assert report.advice(large)[0] == "a larger slice"
    assert json.dumps(plan.content())
    report.show(plan)


@pytest.mark.parametrize(
    "message,used,limit",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 33.27G of 30.75G hbm. Exceeded by 2.5G",
            33.27 * 2**30,
            30.75 * 2**30,
        ),
        ("the total memory required for HLO temporaries (2.50T) exceeds available HBM (15.75G).", 2.5 * 2**40, 15.75 * 2**30),
    ],
)
def test_the_compiler_s_words_about_memory(message, used, limit):
    assert memory.too_much(RuntimeError(message)) == memory.TooMuch(int(used), int(limit))
    assert memory.too_much(RuntimeError("INTERNAL: something else")) is None


@pytest.mark.parametrize(
    "name,slices,message",
    [
        ("v7:4x4", 1, "v4, v5e, v5p, v6e, ironwood"),
        ("v5e:4x4x4", 1, "has 2 axes, as in 4x4"),
        ("v5p:16x16", 1, "has 3 axes, as in 2x2x1"),
        ("v5e", 1, "has 2 axes"),
        ("v5e:3x5", 1, "multiples of 2x2"),
        ("v5e:6x10", 1, "those of v5e are 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5e:32x32", 1, "256 chips of v5e are the most"),
        ("v5e:4x4", 0, "--slices 0"),
    ],
)
def test_a_slice_that_there_is_not(name, slices, message):
    with pytest.raises(UserError, match=message):
        parse(name, slices)


@needs_libtpu
@pytest.mark.parametrize(
    "name,slices,devices,kind",
    [("v4:2x2x2", 1, 8, "TPU v4"), ("v5p:4x4x8", 1, 128, "TPU v5"), ("v6e:4x4", 2, 32, "TPU v6 lite"), ("ironwood:2x2x1", 1, 8, "TPU7x")],
)
def test_slices_that_there_are(name, slices, devices, kind):
    where = parse(name, slices)
    found = where.devices()
    assert (len(found), found[0].device_kind) == (devices, kind)
    assert where.chips * where.chip.devices == devices
    mesh = programs.mesh_of(where, 2, slices)
    assert mesh.shape == {"replica": slices, "data": devices // 2 // slices, "model": 2}
    # `data` and `model` never leave a slice.
    for slice_ in mesh.devices.reshape(slices, -1):
        assert len({getattr(device, "slice_index", 0) for device in slice_}) == 1


def test_bandwidth_of_a_group_by_where_its_chips_lie():
    where, edge = parse("v5e:16x16"), parse("v5e:8x8")
    ring = [[x, 0, 0] for x in range(16)]
    plane = [[x, y, 0] for x in range(16) for y in range(16)]
    one, whole, part = 2 * where.chip.ici, 4 * where.chip.ici, where.chip.ici
    found = [topology.bandwidth(t, np.array(c)) for t, c in ((where, ring), (where, plane), (where, ring[:4]), (edge, ring[:8]))]
    assert found == [(one, 8), (whole, 16), (part, 3), (part, 7)]


@pytest.mark.parametrize(
    "name,rings",
    [
        ("v5p:2x2x4", (False, False, False)),
        ("v5p:2x4x4", (False, False, False)),
        ("v4:4x4x4", (True, True, True)),
        ("ironwood:4x8x12", (True, True, True)),
        ("v5e:8x16", (False, True)),
        ("v6e:4x4", (False, False)),
    ],
)
def test_axes_are_rings_in_whole_cubes_and_at_16(name, rings):
    where = parse(name)
    assert tuple(where.wraps(axis) for axis in range(len(where.shape))) == rings
    # A group along the last axis: both directions of it where it is a ring.
    along = np.array([[0] * (len(rings) - 1) + [i] for i in range(where.shape[-1])])
    assert topology.bandwidth(where, along)[0] == where.chip.ici * (2 if rings[-1] else 1)


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--topology", "v5e:4x4"], "TowerConfig.text_size is 0"),
        (["--topology", "v9:4x4", *FLAGS], "no TPU is called 'v9'"),
        (["--topology", "v5e:4x4", *FLAGS, "--set", "BATCH=1000"], "1000 does not divide over 16"),
        (["--topology", "v5e:4x4", *FLAGS, "--set", "train.row_length=200"], "train.row_length = 200 is not a multiple"),
        (["--topology", "v5e:4x4", *FLAGS, "--set", "train.row_length=0"], "train.row_length = 0: give a whole number, 1 or more"),
        (["--topology", "v5e:4x4", *FLAGS, "--set", "train.rows=0"], "train.rows = 0: give a whole number, 1 or more"),
        (["--topology", "v5e:4x4", *FLAGS, "--set", "MICROBATCHES=0"], "train.microbatches = 0: give a whole number, 1 or more"),
        (
            ["--topology", "v5e:4x4", *FLAGS, "--set", "BATCH=256", "--set", "MICROBATCHES=3"],
            "train.microbatches = 3 does not divide the 16 pairs",
        ),
        (
            ["--topology", "v5e:4x4", "--slices", "2", *FLAGS],
            "train.mesh_replica = 1 is no multiple of the 2 slices; set train.mesh_replica to 2",
        ),
        (["--topology", "v5e:4x4", *FLAGS, "--set", "plan_pod.tokens_per_pair=0"], "plan_pod.tokens_per_pair = 0: give the mean"),
        (["--topology", "v5e:4x4", *FLAGS, "--set", "plan_pod.num_units=0"], "plan_pod.num_units = 0: give a whole number"),
        (["--topology", "v5e:4x4", "--set", "MODEL_AXIS=3", *FLAGS[:-2]], "does not divide 16 devices"),
    ],
)
@needs_libtpu
def test_refusals(flags, message, capsys):
    assert main.main(["plan", "--gin_file", str(ROOT / "gin_configs/runs/pod.gin"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_rows_hold_the_tokens_and_five_percent_more():
    assert rows_of(4096, 16, 160, 512) == 84  # 4,096 x 160 x 1.05 / 16 / 512 = 84.0
    assert rows_of(16, 16, 10, 512) == 1


def test_the_search_ends_between_two_batches_that_are_close(monkeypatch):
    """Memory in proportion to the batch, as no compiler would have it exactly: the search sees 3 % noise."""
    where = parse("v5e:4x4")
    compiled = []

    def used(batch: int) -> int:
        return int(2**20 + batch * 1e6 * (1.03 if batch % 3 else 1.0))

    def stand_in(traced, run, *_):
        compiled.append(run.batch_size)
        assert run.shape.rows == -(-run.batch_size * 21 // BATCH)
        return programs.Compiled(memory.Memory(used(run.batch_size), 0, 0, 0, 0), None, None, [], 0, None, 0.0, "")

    monkeypatch.setattr(programs, "compile_traced", stand_in)
    monkeypatch.setattr(programs, "trace_step", lambda *_: None)
    mesh = mesh_lib.make_mesh()
    first = stand_in(None, run_of())
    plan = report.Plan(where, dict(mesh.shape), run_of(), programs.State(1, 1, 16 * 2**20, 2**20), first, first, first)
    found = search.largest(plan, mesh)
    limit = where.chip.hbm_usable
    assert used(found["largest"]) <= limit < used(int(found["largest"] * 1.06))
    assert len(compiled) - 1 <= 6
    assert found["largest"] % mesh.size == 0
