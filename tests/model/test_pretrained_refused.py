"""Files and tensors of a folder that cannot be followed exactly are refused, by name; nothing is written then."""

import json

import huggingface_folders as hf
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from xretrieval.errors import UserError
from xretrieval.model import pretrained


@pytest.fixture
def source(tmp_path):
    tensors = hf.random_tensors(hf.shapes(hf.GEMMA3))
    folder = hf.write_folder(tmp_path / "source", hf.GEMMA3, tensors, shards=2)
    hf.write_modules(folder, 16, (24, 10))
    return folder


def refused(source, message):
    out = source.parent / "llm"
    with pytest.raises(UserError, match=message):
        pretrained.import_llm(str(source), str(out))
    assert not out.exists()


def change(path, **fields):
    hf.write_json(path, {**json.loads(path.read_text()), **fields})


@pytest.mark.parametrize(
    "folder,fields,message",
    [
        ("1_Pooling", {"pooling_mode_mean_tokens": False}, "1_Pooling/config.json: pooling of no kind"),
        ("1_Pooling", {"pooling_mode_cls_token": True}, "pooling pooling_mode_mean_tokens, pooling_mode_cls_token: one of"),
        ("1_Pooling", {"pooling_mode": "weightedmean"}, "pooling weightedmean: one of mean and last token"),
        ("1_Pooling", {"pooling_mode": ["mean", "lasttoken"]}, "pooling mean, lasttoken"),
        ("1_Pooling", {"include_prompt": False}, "include_prompt = false"),
        ("2_Dense", {"bias": True}, "2_Dense/config.json: bias = True: only False"),
        ("2_Dense", {"activation_function": "torch.nn.modules.activation.Tanh"}, "activation_function = .*Tanh: only .*Identity"),
        ("3_Dense", {"use_residual": True}, "3_Dense/config.json: use_residual = True"),
        ("3_Dense", {"module_input_name": "token_embeddings"}, "module_input_name = token_embeddings"),
        ("3_Dense", {"in_features": 25}, "3_Dense/config.json: in_features = 25, what comes before is 24 wide"),
        ("3_Dense", {"out_features": 0}, "in_features and out_features must be whole numbers"),
        (
            "3_Dense",
            {"out_features": 11},
            r"3_Dense/model.safetensors: tensor linear.weight has shape \[10, 24\], config.json wants \[11, 24\]",
        ),
    ],
)
def test_a_pooling_or_a_head(source, folder, fields, message):
    change(source / folder / "config.json", **fields)
    refused(source, message)


def test_a_head_without_the_fields_that_sentence_transformers_defaults(source):
    hf.write_json(source / "2_Dense/config.json", {"in_features": 16, "out_features": 24})
    refused(source, "2_Dense/config.json: bias = True")
    hf.write_json(source / "2_Dense/config.json", {"in_features": 16, "out_features": 24, "bias": False})
    refused(source, "2_Dense/config.json: activation_function = torch.nn.modules.activation.Tanh")


def test_modules_in_another_order_or_of_another_kind(source):
    modules = json.loads((source / "modules.json").read_text())
    hf.write_json(source / "modules.json", [modules[0], modules[2], modules[1], *modules[3:]])
    refused(source, "modules.json: modules Transformer, Dense, Pooling, Dense, Normalize: the tower has")
    hf.write_json(source / "modules.json", [{"type": "a.Router", "path": ""}])
    refused(source, "modules.json: modules Router")
    hf.write_json(source / "modules.json", [{"path": ""}])
    refused(source, "modules.json: not a list of modules")
    hf.write_json(source / "modules.json", [modules[0], {**modules[1], "path": "../1_Pooling"}, *modules[2:]])
    refused(source, "modules.json: a module's path leads out of this folder")
    hf.write_json(source / "modules.json", modules)
    hf.write_json(source / "sentence_bert_config.json", {"do_lower_case": True})
    refused(source, "sentence_bert_config.json: do_lower_case")
    (source / "sentence_bert_config.json").unlink()
    hf.write_json(source / "config_sentence_transformers.json", {"prompts": {"query": 3}})
    refused(source, "config_sentence_transformers.json: prompts must be texts")


def test_a_head_with_more_than_its_matrix(source):
    head = safetensors.numpy.load_file(source / "2_Dense/model.safetensors")
    safetensors.numpy.save_file(head | {"linear.bias": np.zeros(24, np.float32)}, source / "2_Dense/model.safetensors")
    refused(source, r"2_Dense/model.safetensors: tensor linear.bias \(1 such\): a dense head has linear.weight alone")
    (source / "2_Dense/model.safetensors").unlink()
    (source / "2_Dense/pytorch_model.bin").write_bytes(b"a pickle")
    refused(source, "2_Dense/pytorch_model.bin: a pickle may run any program")


def rewrite(source, edit, name="model-00001-of-00002.safetensors"):
    """Edits the tensors of one file, and the index with them."""
    path = source / name
    tensors = safetensors.numpy.load_file(path)
    edit(tensors)
    safetensors.numpy.save_file(tensors, path)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    kept = {k: v for k, v in index["weight_map"].items() if v != name}
    hf.write_json(source / "model.safetensors.index.json", {"weight_map": kept | dict.fromkeys(tensors, name)})


def test_a_missing_tensor(source):
    gone = "model.layers.1.mlp.gate_proj.weight"
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        rewrite(source, lambda tensors: tensors.pop(gone, None), name)
    refused(source, rf"source: tensor {gone} is missing in its \*.safetensors; config.json wants it, in shape \[24, 16\]")


