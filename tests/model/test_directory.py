"""Model directories: written, read, and taken as the start of a run, with units and without."""

import dataclasses
import json

import huggingface_folders as hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xretrieval import mesh as mesh_lib
from xretrieval.data.text_tokenizer import train_text_tokenizer
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError
from xretrieval.model import directory, pretrained, tower
from xretrieval.units.encoders.encoder import Encoder
from xretrieval.units.encoders.log_mel import LogMelConfig
from xretrieval.units.tokenizer import UnitTokenizer

UNITS = 11
SMALL = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_hidden": 24}


@pytest.fixture
def llm(tmp_path):
    """An imported LLM: Gemma 3, 300 rows of text."""
    source = hf.write_folder(tmp_path / "source", hf.GEMMA3, hf.random_tensors(hf.shapes(hf.GEMMA3), jnp.bfloat16))
    pretrained.import_llm(str(source), str(tmp_path / "llm"))
    return tmp_path / "llm"


@pytest.fixture
def trained(tmp_path):
    """A model with units, as `export` writes it."""
    texts = ["eins zwei drei", "one two three", "[German speech] [German text]"]
    train_text_tokenizer(texts, str(tmp_path / "text.model"), None)
    UnitTokenizer(
        Encoder(LogMelConfig(), {}), np.random.default_rng(0).standard_normal((UNITS, LogMelConfig().width)).astype(np.float32), True, {}
    ).save(tmp_path / "units")
    vocabulary = Vocabulary(tmp_path / "text.model", UNITS, "{language} {modality}:")
    config = tower.TowerConfig(**SMALL, text_size=vocabulary.text_size, num_units=UNITS)
    shapes = abstract(config, mesh_lib.make_mesh(devices=jax.devices()[:1]))
    params = hf.random_tensors({name: x.shape for name, x in shapes.items()})
    identity = {"unit_tokenizer": UnitTokenizer.load(tmp_path / "units").fingerprint, "trained_languages": ["de_de"], "fingerprint": "f"}
    directory.write(tmp_path / "model", config, params, vocabulary, tmp_path / "units", 17.0, identity, "card", "notice")
    return tmp_path / "model", config, params, vocabulary


def abstract(config, mesh):
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: tower.init(config, 0))
    return {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, x.sharding.spec)) for n, x in shapes.items()}


def test_a_trained_model_is_read_as_it_was_written(trained):
    path, config, params, vocabulary = trained
    model = directory.read(path)
    assert (model.config, model.logit_scale, model.trained_languages, model.fingerprint) == (config, 17.0, ("de_de",), "f")
    assert (model.vocabulary.fingerprint, model.vocabulary.template) == (vocabulary.fingerprint, "{language} {modality}:")
    assert model.unit_tokenizer.num_units == UNITS
    assert model.params.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(model.params[name], value)
    assert {p.name for p in path.iterdir()} == {
        "xretrieval.json",
        "model.safetensors",
        "tokenizer.model",
        "unit_tokenizer",
        "README.md",
        "NOTICE",
    }


def test_an_llm_has_no_units(llm):
    model = directory.read(llm)
    assert (model.unit_tokenizer, model.logit_scale, model.trained_languages, model.prompts) == (None, None, (), {})
    assert model.vocabulary.begin_ids == (256,)
    with pytest.raises(UserError, match="this model has no units"):
        model.vocabulary.encode_units([0])


def test_a_model_takes_the_place_of_another(llm, trained):
    """Its files may even come from the folder that it is written to."""
    path, config, params, _ = trained
    (llm / "LICENSE").write_text("of the LLM")
    identity = {"unit_tokenizer": directory.read(path).unit_tokenizer.fingerprint, "trained_languages": [], "fingerprint": "g"}
    vocabulary = Vocabulary(path / "tokenizer.model", UNITS)
    directory.write(llm, config, params, vocabulary, path / "unit_tokenizer", 1.0, identity, "card", "notice")
    assert directory.read(llm).fingerprint == "g"
    assert not (llm / "tokenizer.json").exists()
    assert not (llm / "LICENSE").exists()
    vocabulary = Vocabulary(llm / "tokenizer.model", UNITS)
    directory.write(llm, config, params, vocabulary, llm / "unit_tokenizer", 2.0, identity, "card", "notice")
    assert directory.read(llm).logit_scale == 2.0


