"""The one tower that embeds both sides: extended embedding, decoder stack, pooling of each segment, dense heads, unit norm."""

import dataclasses
import math
from typing import NoReturn

import jax
import jax.numpy as jnp
from flax import nnx

from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError, check_fields
from xretrieval.model.attention import WAYS, AttentionConfig
from xretrieval.model.embedding import ExtendedEmbedding
from xretrieval.model.pooling import DenseHead, last_pool, mean_pool, unit_norm
from xretrieval.model.transformer import Block, RMSNorm, Rows, StackConfig, rope_tables, run_stack


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """The numbers of a tower; `gin_configs/models/` has those of released LLMs.

    Attributes:
      text_size, num_units: t and a. They come from the vocabulary, so a run's config leaves them at 0.
      width, layers, heads, kv_heads, head_dim, mlp_hidden: D, the number of layers, H, G, C, M.
      activation: "gelu" (tanh form) or "silu", of the gated MLP.
      norm_plus_one: RMSNorm multiplies by 1 + scale (Gemma), not by scale (Qwen3).
      norm_epsilon: added to the mean square.
      qk_norm: queries and keys are normalised a head.
      post_norms: what attention and MLP add is normalised (Gemma 2, 3).
      scale_embedding: looked-up rows are multiplied by sqrt(D) (Gemma).
      query_scale: attention logits are divided by its square root; 0 is `head_dim`.
      softcap: of attention logits (Gemma 2); 0 is none.
      window: a token of a local layer sees those at a distance below it; 0: no layer is local.
      global_every: layers global_every - 1, 2 * global_every - 1, … are global, the others local.
      rope_base, rope_factor: base of rotary positions in global layers, and what positions are divided by there.
      rope_local_base: base in local layers.
      max_positions: tokens of the longest sequence.
      causal: nothing sees what is after it.
      pooling: "mean" of a sequence's tokens, or its "last".
      dense: widths of the dense heads after pooling (EmbeddingGemma).
      row_multiple: the rows of each embedding table are padded to a multiple of it.
    """

    text_size: int = 0
    num_units: int = 0
    width: int = 128
    layers: int = 2
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 64
    mlp_hidden: int = 512
    activation: str = "gelu"
    norm_plus_one: bool = True
    norm_epsilon: float = 1e-6
    qk_norm: bool = True
    post_norms: bool = True
    scale_embedding: bool = True
    query_scale: float = 0.0
    softcap: float = 0.0
    window: int = 0
    global_every: int = 1
    rope_base: float = 10_000.0
    rope_local_base: float = 10_000.0
    rope_factor: float = 1.0
    max_positions: int = 1024
    causal: bool = True
    pooling: str = "mean"
    dense: tuple[int, ...] = ()
    row_multiple: int = 128

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "dense", tuple(self.dense))
        for name, choices in (("activation", ("gelu", "silu")), ("pooling", ("mean", "last"))):
            if getattr(self, name) not in choices:
                raise UserError(f"TowerConfig.{name} = {getattr(self, name)!r}: it must be {' or '.join(choices)}")
        if self.heads % self.kv_heads:
            raise UserError(f"TowerConfig.heads = {self.heads} is not a multiple of TowerConfig.kv_heads = {self.kv_heads}")
        if (self.window == 0) != (self.global_every == 1):
            raise UserError(
                f"TowerConfig.window = {self.window} and TowerConfig.global_every = {self.global_every}: a window needs local layers, and local layers a window"
            )

    @property
    def vocab_size(self) -> int:
        """t + a."""
        return self.text_size + self.num_units

    @property
    def embedding_width(self) -> int:
        """E."""
        return self.dense[-1] if self.dense else self.width