@pytest.mark.parametrize("table", ["model.embed_tokens.weight", "transformer.wte.weight"])
def test_a_missing_or_second_table(source, table):
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        rewrite(source, lambda tensors: tensors.pop("model.embed_tokens.weight", None), name)
    rewrite(source, lambda tensors: tensors.update({table: np.zeros((300, 16), np.float32)}))
    if table == "model.embed_tokens.weight":
        rewrite(source, lambda tensors: tensors.update({"embed_tokens.weight": np.zeros((300, 16), np.float32)}))
        refused(source, "tensor embed_tokens.weight is there more than once, as model.embed_tokens.weight, embed_tokens.weight")
    else:
        refused(source, "tensor embed_tokens.weight is missing under each of the names model.embed_tokens.weight")


@pytest.mark.parametrize(
    "name,why",
    [
        ("model.layers.0.self_attn.q_proj.bias", "the tower of a gemma3_text with 3 layers has no place for it"),
        ("model.layers.3.self_attn.q_proj.weight", "has no place for it"),
        ("model.layers.0.mlp.experts.gate_proj.weight", "has no place for it"),
        ("vision_tower.a", "has no place for it"),
        ("lm_head.weight_scale", "has no place for it"),
    ],
)
def test_an_unknown_tensor(source, name, why):
    rewrite(source, lambda tensors: tensors.update({name: np.zeros(3, np.float32)}))
    refused(source, rf"model-00001-of-00002.safetensors: tensor {name} \(1 such\): .*{why}")


def test_a_wrong_shape(source):
    victim = "model.layers.2.input_layernorm.weight"
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        rewrite(source, lambda tensors: tensors.update({victim: np.zeros(17, np.float32)}) if victim in tensors else None, name)
    refused(source, rf"model-0000\d-of-00002.safetensors: tensor {victim} has shape \[17\], config.json wants \[16\]")
    change(source / "config.json", vocab_size=301)
    refused(source, r"tensor model.embed_tokens.weight has shape \[300, 16\], config.json wants \[301, 16\]")


def test_other_dtypes(source):
    victim = "model.layers.1.mlp.up_proj.weight"

    def cast(dtype):
        for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
            rewrite(source, lambda tensors: tensors.update({victim: tensors[victim].astype(dtype)}) if victim in tensors else None, name)

    cast(np.int8)
    refused(source, f"tensor {victim} is I8; parameters must be F32, BF16, F16: give a model that is not quantised")
    cast(jnp.bfloat16)
    refused(source, f"tensor {victim} is bfloat16, model.layers.0.mlp.up_proj.weight is float32; save the model in one dtype")


def test_files_that_do_not_belong_together(source):
    index = source / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    second = source / "model-00002-of-00002.safetensors"
    hf.write_json(index, {"weight_map": {**places, "model.other": second.name}})
    refused(source, "index.json: tensor model.other is in model-00002-of-00002.safetensors by the index and in no file in fact")
    hf.write_json(index, {"weight_map": {k: v for k, v in places.items() if k != "model.norm.weight"}})
    refused(source, "index.json: tensor model.norm.weight is in no file by the index")
    hf.write_json(index, {"weight_map": {**places, "model.norm.weight": "../other.safetensors"}})
    refused(source, "index.json: weight_map must name the file of each tensor, in the same folder")
    hf.write_json(index, {})
    refused(source, "index.json: weight_map must name")
    hf.write_json(index, {"weight_map": places})
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    refused(
        source, "model-00002-of-00002.safetensors: truncated in tensor model.norm.weight|model-00002-of-00002.safetensors: truncated in"
    )
    second.unlink()
    refused(source, "model-00002-of-00002.safetensors: not there, but model.safetensors.index.json names it")
    index.unlink()
    second.write_bytes((source / "model-00001-of-00002.safetensors").read_bytes())
    refused(source, r"model-00002-of-00002.safetensors: tensor \S+ is in model-00001-of-00002.safetensors too")


def test_pickles(source):
    for path in source.glob("*.safetensors"):
        path.unlink()
    refused(source, r"source: no \*.safetensors there")
    (source / "consolidated.00.pth").write_bytes(b"a pickle")
    refused(source, "consolidated.00.pth: a pickle may run any program when it is read; save the model as safetensors")


def test_tokenizers(source):
    (source / "tokenizer.json").write_text("{}")
    refused(source, "tokenizer.json: not a tokenizer.json of Hugging Face")
    (source / "tokenizer.json").unlink()
    refused(source, "source: neither tokenizer.json nor tokenizer.model is there")
    (source / "tokenizer.model").write_text("no model")
    refused(source, "tokenizer.model: not a SentencePiece model")
    hf.write_tokenizer(source / "tokenizer.json", "", "<eos>")
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        rewrite(source, lambda t: t.update({k: t[k][:200] for k in t if "embed_tokens" in k}), name)
    change(source / "config.json", vocab_size=200)
    refused(source, "tokenizer.json: begin or end token 257 is outside the 200 text tokens")


def test_a_tokenizer_that_changes_a_text(source):
    record = json.loads((source / "tokenizer.json").read_text())
    record["post_processor"]["single"] = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}]  # and no text
    hf.write_json(source / "tokenizer.json", record)
    refused(source, "tokenizer.json: what it adds to a text does not stand before and after it")


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="none: no such folder; download the model"):
        pretrained.open_llm(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty/config.json: cannot be read"):
        pretrained.open_llm(str(tmp_path / "empty"))
    (tmp_path / "empty/config.json").write_text("{")
    with pytest.raises(UserError, match="empty/config.json: damaged"):
        pretrained.open_llm(str(tmp_path / "empty"))
