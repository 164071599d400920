"""The tiny models that transformers wrote (`make parity`): imported without an error, with the tokens around a text that transformers adds."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from xretrieval.model import directory, pretrained

ROOT = pathlib.Path(__file__).parents[1] / "data/parity"
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/config.json"))


def test_there_are_files_of_each_family():
    assert len(FOLDERS) >= 7


@pytest.mark.parametrize("name", FOLDERS)
def test_import(tmp_path, name):
    done = pretrained.import_llm(str(ROOT / name), str(tmp_path / "llm"))
    model = directory.read(tmp_path / "llm")
    assert done.parameters == sum(x.size for x in model.params.values()) - (-model.config.text_size % 128) * model.config.width
    reference = safetensors.numpy.load_file(ROOT / name / "reference.safetensors")
    for text in json.loads((ROOT / name / "reference_texts.json").read_text()):
        prompt = model.prompts[text["prompt_name"]] if text["prompt_name"] else ""
        ids = model.vocabulary.encode_text(prompt + text["text"])
        whole = np.concatenate([model.vocabulary.begin_ids, ids, model.vocabulary.end_ids])
        np.testing.assert_array_equal(whole, reference[f"tokens.{text['index']}"])


@pytest.mark.parametrize("name", FOLDERS)
def test_the_words_of_the_released_files_give_the_same_model(tmp_path, name):
    shutil.copytree(ROOT / name, tmp_path / "released")
    (tmp_path / "released/config.released.json").rename(tmp_path / "released/config.json")
    written, released = pretrained.open_llm(str(ROOT / name)), pretrained.open_llm(str(tmp_path / "released"))
    assert written.config == released.config
    assert written.family == released.family


@pytest.mark.parametrize(
    "settings,begin,end",
    [({"add_bos_token": True, "add_eos_token": True}, (2,), (1,)), ({"add_bos_token": False}, (), ()), (None, (2,), ())],
)
def test_beside_a_sentencepiece_model_the_settings_count(tmp_path, settings, begin, end):
    shutil.copytree(ROOT / "gemma1", tmp_path / "source")
    (tmp_path / "source/tokenizer_config.json").unlink()
    if settings is not None:
        (tmp_path / "source/tokenizer_config.json").write_text(json.dumps(settings))
    pretrained.import_llm(str(tmp_path / "source"), str(tmp_path / "llm"))
    vocabulary = directory.read(tmp_path / "llm").vocabulary
    assert (vocabulary.begin_ids, vocabulary.end_ids, vocabulary.tokenizer_file.name) == (begin, end, "tokenizer.model")
