"""One tiny model of each family: its class and its configuration, in the sizes in which every mechanism shows on 50 tokens.

VOCABULARY is above the size of both tokenizers and no multiple of 128. Heads times head size is not the width, so a matrix that is
transposed or taken for another has the wrong shape. The RoPE bases are small: rotations differ within 50 tokens.
"""

import dataclasses

import transformers

VOCABULARY = 709
WIDTH = 32

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 56,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
GEMMA_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
TWO_BASES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A tiny model to make.

    Attributes:
      name: of its directory.
      config, model: a transformers configuration and the class that is saved.
      plus_one: the norms multiply by 1 + weight.
      tokenizer: "gemma" or "qwen", whose files its directory gets.
      prefix: of the layers' names in the file that is saved; the generator checks it.
      shard_size: of a file of weights.
      changes: what is changed in the configuration, one at a time, to see that it matters: {mechanism: {field: value}}.
      pooling, dense: of a sentence-transformers directory; "" for none.
    """

    name: str
    config: transformers.PreTrainedConfig
    model: type
    plus_one: bool
    tokenizer: str
    prefix: str
    shard_size: str = "1GB"
    changes: dict = dataclasses.field(default_factory=dict)
    pooling: str = ""
    dense: tuple[int, ...] = ()


def window_changes(window: int, step: int = 1) -> dict:
    return {"window - 1": {"sliding_window": window - step}, "window + 1": {"sliding_window": window + step}}


def base_changes(full: dict, local: dict) -> dict:
    return {
        "base of global layers": {
            "rope_parameters": {"full_attention": full | {"rope_theta": full["rope_theta"] / 2}, "sliding_attention": local}
        },
        "base of local layers": {
            "rope_parameters": {"full_attention": full, "sliding_attention": local | {"rope_theta": local["rope_theta"] * 2}}
        },
    }


def gemma1() -> Family:
    sizes = SIZES | GEMMA_IDS | {"num_key_value_heads": 1}
    config = transformers.GemmaConfig(**sizes, num_hidden_layers=3, rope_parameters={"rope_type": "default", "rope_theta": 1000.0})
    changes = {"base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}}
    return Family("gemma1", config, transformers.GemmaForCausalLM, True, "gemma", "model.", changes=changes)


def gemma2() -> Family:
    config = transformers.Gemma2Config(
        **SIZES,
        **GEMMA_IDS,
        num_hidden_layers=4,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=2.5,
        final_logit_softcapping=30.0,
        sliding_window=9,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )
    changes = window_changes(9) | {
        "soft cap": {"attn_logit_softcapping": None},
        "scale of queries": {"query_pre_attn_scalar": 16},
        "base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        "layers": {"layer_types": ["full_attention", "sliding_attention"] * 2},
    }
    return Family("gemma2", config, transformers.Gemma2ForCausalLM, True, "gemma", "model.", shard_size="150KB", changes=changes)


def gemma3_text(**own) -> transformers.Gemma3TextConfig:
    own = {"sliding_window": 9, "query_pre_attn_scalar": 16, "rope_parameters": TWO_BASES} | own
    return transformers.Gemma3TextConfig(**SIZES, **GEMMA_IDS, num_hidden_layers=6, **own)


def gemma3() -> Family:
    config = gemma3_text(query_pre_attn_scalar=24, sliding_window_pattern=3)
    changes = (
        window_changes(9)
        | base_changes(TWO_BASES["full_attention"], TWO_BASES["sliding_attention"])
        | {
            "scale of queries": {"query_pre_attn_scalar": 16},
            "layers": {"layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
        }
    )
    return Family("gemma3", config, transformers.Gemma3ForCausalLM, True, "gemma", "model.", changes=changes)


def gemma3_4b() -> Family:
    # A smaller base than the others': divided by 8, positions are so close that a large one hardly rotates.
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 100.0}
    local = TWO_BASES["sliding_attention"]
    text = gemma3_text(rope_parameters={"full_attention": full, "sliding_attention": local})
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4, vision_use_head=False
    )
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=VOCABULARY - 3,
        eoi_token_index=VOCABULARY - 2,
        image_token_index=VOCABULARY - 1,
    )
    unscaled = {"rope_type": "default", "rope_theta": 100.0}
    changes = (
        window_changes(9)
        | base_changes(full, local)
        | {"scaling of positions": {"rope_parameters": {"full_attention": unscaled, "sliding_attention": local}}}
    )
    return Family("gemma3_4b", config, transformers.Gemma3ForConditionalGeneration, True, "gemma", "language_model.model.", changes=changes)


def embeddinggemma() -> Family:
    config = gemma3_text(sliding_window=16, use_bidirectional_attention=True)
    # The configuration takes the released number, 16, and holds half of it plus one, 9.
    changes = (
        window_changes(16, step=2)
        | base_changes(TWO_BASES["full_attention"], TWO_BASES["sliding_attention"])
        | {"both directions": {"use_bidirectional_attention": False, "sliding_window": 9}}
    )
    return Family(
        "embeddinggemma", config, transformers.Gemma3TextModel, True, "gemma", "", changes=changes, pooling="mean", dense=(4 * WIDTH, WIDTH)
    )


def qwen3() -> Family:
    base = {"rope_type": "default", "rope_theta": 1000.0}
    config = transformers.Qwen3Config(**SIZES, num_hidden_layers=3, rope_parameters=base, tie_word_embeddings=False)
    changes = {"base": {"rope_parameters": base | {"rope_theta": 500.0}}}
    return Family("qwen3", config, transformers.Qwen3ForCausalLM, False, "qwen", "model.", changes=changes)


def qwen3_embedding() -> Family:
    base = {"rope_type": "default", "rope_theta": 1000.0}
    config = transformers.Qwen3Config(**SIZES, num_hidden_layers=3, rope_parameters=base, tie_word_embeddings=True)
    changes = {"base": {"rope_parameters": base | {"rope_theta": 500.0}}}
    return Family("qwen3_embedding", config, transformers.Qwen3Model, False, "qwen", "", changes=changes, pooling="lasttoken")


FAMILIES = (gemma1, gemma2, gemma3, gemma3_4b, embeddinggemma, qwen3, qwen3_embedding)
