"""From a checkpoint that `transformers` wrote to a trained, exported and reloaded model, on the polyglot corpus; what trains, trains."""

import json
import pathlib

import jax
import numpy as np
import pytest
from small_run import settings

from xretrieval import main, tensors
from xretrieval.model import directory

FIXTURES = pathlib.Path(__file__).parent / "data/parity"
GIN = "gin_configs/runs/from_llm.gin"


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    out = tmp_path_factory.mktemp("llm") / "gemma3"
    assert main.main(["import-llm", str(FIXTURES / "gemma3"), "--out", str(out)]) == 0
    return out


def run(verb, finished, root, llm, what, *more):
    """The small run's corpus and units, the LLM's tower and tokenizer."""
    keep = [s for s in settings(finished) if not s.startswith(("TowerConfig", "text_tokenizer", "TOKENIZER", "train.num_steps"))]
    places = {"LLM": llm, "RECORDS": root / "records", "WORKDIR": root / what, "MODEL": root / f"{what}_model", "REPORT": root / what}
    overrides = [
        *keep,
        "TOKENIZER=%LLM",
        *(f"{name}={path}" for name, path in places.items()),
        f"TRAIN_WHAT={what}",
        "train.num_steps=40",
        "train.log_every=5",
    ]
    overrides += ["OptimizerConfig.learning_rate=1e-3", "ComputeConfig.block=32", "TrainableConfig.lora_rank=4", *more]
    return main.run_verb(verb, [GIN, str(llm / "tower.gin")], overrides)


@pytest.fixture(scope="module")
def trained(finished, llm, tmp_path_factory):
    root = tmp_path_factory.mktemp("from_llm")
    run("data build", finished, root, llm, "all")
    for what in ("units", "lora", "all"):
        run("train", finished, root, llm, what)
        run("export", finished, root, llm, what)
    return root


@pytest.mark.parametrize("what", ["units", "lora", "all"])
def test_the_loss_falls_and_text_rows_move_only_if_asked(trained, llm, what):
    lines = [json.loads(line) for line in (trained / what / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    assert all(line["gradient_norm_units"] > 0 for line in lines if "loss" in line)
    before, after = (tensors.mapped(folder / "model.safetensors") for folder in (llm, trained / f"{what}_model"))
    rows = directory.read(llm).config.text_size
    same = {name: (before[name] == after[name][: len(before[name])]).all() for name in before}
    assert same["embedding.text_VD"] == (what != "all")
    assert (before["embedding.text_VD"][:rows] == after["embedding.text_VD"][:rows]).all() == (what != "all")
    assert same["blocks.mlp.up.weight_DF"] == (what == "units")
    assert same["blocks.pre_mlp_norm.scale_D"] == (what != "all")
    assert after["embedding.units_AD"].shape == (128, 32)


@pytest.mark.parametrize("what", ["units", "lora", "all"])
def test_exported_and_reloaded_equals_live(trained, finished, what):
    from xretrieval import mesh as mesh_lib
    from xretrieval.evaluate.embed import embed_sequences
    from xretrieval.model.tower import TowerConfig
    from xretrieval.search.retriever import Retriever
    from xretrieval.train import checkpoint, state
    from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
    from xretrieval.train.trainable import TrainableConfig
    from xretrieval.units.extract import read_unit_records

    retriever = Retriever.load(trained / f"{what}_model")
    vocabulary = retriever.model.vocabulary
    records = [r for r in read_unit_records(finished / "units/test") if r.utterance.language == "de_de"]
    described = json.loads((trained / what / "run.json").read_text())
    config, trainable = TowerConfig(**described["tower"]), TrainableConfig(**described["trainable"])
    with jax.set_mesh(mesh_lib.make_mesh()):
        abstract = state.abstract(config, make_optimizer(OptimizerConfig(), 1), trainable)
        live = state.whole(checkpoint.restore(trained / what, 40, abstract), trainable)
        spoken = embed_sequences(config, live, [vocabulary.sequence(vocabulary.encode_units(r.units), "de", "speech") for r in records])
    np.testing.assert_allclose(retriever.encode_units([r.units for r in records], "de"), spoken, atol=5e-6)


def test_the_notice_and_the_begin_token_go_along(trained, llm):
    model = directory.describe(trained / "lora_model")
    assert model["source"] == directory.describe(llm)["source"]
    notice = (trained / "lora_model/NOTICE").read_text()
    assert "Gemma Terms of Use" in notice
    assert "changed" in notice
    assert "gemma3" in (trained / "lora_model/README.md").read_text()
    assert model["prefix_template"] == "[{language} {modality}]"
    assert directory.describe(llm)["prefix_template"] == ""
    assert model["begin_tokens"] == directory.describe(llm)["begin_tokens"] != []
    assert model["tokenizer_file"] == "tokenizer.json"


def test_the_units_start_from_the_codebook(finished, llm, tmp_path):
    from xretrieval.model.unit_rows import text_statistics, unit_rows
    from xretrieval.units.tokenizer import UnitTokenizer

    root = tmp_path
    run("data build", finished, root, llm, "all")
    for how in ("codebook", "zeros", "mean", "normal"):
        what = ["train.stop_after=1", f"UnitInit.how={how}", f"WORKDIR={root / how}", f"MODEL={root / how}_model"]
        run("train", finished, root, llm, "units", *what)  # the first step has learning rate 0
        run("export", finished, root, llm, "units", *what)
        got = tensors.mapped(root / f"{how}_model/model.safetensors")["embedding.units_AD"]
        text = tensors.mapped(llm / "model.safetensors")["embedding.text_VD"][: directory.read(llm).config.text_size]
        want = unit_rows(how, text_statistics(text), 64, 0, UnitTokenizer.load(finished / "unit_tokenizer").codebook_KW)
        assert (got[:64] == want).all(), how
        assert not got[64:].any()


def test_stopped_and_resumed_equals_uninterrupted_bitwise(trained, finished, llm):
    where = [f"WORKDIR={trained / 'resumed'}", f"MODEL={trained / 'resumed_model'}"]
    run("train", finished, trained, llm, "lora", *where, "train.stop_after=13")
    run("train", finished, trained, llm, "lora", *where)
    run("export", finished, trained, llm, "lora", *where)
    resumed, whole = (trained / f"{name}_model/model.safetensors" for name in ("resumed", "lora"))
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "change,message",
    [
        ("TowerConfig.window=8", "TowerConfig.window"),
        (f"TOKENIZER={FIXTURES / 'qwen3/tokenizer.json'}", "another"),
        ("TRAIN_WHAT=most", "TrainableConfig.what"),
        ("UnitInit.how=guess", "guess"),
        ("ComputeConfig.attention=splash", "splash attention takes tiles of a multiple of 128"),
        ("ComputeConfig.attention=splash ComputeConfig.block=128 train.row_length=192", "a row 192 tokens"),
    ],
)
def test_what_does_not_fit_the_llm_is_refused(trained, finished, llm, tmp_path, change, message):
    with pytest.raises(main.UserError, match=message):
        run("train", finished, trained, llm, "units", f"WORKDIR={tmp_path / 'new'}", *change.split())
