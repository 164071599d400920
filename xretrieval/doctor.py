"""What would stop or spoil a run is found before it starts: one line a check, OK or WRONG, on all hosts."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xretrieval import distributed, shared_folder
from xretrieval.errors import UserError

# Those that broke each other, or whose files and programs differ between releases; libtpu where it is installed.
_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "orbax-checkpoint", "optax", "numpy")
_SKEW = 5.0  # seconds that the clocks of hosts may differ by: far less than credentials allow, far more than NTP leaves
_FILES = 512  # that a process has open beside the records' shards: Orbax' writers, sockets to every host
_HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_CANARY_BYTES = (256 << 10, 4 << 20)  # a reduce-scatter has been right in the first size and wrong in the second


class Run(NamedTuple):
    """What of a run file is looked at.

    Attributes:
      configuration: all bindings, as `config.gin` keeps them.
      workdir: of the run.
      mesh_model, mesh_replica, batch_size, microbatches, keep_checkpoints: as of `train`.
      tower, optimizer, trainable: their configs.
      data: reads the records; gives `begin.TrainingData`.
    """

    configuration: str
    workdir: str
    mesh_model: int
    mesh_replica: int
    batch_size: int
    microbatches: int
    keep_checkpoints: int
    tower: Any
    optimizer: Any
    trainable: Any
    data: Callable[[], Any]


class Doctor:
    """Runs checks and prints what all processes found of each; `wrong` counts those that are not as they should be."""

    def __init__(self) -> None:
        self.wrong = 0

    @contextlib.contextmanager
    def check(self, name: str, same: bool = False) -> Iterator[list[str]]:
        """A check, which adds to the list what it found, or raises what is wrong; a line that differs between processes is said of each.

        With `same`, all must find the same. A check that can fail on one process alone waits for no other, or that one is waited for in vain.
        """
        found: list[str] = []
        wrong = ""
        try:
            yield found
        except (UserError, OSError, RuntimeError, ValueError) as error:
            wrong = str(error).splitlines()[0]
        said = distributed.gather("doctor", json.dumps([bool(wrong), wrong or "; ".join(found)]))
        by_line: dict[tuple[bool, str], list[int]] = {}
        for process, line in enumerate(said):
            by_line.setdefault(tuple(json.loads(line)), []).append(process)
        differ = same and len(by_line) > 1
        self.wrong += differ or any(bad for bad, _ in by_line)
        if distributed.first():
            for (bad, line), who in by_line.items():
                bad, line = bad or differ, f"{line}; this must be the same everywhere" if differ and not bad else line
                some = "" if len(who) == len(said) else f" [{', '.join(map(str, who[:8]))}{' …' if len(who) > 8 else ''}]"
                print(f"{'WRONG' if bad else 'OK   '}  {name}{some}: {line}", flush=True)


def examine(run: Run | None, initialization_timeout: int, heartbeat_timeout: int) -> int:
    """Prints every check; returns 1 where something is wrong, else 0. Each process of a run calls it inside `distributed.session`."""
    doctor = Doctor()
    looks = {"versions": _versions, "processes": _processes, "clocks": _clocks, "devices": _devices, "system": _system}
    for name, look in looks.items():
        with doctor.check(name, same=name in ("versions", "devices")) as found:
            found += look()
    with doctor.check("time limits", same=True) as found:
        found.append(f"{initialization_timeout} s for all to come, {heartbeat_timeout} s of silence until a process counts as lost")
    mesh = _examine_run(doctor, run) if run else None
    _collectives(doctor, mesh)
    return int(doctor.wrong > 0)


def _versions() -> list[str]:
    """Versions, the same on all hosts, and those that were tested where the tested set is at hand (a clone of the repository)."""
    have = {name: importlib.metadata.version(name) for name in _PACKAGES if importlib.util.find_spec(name.replace("-checkpoint", ""))}
    package = pathlib.Path(__file__).parent
    text = f"Python {sys.version_info[0]}.{sys.version_info[1]}, " + ", ".join(f"{name} {version}" for name, version in have.items())
    text += f", xretrieval with source {_source(package)}"
    path = package.parent / "constraints/py{}{}.txt".format(*sys.version_info[:2])
    if not path.exists():
        return [text, "the tested set is in a clone of the repository only"]
    tested = dict(line.split("==") for line in path.read_text().splitlines() if "==" in line)
    other = [f"{name} {version} (tested: {tested[name]})" for name, version in have.items() if tested.get(name, version) != version]
    if other:
        raise UserError(f"{', '.join(other)}; pip install --constraint {path} …")
    return [text]


def _source(package: pathlib.Path) -> str:
    """Fingerprint of the program: hosts with another one would compile another step."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _processes() -> list[str]:
    if distributed.alone():
        return ["1, on its own; it needs no coordinator"]
    names = distributed.gather("names", distributed.name_of(distributed.me()))
    # Who is here has met the others at the coordinator's port; where that is taken, or not reached, the start itself says so.
    return [f"{len(names)}, from {names[0]}, the coordinator, to {names[-1]}"]


def _clocks() -> list[str]:
    distributed.barrier("clocks")
    times = [float(text) for text in distributed.gather("clocks", repr(time.time()))]
    skew = max(times) - min(times)
    if skew > _SKEW:
        early, late = times.index(min(times)), times.index(max(times))
        raise UserError(f"{distributed.name_of(late)} is {skew:.1f} s ahead of {distributed.name_of(early)}; run NTP on both")
    return [f"within {skew:.2g} s of each other"]


