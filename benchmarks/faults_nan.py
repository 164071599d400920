"""NaN and infinity in a parameter, in a gradient and in what the data bring: no update is made of them, and no checkpoint holds one."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from benchmarks import tiny_run
from xretrieval.errors import UserError
from xretrieval.train import checkpoint, run
from xretrieval.train.loss import LossConfig


@dataclasses.dataclass
class Found:
    """Runs into which something was put, those that stopped with a line, and the checkpoints of all that hold a number that is not finite."""

    injected: int = 0
    stopped: int = 0
    checkpoints_not_finite: int = 0


def _in_a_parameter(name: str, value: float, at: int) -> Callable:
    """The real step, given a state whose parameter has `value` in its last entry from step `at` on."""
    step, count = run.train_step, [0]

    def poisoned(state, batch, config, optimizer):
        count[0] += 1
        if count[0] == at:
            with jax.transfer_guard("allow"):
                array = state.params["tower"][name]
                values = np.array(array)
                values.flat[-1] = value
                state.params["tower"][name] = jax.device_put(values, array.sharding)
        return step(state, batch, config=config, optimizer=optimizer)

    return poisoned


def _cases(folder: pathlib.Path) -> Iterator[tuple[Callable, dict]]:
    """(the step, settings of the run): one of each is the fault."""
    for name in ("blocks.mlp.down.weight_DF", "final_norm.scale_D", "embedding.units_AD", "embedding.text_VD"):
        for value in (np.nan, np.inf):
            # The last row of a table is padding, of which no loss or gradient knows.
            yield _in_a_parameter(name, value, 6), {}
    for weight in (1e25, 1e38):  # the norm of the gradient overflows; and the loss
        yield run.train_step, {"loss": LossConfig(spread_out_weight=weight)}
    data = tiny_run.data(folder / "outside")
    yield run.train_step, {"data": dataclasses.replace(data, text_size=20, num_units=10)}  # tokens beyond the table: JAX would clamp them


def sweep(folder: pathlib.Path) -> Found:
    """Runs all cases."""
    found = Found()
    for number, (step, settings) in enumerate(_cases(folder)):
        workdir = folder / str(number)
        found.injected += 1
        with mock.patch.object(run, "train_step", step):
            try:
                tiny_run.run(workdir, **settings)
            except UserError:
                found.stopped += 1
        for kept in checkpoint.steps(workdir / "train"):
            arrays = jax.tree.leaves(ocp.load(workdir.resolve() / "train/checkpoints" / str(kept)))
            found.checkpoints_not_finite += not all(np.isfinite(x).all() for x in arrays)
    return found