def check_mesh(config: TowerConfig, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """UserError where the axes of a mesh do not divide a tower; every tower that is made is checked, and a run before its data are read."""
    model, data = mesh.shape["model"], mesh.shape["data"]

    def refuse(names: str, why: str, what: str) -> NoReturn:
        raise UserError(f"{names} and train.mesh_model = {model}: {why}; set {what}")

    for name in ("heads", "mlp_hidden"):
        if (size := getattr(config, name)) % model:
            refuse(f"TowerConfig.{name} = {size}", "the second does not divide the first", f"train.mesh_model to a divisor of {size}")
    if (size := config.kv_heads) % model and model % size:
        refuse(f"TowerConfig.kv_heads = {size}", "neither divides the other", f"train.mesh_model to a divisor of {size}")
    # Every parameter is split over both.
    chips = f"mesh_model and mesh_replica leave {data} devices to the axis `data`, and"
    for name, size in (("kv_heads * TowerConfig.head_dim", config.kv_heads * config.head_dim), ("mlp_hidden", config.mlp_hidden)):
        if size % (model * data):
            refuse(f"TowerConfig.{name} = {size}", f"{chips} {model} x {data} does not divide it", "train.mesh_replica higher")
    for size in (config.width, *config.dense)[: len(config.dense)]:
        if size % data:
            what = "train.mesh_model or train.mesh_replica higher"
            refuse(f"TowerConfig.dense, width {size}", f"{chips} {data} does not divide it", what)
    if config.row_multiple % (model * data):
        rows = math.lcm(config.row_multiple, model * data)
        refuse(f"TowerConfig.row_multiple = {config.row_multiple}", f"{chips} {model} x {data} does not divide it", f"it to {rows}")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a tower is computed: nothing here changes what it means.

    Attributes:
      attention: "dense", "chunked" or "splash"; see `attention.py`.
      block: side of a tile of the latter two.
      dtype: of activations and of weights as they are used, "float32" or "bfloat16"; parameters, norms and softmax stay float32.
      remat: the backward pass computes each layer again instead of keeping what is inside it.
    """

    attention: str = "dense"
    block: int = 128
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"ComputeConfig.dtype = {self.dtype!r}: it must be float32 or bfloat16")
        if self.attention not in WAYS:
            raise UserError(f"ComputeConfig.attention = {self.attention!r}: it must be one of {', '.join(WAYS)}")
        if self.block < 1:
            raise UserError(f"ComputeConfig.block = {self.block}: it must be 1 or more")


Params = dict[str, jax.Array]


class Tower(nnx.Module):
    """E(x) of the paper: tokens of either modality to unit vectors of width E.

    Layers stand in one stack, `blocks`, or in two where only the upper ones train: `lower_blocks` and, above them, `blocks`.
    """

    def __init__(self, config: TowerConfig, compute: ComputeConfig, rngs: nnx.Rngs, lower: int = 0, lora_rank: int = 0):
        check_mesh(config, jax.sharding.get_abstract_mesh())
        self.config, self.compute, self.lower = config, compute, lower
        stack = _stack_config(config, compute)
        self.embedding = ExtendedEmbedding(
            config.text_size, config.num_units, config.width, config.row_multiple, config.scale_embedding, rngs
        )
        if lower:
            self.lower_blocks = Block(stack, lower, 0, rngs)
        self.blocks = Block(stack, config.layers - lower, lora_rank, rngs)
        self.final_norm = RMSNorm(config.width, config.norm_plus_one, config.norm_epsilon)
        self.dense = nnx.List([DenseHead(*shape, rngs) for shape in zip((config.width, *config.dense), config.dense, strict=False)])

    def look_up(self, tokens_RL: jax.Array) -> jax.Array:
        """Rows of the extended embedding for tokens, each below t + a: [R, L, D] in the compute dtype."""
        return self.embedding(tokens_RL, jnp.dtype(self.compute.dtype))

    def hidden(
        self, x_RLD: jax.Array, segment_ids_RL: jax.Array, positions_RL: jax.Array, lora_scale: float, keep: bool = False
    ) -> tuple[jax.Array, list[jax.Array]]:
        """The final hidden state [R, L, D], and with `keep` what the embedding and every stack gave: [1 or layers, R, L, D] each."""
        config = self.config
        rope: tuple[jax.Array, ...] = rope_tables(positions_RL, config.head_dim, config.rope_base, config.rope_factor)
        if config.window:
            rope += rope_tables(positions_RL, config.head_dim, config.rope_local_base, 1.0)
        kept, rows = [x_RLD[None]], Rows(segment_ids_RL, rope)
        stacks = [(self.lower_blocks, 0)] if self.lower else []
        for stack, first in [*stacks, (self.blocks, self.lower)]:
            x_RLD, states = run_stack(stack, x_RLD, rows, first, lora_scale, keep)
            kept.append(states)
        return self.final_norm(x_RLD), kept if keep else []

    def embed(
        self, x_RLD: jax.Array, segment_ids_RL: jax.Array, positions_RL: jax.Array, num_segments: int = 1, lora_scale: float = 0.0
    ) -> jax.Array:
        """Embeds every segment of every row.

        Args:
          x_RLD: as `look_up` gives it.
          segment_ids_RL: int32; 1 to `num_segments`, each contiguous, 0 for padding.
          positions_RL: int32; position of a token inside its segment.
          num_segments: S, the most segments of a row.
          lora_scale: of the adapters.

        Returns:
          float32 [R, S, E], each of unit norm; a segment that a row lacks gives zeros.
        """
        x_RLD, _ = self.hidden(x_RLD, segment_ids_RL, positions_RL, lora_scale)
        pool = mean_pool if self.config.pooling == "mean" else last_pool
        x_RSE = pool(x_RLD, segment_ids_RL, num_segments)
        for head in self.dense:
            x_RSE = head(x_RSE)
        return unit_norm(x_RSE)

    def __call__(
        self, tokens_RL: jax.Array, segment_ids_RL: jax.Array, positions_RL: jax.Array, num_segments: int = 1, lora_scale: float = 0.0
    ) -> jax.Array:
        """`embed` of looked-up tokens."""
        return self.embed(self.look_up(tokens_RL), segment_ids_RL, positions_RL, num_segments, lora_scale)


def _stack_config(config: TowerConfig, compute: ComputeConfig) -> StackConfig:
    scale = (config.query_scale or config.head_dim) ** -0.5
    attention = AttentionConfig(scale, config.softcap, config.causal, config.window, compute.attention, compute.block)
    shared = {field.name for field in dataclasses.fields(StackConfig)} & {field.name for field in dataclasses.fields(TowerConfig)}
    return StackConfig(**{name: getattr(config, name) for name in shared}, attention=attention, remat=compute.remat)


def init(config: TowerConfig, seed: int) -> Params:
    """Parameters by dotted name ("blocks.mlp.up.weight_DF"), float32, created already sharded on the mesh in context."""

    @jax.jit
    def create():
        return _flatten(nnx.state(Tower(config, ComputeConfig(), nnx.Rngs(params=seed)), nnx.Param))

    return create()


def init_adapters(config: TowerConfig, lower: int, rank: int, seed: int) -> Params:
    """Fresh adapters (LoRA) on every matrix of the layers above the `lower` ones; call it under jit, where the rest of the tower is not made."""
    rngs = nnx.Rngs(params=jax.random.fold_in(jax.random.key(seed), 1))
    params = _flatten(nnx.state(Tower(config, ComputeConfig(), rngs, lower, rank), nnx.Param))
    return {name: x for name, x in params.items() if ".lora_" in name}


def abstract(config: TowerConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of every parameter on the mesh in context."""
    return jax.tree.map(mesh_lib.placed, jax.eval_shape(lambda: init(config, 0)))


def merge(config: TowerConfig, params: Params, compute: ComputeConfig = ComputeConfig()) -> Tower:
    """The tower with these parameters, whose names and shapes tell of stacks and adapters; cheap enough to call while tracing."""
    upper, rank = _upper_layers(params), _lora_rank(params)
    fresh = nnx.eval_shape(lambda: Tower(config, compute, nnx.Rngs(params=0), config.layers - upper, rank))
    graphdef, state = nnx.split(fresh, nnx.Param)
    flat = [(path, leaf.replace(params[".".join(map(str, path))])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _upper_layers(params: Params) -> int:
    return params["blocks.attention.q.weight_DF"].shape[0]


def _lora_rank(params: Params) -> int:
    adapter = params.get("blocks.attention.q.lora_a_DK")
    return 0 if adapter is None else adapter.shape[-1]


def _flatten(state: nnx.State) -> Params:
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def row_segments(lengths_R: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Segment IDs and positions, int32 [R, L], of rows that hold one sequence each."""
    places_1L = jnp.arange(length, dtype=jnp.int32)[None, :]
    segments_RL = (places_1L < lengths_R[:, None]).astype(jnp.int32)
    return segments_RL, places_1L * segments_RL


def embed_rows(
    config: TowerConfig, params: Params, tokens_RL: jax.Array, lengths_R: jax.Array, compute: ComputeConfig = ComputeConfig()
) -> jax.Array:
    """Embeddings, float32 [R, E], of rows that hold one sequence each."""
    segments_RL, positions_RL = row_segments(lengths_R, tokens_RL.shape[1])
    return merge(config, params, compute)(tokens_RL, segments_RL, positions_RL)[:, 0]