def _devices() -> list[str]:
    import jax

    local = jax.local_devices()
    kind = f"{len(local)} {local[0].device_kind} ({local[0].platform})"
    idle = {"tpu": "/dev/accel0", "gpu": "/dev/nvidia0"}
    for platform, path in idle.items():
        if local[0].platform == "cpu" and os.path.exists(path):
            raise UserError(
                f"{path} is there and JAX runs on the CPU: JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS')!r}, or the extra `{platform}` is missing"
            )
    return [f"{kind} a process, {jax.device_count()} in all"]


def _system() -> list[str]:
    import jax

    setting = _HUGE_PAGES.read_text().partition("[")[2].partition("]")[0] if _HUGE_PAGES.exists() else "unknown"
    if setting == "never" or (jax.default_backend() == "tpu" and setting != "always"):
        raise UserError(f"transparent huge pages are {setting!r}: slower start and steps; echo always > {_HUGE_PAGES}")
    return [f"{len(os.sched_getaffinity(0))} cores, transparent huge pages {setting}"]


def _examine_run(doctor: Doctor, run: Run) -> Any:
    """Returns the mesh of the run, or None where there is none."""
    from xretrieval import mesh as mesh_lib
    from xretrieval.model.tower import check_mesh
    from xretrieval.train.begin import check_whole

    mesh = data = None
    with doctor.check("configuration", same=True) as found:
        found.append(_configuration(run.configuration))
    with doctor.check("workdir") as found:
        found.append(shared_folder.check(run.workdir))
    with doctor.check("mesh", same=True) as found:
        check_whole(batch_size=run.batch_size, microbatches=run.microbatches, keep_checkpoints=run.keep_checkpoints)
        mesh = mesh_lib.make_mesh(run.mesh_model, run.mesh_replica)
        check_mesh(run.tower, mesh)
        mesh_lib.check_batch(run.batch_size, mesh, run.microbatches)
        axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        parts = f" in {run.microbatches} microbatches" if run.microbatches > 1 else ""
        found.append(f"{axes}, {run.batch_size // mesh_lib.batch_shards(mesh)} pairs a data shard{parts}")
    with doctor.check("records", same=True) as found:
        data = run.data()
        pairs = sum(len(task.records.lengths_N2) for task in data.tasks)
        fingerprint = hashlib.sha256(json.dumps(data.identity, sort_keys=True).encode()).hexdigest()[:16]
        found.append(f"{len(data.tasks)} tasks, {pairs:,} pairs, fingerprint {fingerprint}")
    with doctor.check("open files") as found:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit < _FILES:
            raise UserError(f"at most {limit} a process and about {_FILES} are needed; ulimit -n {8 * _FILES}")
        found.append(f"at most {limit:,} a process")
    with doctor.check("disk") as found:
        if mesh is None or data is None:
            raise UserError("without records and mesh a checkpoint's size is not known; mend those first")
        found.append(_disk(run, data))
    return mesh


def _configuration(text: str) -> str:
    """Its fingerprint, and what of it is other than process 0's."""
    # One text comes to all, not that of each to each.
    theirs = distributed.gather("configuration", text if distributed.first() else "")[0]
    mine, other = text.splitlines(), theirs.splitlines()
    said = [f"{line} is not process 0's" for line in mine if line not in other] + [
        f"{line} is process 0's" for line in other if line not in mine
    ]
    return "; ".join([f"fingerprint {hashlib.sha256(text.encode()).hexdigest()[:16]}", *said[:4]])


def _disk(run: Run, data: Any) -> str:
    """Room for the checkpoints that stay and the one that is being written, in the state's own bytes."""
    size, free = _state_bytes(run, data), shutil.disk_usage(run.workdir).free
    needed = size * (run.keep_checkpoints + 1)
    text = (
        f"{free / 1e9:,.1f} GB free in {run.workdir}; {run.keep_checkpoints} checkpoints and one being written take {needed / 1e9:,.2f} GB"
    )
    if free < needed:
        raise UserError(f"{text}: free some, or lower train.keep_checkpoints")
    return text


def _state_bytes(run: Run, data: Any) -> int:
    import jax

    from xretrieval import mesh as mesh_lib
    from xretrieval.train import state as state_lib
    from xretrieval.train.optimizer import make_optimizer

    config = dataclasses.replace(run.tower, text_size=data.text_size, num_units=data.num_units)
    with jax.set_mesh(mesh_lib.make_mesh(run.mesh_model, run.mesh_replica)):
        state = state_lib.abstract(config, make_optimizer(run.optimizer, 1), run.trainable)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def _collectives(doctor: Doctor, mesh: Any) -> None:
    import jax

    from xretrieval import canary
    from xretrieval import mesh as mesh_lib
    from xretrieval.model.embedding import check_lookup

    # Where one process has no mesh, or another one, its collectives would wait for the others' in vain.
    agreed = len(set(distributed.gather("mesh", repr(mesh and mesh.shape)))) == 1
    with jax.set_mesh(mesh if mesh and agreed else mesh_lib.make_mesh()):
        with doctor.check("embedding lookup") as found:
            check_lookup()
            found.append("equal to NumPy, and so is its gradient")
        for size in _CANARY_BYTES:
            with doctor.check(f"reduce-scatter of {size >> 10:,} KiB") as found:
                chunk = canary.check_reduce_scatter(size)
                found.append("equal to NumPy" + ("" if chunk == size else f", in chunks of {chunk:,} bytes"))
