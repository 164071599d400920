"""NaN and infinity in a parameter, in a gradient and in what the data bring: no update is made of them, and no checkpoint holds one.

Data are whole numbers: what they can bring is a token beyond the table, which JAX would clamp to its last row.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from benchmarks import tiny_run
from xretrieval.errors import UserError
from xretrieval.train import checkpoint, run
from xretrieval.train.loss import LossConfig


@dataclasses.dataclass
class Found:
    """Runs into which something was put, those that stopped with the line that says so, and the checkpoints of all that hold a number that is not finite."""

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


def _cases(folder: pathlib.Path) -> Iterator[tuple[Callable, dict, str]]:
    """(the step, settings of the run, pattern of what is said): one of the first two is the fault."""
    for name in ("blocks.mlp.down.weight_DF", "final_norm.scale_D", "embedding.units_AD", "embedding.text_VD"):
        for value in (np.nan, np.inf):
            # The last row of a table is padding, of which no loss or gradient knows.
            said = f"params/tower/{name} holds numbers" if name.startswith("embedding.") else "step 6: the loss is .* not applied"
            yield _in_a_parameter(name, value, 6), {}, said
    for weight, what in ((1e25, "gradient norm"), (1e39, "loss")):
        yield run.train_step, {"loss": LossConfig(spread_out_weight=weight)}, f"step 1: the {what} is inf, its update was not applied"
    data = tiny_run.data(folder / "outside")
    yield run.train_step, {"data": dataclasses.replace(data, text_size=20, num_units=10)}, "token .* is outside the vocabulary of 30"


def sweep(folder: pathlib.Path) -> Found:
    """Runs all cases."""
    found = Found()
    for number, (step, settings, said) in enumerate(_cases(folder)):
        workdir = folder / str(number)
        found.injected += 1
        real, run.train_step = run.train_step, step
        try:
            tiny_run.run(workdir, **settings)
        except UserError as error:
            found.stopped += re.search(said, str(error)) is not None
        finally:
            run.train_step = real
        for kept in checkpoint.steps(workdir / "train"):
            arrays = jax.tree.leaves(ocp.load(workdir.resolve() / "train/checkpoints" / str(kept)))
            found.checkpoints_not_finite += not all(np.isfinite(x).all() for x in arrays)
    return found
