"""A plan as tables on the screen and as JSON."""

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from xretrieval.plan.collectives import Collective
from xretrieval.plan.programs import Compiled, Run, State
from xretrieval.plan.topology import Topology

_NAMES = {"compute": "matrix units", "hbm": "memory", "ici": "links between chips", "dcn": "network between slices"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is known of a run on a slice."""

    topology: Topology
    mesh: dict[str, int]
    run: Run
    state: State
    step: Compiled
    loss: Compiled
    embed: Compiled

    @property
    def looked_up(self) -> int:
        """Bytes a device of the embeddings that are looked up for a whole batch and kept while its microbatches run."""
        shape, size = self.run.shape, 2 if self.run.compute.dtype == "bfloat16" else 4
        return self.run.microbatches * shape.rows * shape.row_length * self.run.tower.width * size

    @property
    def ideal_state(self) -> float:
        """Bytes of the state a device, were all of it split evenly."""
        return self.state.whole / (self.topology.chips * self.topology.chip.devices)

    def content(self) -> dict[str, Any]:
        """For JSON; bytes, operations and seconds a device and step."""
        run = self.run
        return {
            "topology": {"name": self.topology.name, "slices": self.topology.slices, "chips": self.topology.chips},
            "chip": dataclasses.asdict(self.topology.chip),
            "mesh": self.mesh,
            "run": {**dataclasses.asdict(run), "shape": run.shape._asdict()},
            "state": {**dataclasses.asdict(self.state), "ideal": self.ideal_state},
            "looked_up_bytes": self.looked_up,
            **{name: _content(getattr(self, name)) for name in ("step", "loss", "embed")},
            "advice": advice(self),
        }


def _content(compiled: Compiled) -> dict[str, Any]:
    out = {name: value for name, value in dataclasses.asdict(compiled).items() if name not in ("text", "sends")}
    out["memory"] = out["memory"] and {**out["memory"], "peak": compiled.memory.peak if compiled.memory else None}
    out["roofline"] = out["roofline"] and {**out["roofline"], "bound": compiled.roofline.bound if compiled.roofline else None}
    sends = [{**dataclasses.asdict(one), "sent": one.sent} for one in compiled.sends]
    return {**out, "collectives": [{k: v for k, v in one.items() if k != "ids"} for one in sends], "sent": compiled.sent}


def advice(plan: Plan) -> list[str]:
    """What to change in a run whose step does not fit, what costs least first; nothing where it fits."""
    if plan.step.too_much is None:
        return []
    run, limit = plan.run, plan.step.too_much.limit
    if plan.state.device > limit:
        return ["a larger slice", *(["TrainableConfig.what = 'lora' or 'units'"] if run.trainable.what == "all" else [])]
    return [
        *(["ComputeConfig.dtype = 'bfloat16'"] if run.compute.dtype != "bfloat16" else []),
        *(["ComputeConfig.remat = True"] if not run.compute.remat else []),
        *(["ComputeConfig.attention = 'splash'"] if run.compute.attention == "dense" else []),
        f"train.microbatches = {2 * run.microbatches} or more",
        "a smaller train.batch_size",
        "train.mesh_model = 2 or more",
        "a larger slice",
    ]


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count:,.0f} B"


def show(plan: Plan) -> None:
    """Prints the tables."""
    run, topology = plan.run, plan.topology
    axes = " x ".join(f"{name} {length}" for name, length in plan.mesh.items())
    parts = f" in {run.microbatches} microbatches" if run.microbatches > 1 else ""
    print(f"{topology.name}{f' x {topology.slices} slices' if topology.slices > 1 else ''}: {topology.chips} chips, mesh {axes}")
    print(f"{plan.state.parameters:,} parameters, {plan.state.trained:,} of them trained")
    print(
        f"{run.batch_size:,} pairs a step{parts}; {run.shape.rows} rows of {run.shape.row_length} tokens a data shard{' and part' if parts else ''}, "
        f"up to {run.shape.num_segments} segments each; {run.compute.attention} attention, {run.compute.dtype}"
        + (", each layer computed again" if run.compute.remat else "")
    )
    console = Console(width=110)
    console.print(_memory(plan))
    if plan.step.sends:
        console.print(_sends("the train step sends, a device", plan.step.sends))
        console.print(_sends("of which the loss (compiled alone)", plan.loss.sends))
    if plan.step.roofline:
        console.print(_times(plan))
    print(f"looked-up tokens that microbatches keep: {size(plan.looked_up)} a device")
    for name, compiled in (("train step", plan.step), ("embed step", plan.embed)):
        if compiled.too_much:
            over = compiled.too_much.used - compiled.too_much.limit
            print(
                f"the {name} does not fit: it needs {size(compiled.too_much.used)} of {size(compiled.too_much.limit)} a device, {size(over)} too much"
            )
        if compiled.unknown_loops or compiled.count.unknown_loops:
            print(f"the {name} has loops whose number of turns depends on data; what is in them counts once")
    if found := advice(plan):
        print("to make it fit: " + "; ".join(found))


def _memory(plan: Plan) -> Table:
    table = Table("bytes a device", "train step", "embed step", title=None)
    rows = {
        "state and batch (arguments)": "arguments",
        "other outputs": "outputs",
        "temporaries": "temporaries",
        "program": "code",
        "peak": "peak",
    }
    programs = (plan.step, plan.embed)
    for label, name in rows.items():
        table.add_row(label, *(size(getattr(p.memory, name)) if p.memory else "-" for p in programs))
    chip = plan.topology.chip
    usable = chip.hbm_usable / chip.devices
    table.add_row(f"of {size(usable)}", *(f"{p.memory.peak / usable:.0%}" if p.memory else "does not fit" for p in programs))
    table.add_row("state, split evenly", size(plan.ideal_state), "")
    return table


def _sends(title: str, sends: list[Collective]) -> Table:
    table = Table("collective", "axis", "devices", "count", "bytes sent", title=title, title_justify="left")
    grouped: dict[tuple, tuple[int, float]] = {}
    for one in sends:
        key = one.kind, f"{one.axes} (between slices)" if one.between else one.axes, one.group
        count, sent = grouped.get(key, (0, 0.0))
        grouped[key] = count + one.count, sent + one.sent
    for key, (count, sent) in sorted(grouped.items(), key=lambda item: -item[1][1]):
        table.add_row(*map(str, key), f"{count:,}", size(sent))
    return table


def _times(plan: Plan) -> Table:
    table = Table("at best, ms a step", "train step", "embed step", title_justify="left")
    programs = [p for p in (plan.step, plan.embed) if p.roofline]
    table.add_row("operations (10^12)", *(f"{p.count.flops / 1e12:,.2f}" for p in programs))
    for name, label in _NAMES.items():
        if name != "dcn" or plan.topology.slices > 1:
            table.add_row(label, *(f"{getattr(p.roofline, name) * 1e3:,.2f}" for p in programs))
    table.add_row("bound by", *(_NAMES[p.roofline.bound] for p in programs if p.roofline))
    seconds = plan.step.roofline.seconds if plan.step.roofline else 0.0
    table.add_row("pairs a second, at most", f"{plan.run.batch_size / seconds:,.0f}" if seconds else "-", "")
    return table


def show_batch(found: dict[str, Any]) -> None:
    """Prints what the search for the largest batch found."""
    tried = ", ".join(f"{batch:,} {'fits' if fits else 'does not'}" for batch, fits in found["tried"])
    largest = f"{found['largest']:,} pairs" if found["largest"] else "none that was tried"
    print(f"largest batch that fits: {largest} ({tried})")
