"""Imported towers beside the implementation they were released with: hidden states at every layer, and final embeddings.

`make parity` made the fixtures: random tiny models of `transformers`, in which every mechanism matters, and what it computes for each sequence
alone, unpadded, in float32.
"""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from model import towers

from xretrieval.errors import UserError
from xretrieval.model import directory, tower
from xretrieval.model.pretrained import import_llm
from xretrieval.model.tower import ComputeConfig
from xretrieval.search.retriever import Retriever

FIXTURES = pathlib.Path(__file__).parents[1] / "data/parity"
FAMILIES = ("gemma1", "gemma2", "gemma3", "gemma3_4b", "embeddinggemma", "qwen3", "qwen3_embedding")
# Of the layer's largest value, in float32.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    @functools.cache
    def read(family, dialect="config.json"):
        source = tmp_path_factory.mktemp(family) / "source"
        shutil.copytree(FIXTURES / family, source)
        shutil.copyfile(FIXTURES / family / dialect, source / "config.json")
        import_llm(str(source), str(source.parent / "model"))
        return directory.read(source.parent / "model")

    return read


@functools.cache
def reference(family):
    found = safetensors.numpy.load_file(FIXTURES / family / "reference.safetensors")
    count = sum(name.startswith("tokens.") for name in found)
    return [
        {name: found[f"{name}.{i}"] for name in ("tokens", "hidden", "final", "embedding") if f"{name}.{i}" in found} for i in range(count)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def states(config, compute, count, params, tokens, segments, positions):
    """Hidden states [layers + 1, R, L, D], the final one, and embeddings [R, `count`, E]."""
    built = tower.merge(config, params, compute)
    final, kept = built.hidden(built.look_up(tokens), segments, positions, 0.0, keep=True)
    return jax.numpy.concatenate(kept), final, built(tokens, segments, positions, num_segments=count)


def run(model, packed, compute=ComputeConfig(), config=None):
    config, mesh = config or model.config, towers.one_device()
    with jax.set_mesh(mesh):
        placed = towers.place(config, model.params, mesh)
        rows = [towers.put(x, mesh) for x in packed]
        return [np.asarray(x) for x in states(config, compute, int(packed[1].max()), placed, *rows)]


def layouts(family, layout):
    """The reference's sequences as rows, and where each lies: (row, tokens of the row, segment)."""
    sequences = [np.asarray(r["tokens"]) for r in reference(family)]
    longest = max(map(len, sequences))
    if layout == "unpadded":
        return [(towers.pack([s], len(s), 1)[:3], [(i, 0, slice(0, len(s)), 0)]) for i, s in enumerate(sequences)]
    length = longest + 11 if layout == "padded" else 2 * longest + 5
    if layout == "padded":
        packed = [towers.pack([s], length, 1) for s in sequences]
        rows = tuple(np.concatenate([p[k] for p in packed]) for k in range(3))
        return [(rows, [(i, i, slice(0, len(s)), 0) for i, s in enumerate(sequences)])]
    tokens, segments, positions, places = towers.pack(sequences, length, len(sequences))
    where = []
    for i, (row, segment) in enumerate(places):
        here = np.flatnonzero(segments[row] == segment + 1)
        where.append((i, row, slice(here[0], here[-1] + 1), segment))
    return [((tokens, segments, positions), where)]


def worst(family, model, layout, compute=ComputeConfig(), config=None):
    """The largest difference of a layer's states from the reference's, in units of the layer's largest value; and of embeddings, as they are."""
    apart, embeddings = 0.0, 0.0
    for packed, where in layouts(family, layout):
        hidden, final, embedded = run(model, packed, compute, config)
        for i, row, here, segment in where:
            want = reference(family)[i]
            pairs = [*zip(hidden[:, row, here], want["hidden"], strict=True), (final[row, here], want["final"])]
            apart = max(apart, *(np.abs(got - expected).max() / np.abs(expected).max() for got, expected in pairs))
            if "embedding" in want:
                embeddings = max(embeddings, np.abs(embedded[row, segment] - want["embedding"]).max())
    return apart, embeddings


@pytest.mark.parametrize("layout", ["unpadded", "padded", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_every_layer_and_embeddings(imported, family, layout):
    apart, embeddings = worst(family, imported(family), layout)
    print(f"{family}, {layout}: states within {apart:.1e} of the layer's largest value, embeddings within {embeddings:.1e}")
    assert apart < TOLERANCE
    assert embeddings < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_attention_too(imported, family):
    apart, embeddings = worst(family, imported(family), "packed", ComputeConfig(attention="chunked", block=16))
    assert apart < TOLERANCE
    assert embeddings < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_both_dialects_of_config_are_one_model(imported, family):
    one, other = imported(family), imported(family, "config.released.json")
    assert one.config == other.config
    assert all((one.params[name] == other.params[name]).all() for name in one.params)


WITHOUT = {
    "gemma1": [{"scale_embedding": False}, {"causal": False}, {"norm_plus_one": False}, {"rope_base": 100.0}, {"activation": "silu"}],
    "gemma2": [
        {"softcap": 0.0},
        {"window": -1},
        {"window": 1},
        {"query_scale": 0.0},
        {"global_every": 3},
        {"post_norms": False},
        {"rope_base": 100.0},
        {"rope_local_base": 100.0},
    ],
    "gemma3": [
        {"window": -1},
        {"window": 1},
        {"rope_base": 100.0},
        {"rope_local_base": 100.0},
        {"query_scale": 0.0},
        {"qk_norm": False},
        {"post_norms": False},
        {"causal": False},
    ],
    "gemma3_4b": [{"rope_factor": 1.0}, {"window": 1}, {"rope_base": 1000.0}, {"rope_local_base": 100.0}],
    "embeddinggemma": [
        {"causal": True},
        {"window": -1},
        {"window": 1},
        {"rope_base": 100.0},
        {"rope_local_base": 100.0},
        {"qk_norm": False},
        {"post_norms": False},
    ],
    "qwen3": [{"norm_plus_one": True}, {"scale_embedding": True}, {"activation": "gelu"}, {"qk_norm": False}, {"rope_base": 100.0}],
    "qwen3_embedding": [{"causal": False}, {"qk_norm": False}],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_mechanism_the_states_differ(imported, family):
    """Each norm, too: with its scale at the default the states are others. The fixtures can tell, so equality above says something."""
    model = imported(family)
    for change in WITHOUT[family]:
        shifted = {"window": model.config.window + change["window"]} if "window" in change else change
        assert worst(family, model, "padded", config=dataclasses.replace(model.config, **shifted))[0] > 1e-3, change
    default = 0.0 if model.config.norm_plus_one else 1.0
    for name in [n for n in model.params if n.endswith("scale_D")]:
        plain = {**model.params, name: np.full_like(model.params[name], default)}
        assert worst(family, dataclasses.replace(model, params=plain), "padded")[0] > 1e-3, name


@pytest.mark.parametrize("family", ["embeddinggemma", "qwen3_embedding"])
def test_pooling_and_heads_matter(imported, family):
    model = imported(family)
    other = "last" if model.config.pooling == "mean" else "mean"
    assert worst(family, model, "padded", config=dataclasses.replace(model.config, pooling=other))[1] > 1e-3
    if model.config.dense:
        headless = dataclasses.replace(model.config, dense=())
        bare = dataclasses.replace(model, params={n: x for n, x in model.params.items() if not n.startswith("dense.")})
        embedded = run(bare, layouts(family, "padded")[0][0], config=headless)[2][0, 0]
        assert np.abs(embedded - reference(family)[0]["embedding"]).max() > 1e-3


def test_text_rows_are_bitwise_those_of_the_source(imported):
    for family in FAMILIES:
        table = imported(family).params["embedding.text_VD"]
        for path in sorted((FIXTURES / family).glob("model*.safetensors")):
            for name, value in safetensors.numpy.load_file(path).items():
                if name.endswith("embed_tokens.weight"):
                    assert (table[: len(value)] == value).all()
                    assert not table[len(value) :].any()


@pytest.mark.parametrize("family", ["embeddinggemma", "qwen3_embedding"])
def test_a_retriever_of_the_imported_model_gives_the_references_embeddings(imported, family):
    """As a user calls it: begin and end tokens and the model's own prompt are the retriever's business."""
    retriever = Retriever(imported(family))
    for entry in json.loads((FIXTURES / family / "reference_texts.json").read_text()):
        want = reference(family)[entry["index"]]
        got = retriever.encode_text([entry["text"]], "en", prompt=entry["prompt_name"] or None)
        np.testing.assert_allclose(got[0], want["embedding"], atol=1e-5)
    with pytest.raises(UserError, match="'query'"):
        retriever.encode_text(["a"], "en", prompt="no such prompt")
    with pytest.raises(UserError, match="no speech units"):
        retriever.encode_speech(["a.wav"], "en")