def test_what_is_trained_from_an_llm_keeps_its_source_and_licence_files(llm, trained):
    path, config, params, vocabulary = trained
    source = json.loads((llm / "xretrieval.json").read_text())["source"]
    identity = {"unit_tokenizer": directory.read(path).unit_tokenizer.fingerprint, "trained_languages": [], "fingerprint": "g"}
    others = (identity, "card", "notice", source, {"query": "q: "}, {"LICENSE": b"of the LLM"})
    directory.write(path, config, params, vocabulary, path / "unit_tokenizer", 1.0, *others)
    assert json.loads((path / "xretrieval.json").read_text())["source"] == source
    assert (path / "LICENSE").read_bytes() == b"of the LLM"
    assert directory.read(path).prompts == {"query": "q: "}


def test_a_broken_write_is_no_model(trained):
    path, config, params, vocabulary = trained
    parts = {**params, "final_norm.scale_D": directory.Blocks(np.dtype(np.float32), (16,), lambda: iter([1 / 0]))}
    identity = {"unit_tokenizer": "u", "trained_languages": [], "fingerprint": "g"}
    with pytest.raises(ZeroDivisionError):
        directory.write(path, config, parts, vocabulary, None, 1.0, identity, "card", "notice")
    with pytest.raises(UserError, match="xretrieval.json: no model there"):
        directory.read(path)
    assert not (path / "model.safetensors.tmp").exists()


@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_starts_from_an_llm_and_has_units_of_its_own(llm, devices):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    config = dataclasses.replace(directory.read(llm).config, num_units=UNITS, row_multiple=320, causal=False, pooling="last")
    want = abstract(config, mesh)
    text = directory.text_fingerprint(Vocabulary.open(llm, UNITS, "any {language}"))
    start = directory.read_params(llm, want, {"text": text, "vocabulary": "v", "unit_tokenizer": "u"}, config)
    assert (start.missing, start.logit_scale) == (("embedding.units_AD",), None)
    assert start.params.keys() == want.keys() - {"embedding.units_AD"}
    stored = directory.read(llm).params
    for name, found in start.params.items():
        assert (found.shape, found.dtype, found.sharding) == (want[name].shape, np.float32, want[name].sharding), name
        expected = np.zeros(found.shape, np.float32)
        rows = min(len(expected), len(stored[name]))
        expected[:rows] = np.asarray(stored[name][:rows], np.float32)
        np.testing.assert_array_equal(found, expected, err_msg=name)
    assert stored["embedding.text_VD"].dtype == jnp.bfloat16
    assert not np.any(np.asarray(start.params["embedding.text_VD"])[300:])


def test_fewer_padding_rows(llm):
    config = dataclasses.replace(directory.read(llm).config, row_multiple=4)
    text = directory.text_fingerprint(Vocabulary.open(llm, 0))
    start = directory.read_params(llm, abstract(config, mesh_lib.make_mesh(devices=jax.devices()[:1])), {"text": text})
    assert start.params["embedding.text_VD"].shape == (300, 16)
    np.testing.assert_array_equal(
        start.params["embedding.text_VD"], np.asarray(directory.read(llm).params["embedding.text_VD"][:300], np.float32)
    )
    assert start.missing == ()


