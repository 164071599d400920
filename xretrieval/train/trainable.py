"""What trains: all of the tower, or the unit embeddings with some layers or with adapters. What does not train takes no optimizer memory.

Parameters are told apart by name. Where only upper layers train or have adapters, the stack of layers is cut in two, `lower_blocks` and
`blocks`; `whole` puts them together again and adds the adapters to their matrices.
"""

import dataclasses

import jax.numpy as jnp

from xretrieval.errors import UserError, check_fields
from xretrieval.model.tower import Params, TowerConfig, init_adapters

UNITS = "embedding.units_AD"
_ABOVE_THE_LAYERS = ("final_norm.", "dense.")


@dataclasses.dataclass(frozen=True)
class TrainableConfig:
    """What trains, beside the logit scale, which always does.

    Attributes:
      what: "all"; "units": the unit embeddings, with `top_layers` upper layers and what is above them; "lora": the unit embeddings and
        adapters (LoRA, arXiv 2106.09685) on the projections of attention and MLP.
      top_layers: how many upper layers train or have adapters; 0 is none for "units" and all for "lora".
      lora_rank, lora_alpha: of the adapters; they add alpha / rank * x A B.
    """

    what: str = "all"
    top_layers: int = 0
    lora_rank: int = 8
    lora_alpha: float = 16.0

    def __post_init__(self):
        check_fields(self)
        if self.what not in ("all", "units", "lora"):
            raise UserError(f"TrainableConfig.what = {self.what!r}: it must be all, units or lora")
        if self.what == "all" and self.top_layers:
            raise UserError(
                f"TrainableConfig.top_layers = {self.top_layers} with what = 'all': all layers train; set what to units or lora"
            )
        if self.lora_rank < 1:
            raise UserError(f"TrainableConfig.lora_rank = {self.lora_rank}: it must be 1 or more")

    @property
    def lora_scale(self) -> float:
        """alpha / rank."""
        return self.lora_alpha / self.lora_rank if self.what == "lora" else 0.0


def split(config: TrainableConfig, tower: TowerConfig, params: Params, seed: int) -> tuple[Params, Params]:
    """(what trains, what does not) of a tower's parameters, with fresh adapters where the config wants them.

    Raises:
      UserError: a tower without units where they are to train, or with fewer layers than `top_layers`.
    """
    if config.what == "all":
        return params, {}
    if UNITS not in params:
        raise UserError(f"TrainableConfig.what = {config.what!r}: this tower has no unit embeddings; set it to all")
    if not 0 <= config.top_layers <= tower.layers:
        raise UserError(f"TrainableConfig.top_layers = {config.top_layers}: it must be 0 to {tower.layers}, the tower's layers")
    if config.what == "units":
        # Without layers that train there is nothing to cut.
        lower = (tower.layers - config.top_layers) % tower.layers
        params = _cut(params, lower)
        moving = ("blocks.", *_ABOVE_THE_LAYERS) if config.top_layers else ()
        trained = {name for name in params if name == UNITS or name.startswith(moving or (UNITS,))}
    else:
        lower = (tower.layers - config.top_layers) % tower.layers
        params, adapters = _cut(params, lower), init_adapters(tower, lower, config.lora_rank, seed)
        params, trained = {**params, **adapters}, {UNITS, *adapters}
    return {n: x for n, x in params.items() if n in trained}, {n: x for n, x in params.items() if n not in trained}


def _cut(params: Params, lower: int) -> Params:
    """The stack in two, of which the lower has `lower` layers; as it is where that is 0."""
    if not lower:
        return params
    out = {name: x for name, x in params.items() if not name.startswith("blocks.")}
    for name in params.keys() - out.keys():
        out[f"lower_{name}"], out[name] = params[name][:lower], params[name][lower:]
    return out


def whole(config: TrainableConfig, trained: Params, frozen: Params) -> Params:
    """The tower's parameters in one stack, adapters added to their matrices in float32: what is exported and evaluated."""
    params = {**frozen, **trained}
    for name in [n for n in params if n.endswith(".lora_a_DK")]:
        prefix = name.removesuffix("lora_a_DK")
        a_DK, b_KF = params.pop(name), params.pop(f"{prefix}lora_b_KF")
        weight_DF = params[f"{prefix}weight_DF"]
        # A is split as the matrix' rows and B as its columns, so their product is split as the matrix.
        added_DF = jnp.einsum("ldk,lkf->ldf", a_DK, b_KF, precision="highest")
        params[f"{prefix}weight_DF"] = weight_DF + config.lora_scale * added_DF
    for name in [n for n in params if n.startswith("lower_blocks.")]:
        upper = name.removeprefix("lower_")
        params[upper] = jnp.concatenate([params.pop(name), params[upper]])
    return params
