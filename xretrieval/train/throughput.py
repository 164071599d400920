"""How much of the hardware a run uses: tokens, pairs and model FLOPs a second, and their share of what the chips can do."""

import dataclasses

import jax
import numpy as np

from xretrieval import chips
from xretrieval.data.schedule import Schedule
from xretrieval.model.tower import TowerConfig
from xretrieval.train.state import TrainState

# Looked up, not multiplied with; and multiplied with once for a sequence, not for a token.
_NOT_COUNTED = ("embedding.", "dense.")
# Of a norm: no matrix, and a product of its own for each number.
_SCALE = ".scale_D"


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """FLOPs that the model needs for a step, however it is computed: padding, masked tiles and what is computed twice do not count.

    tokens * (4 * frozen + 6 * trained) + 12 * heads * head_dim * (attended pairs of tokens over all layers) + 6 * B^2 * E

    where `frozen` and `trained` count the parameters of matrices that tokens go through (2 FLOPs a parameter and token forwards, 2 for the
    gradient of what comes in, 2 for that of the parameter); a sequence of n tokens has n^2 attended pairs in a global layer, those nearer than
    the window in a local one, half as many where causal; and the loss is three products of B x B x E.

    Attributes:
      tower: its config.
      trained, frozen: those counts.
    """

    tower: TowerConfig
    trained: int
    frozen: int

    @classmethod
    def of(cls, tower: TowerConfig, state: TrainState) -> "ModelFlops":
        """Of a state, abstract or not."""
        counts = [
            sum(x.size for name, x in params.items() if not (name.startswith(_NOT_COUNTED) or name.endswith(_SCALE)))
            for params in (state.params["tower"], state.frozen)
        ]
        return cls(tower, *counts)

    def step(self, lengths_B2: np.ndarray) -> float:
        """Of a step whose pairs have sides of these lengths."""
        tower, lengths_N = self.tower, lengths_B2.ravel().astype(np.float64)
        near_N = np.minimum(lengths_N, tower.window)
        local = np.sum(lengths_N * (2 * near_N - 1) - near_N * (near_N - 1)) if tower.window else 0.0
        in_global = tower.layers // tower.global_every
        attended = in_global * np.sum(lengths_N**2) + (tower.layers - in_global) * local
        attention = 12 * tower.heads * tower.head_dim * attended / (2 if tower.causal else 1)
        loss = 6 * len(lengths_B2) ** 2 * tower.embedding_width
        return float(np.sum(lengths_N) * (4 * self.frozen + 6 * self.trained) + attention + loss)


class Throughput:
    """Rates of steps.

    Args:
      schedule: of the run's batches. It gives the lengths of whole batches, on every host; this one is of its own, for a schedule keeps only
        the steps that it was last asked for, and the thread that reads batches is ahead of those that are done.
      flops: of a step.
      peak: FLOPs a second that the run's devices can do together; None where that is not known.
    """

    def __init__(self, schedule: Schedule, flops: ModelFlops, peak: float | None):
        self.schedule, self.flops, self.peak = Schedule(schedule.tasks, schedule.batch_size, schedule.seed), flops, peak

    @classmethod
    def of(cls, tower: TowerConfig, state: TrainState, schedule: Schedule, mesh: jax.sharding.Mesh) -> "Throughput":
        """Of a run on these devices."""
        chip = chips.by_device_kind(mesh.devices.flat[0].device_kind)
        return cls(schedule, ModelFlops.of(tower, state), chip.device_flops * mesh.size if chip else None)

    def rates(self, after: int, step: int, seconds: float) -> dict[str, float]:
        """Of the steps `after` + 1 to `step`, which took so many seconds together; tokens are those that are not padding."""
        lengths = [self.schedule.step(index)[1] for index in range(after, step)]
        per_second = sum(map(self.flops.step, lengths)) / seconds
        found = {
            "step_seconds": seconds / len(lengths),
            "steps_per_second": len(lengths) / seconds,
            "pairs_per_second": len(lengths) * self.schedule.batch_size / seconds,
            "tokens_per_second": float(sum(x.sum() for x in lengths)) / seconds,
            "model_flops_per_second": per_second,
        }
        return found | ({"mfu": per_second / self.peak} if self.peak else {})