def test_another_tokenizer_tower_or_config_than_the_llm(llm, trained):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    config = directory.read(llm).config
    identity = {"text": directory.text_fingerprint(Vocabulary.open(llm, UNITS)), "vocabulary": "v", "unit_tokenizer": "u"}
    for vocabulary in (Vocabulary(llm / "tokenizer.json", UNITS), Vocabulary(llm / "tokenizer.json", UNITS, text_size=300), trained[3]):
        other = {**identity, "text": directory.text_fingerprint(vocabulary)}
        with pytest.raises(
            UserError, match="llm: this LLM has another text tokenizer than this run's; set mixture.tokenizer_file to this folder"
        ):
            directory.read_params(llm, abstract(config, mesh), other, config)
    for change, message in (
        ({"mlp_hidden": 32}, r"tensor blocks.mlp.down.weight_DF is \(3, 24, 16\), the run's tower wants \(3, 32, 16\)"),
        ({"text_size": 200}, r"tensor embedding.text_VD is \(384, 16\), the run's tower wants \(256, 16\)"),
        ({"qk_norm": False}, "the model has tensor blocks.attention.k_norm.scale_D, the run's tower has not"),
        ({"dense": (8,)}, r"tensor dense.0.kernel_DE is nothing, the run's tower wants \(16, 8\)"),
    ):
        run = dataclasses.replace(config, **change)
        with pytest.raises(UserError, match=message):
            directory.read_params(llm, abstract(run, mesh), identity)
    for field, value in (
        ("text_size", 301),
        ("norm_plus_one", False),
        ("rope_base", 1e4),
        ("window", 5),
        ("softcap", 50.0),
        ("scale_embedding", False),
    ):
        run = dataclasses.replace(config, **{field: value})
        with pytest.raises(UserError, match=f"this model's TowerConfig.{field} is .*, the run's {value}; set it as the model's"):
            directory.read_params(llm, abstract(run, mesh), identity, run)


def test_a_run_starts_from_a_trained_model(trained):
    path, config, params, vocabulary = trained
    mesh = mesh_lib.make_mesh()
    identity = {"unit_tokenizer": directory.read(path).unit_tokenizer.fingerprint, "vocabulary": vocabulary.fingerprint, "text": "t"}
    start = directory.read_params(path, abstract(config, mesh), identity, config)
    assert (start.missing, start.logit_scale) == ((), 17.0)
    for name, value in params.items():
        np.testing.assert_array_equal(start.params[name], value)
    for key, name in (("unit_tokenizer", "unit tokenizer"), ("vocabulary", "vocabulary")):
        with pytest.raises(UserError, match=f"trained with another {name} than this run's"):
            directory.read_params(path, abstract(config, mesh), {**identity, key: "other"}, config)


def test_what_is_damaged_is_said(trained):
    path = trained[0]
    record = json.loads((path / "xretrieval.json").read_text())

    def refused(message, **fields):
        hf.write_json(path / "xretrieval.json", {**record, **fields})
        with pytest.raises(UserError, match=message):
            directory.read(path)

    refused("format version 1, this xretrieval reads 2; export or import the model again", format_version=1)
    refused("xretrieval.json: tower: .*num_heads", tower={"num_heads": 3})
    refused("not the unit tokenizer this model was trained with", unit_tokenizer_fingerprint="x")
    refused("tokenizer.model: not the text tokenizer this model was trained with", vocabulary_fingerprint="x")
    hf.write_json(path / "xretrieval.json", {k: v for k, v in record.items() if k != "end_tokens"})
    with pytest.raises(UserError, match="xretrieval.json: the field end_tokens is missing; export or import the model again"):
        directory.read(path)
    hf.write_json(path / "xretrieval.json", record)
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match="model.safetensors: truncated in tensor"):
        directory.read(path)


def test_a_folder_that_cannot_be_written(trained):
    path, config, params, vocabulary = trained
    identity = {"unit_tokenizer": "u", "trained_languages": [], "fingerprint": "g"}
    (path / "file").write_text("")
    with pytest.raises(UserError, match="file/model: cannot be written"):
        directory.write(path / "file/model", config, params, vocabulary, None, 1.0, identity, "card", "notice")
