"""Texts in 36 scripts, and odd ones: IDs equal to those of transformers' classes (`make parity` wrote them, tests/parity says how)."""

import json
import pathlib
import unicodedata

import pytest
import tensorflow as tf

from tasks.vocabulary import ExtendedVocabulary
from xretrieval.data.vocabulary import Vocabulary

HERE = pathlib.Path(__file__).parent / "parity/tokenizers"
TEXTS = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
REFERENCE = json.loads((HERE / "reference_ids.json").read_text(encoding="utf-8"))
# "▁" stands for a space inside. Where a text holds it itself, the class looks for pieces of several before spaces become "▁", the model after.
FILE_DIFFERS_FROM_CLASS = {"gemma_model": {"sigils"}, "gemma_json": set(), "qwen_json": set()}
# What the reference puts around a text.
BEGIN_END = {"gemma_model": ((2,), ()), "gemma_json": ((2,), ()), "qwen_json": ((), (680,))}


def open_tokenizer(name, **settings):
    (path,) = [path for path in (HERE / name).iterdir() if path.name in ("tokenizer.model", "tokenizer.json")]
    return Vocabulary(path, 10, **settings)


def test_the_texts_are_in_thirty_scripts():
    scripts = {unicodedata.name(c).split()[0] for text in TEXTS.values() for c in text if c.isalpha()}
    assert len(scripts) >= 30
    assert {name: reference.keys() == TEXTS.keys() for name, reference in REFERENCE.items()} == dict.fromkeys(BEGIN_END, True)


@pytest.mark.parametrize("name", REFERENCE)
def test_ids_are_those_of_the_class_in_transformers(name):
    vocabulary, differ = open_tokenizer(name), set()
    extended = ExtendedVocabulary(vocabulary)
    for text_name, reference in REFERENCE[name].items():
        found = vocabulary.encode_text(TEXTS[text_name]).tolist()
        assert found == extended.encode_tf(tf.constant(TEXTS[text_name])).numpy().tolist()
        if found != reference["plain"]:
            differ.add(text_name)
            assert found == reference["sentencepiece"], "then those that the model's own library gives"
    assert differ == FILE_DIFFERS_FROM_CLASS[name]


@pytest.mark.parametrize("name", REFERENCE)
def test_begin_and_end_give_the_ids_with_special_tokens(name):
    begin, end = BEGIN_END[name]
    vocabulary = open_tokenizer(name, template="", begin_ids=begin, end_ids=end)
    for text_name in TEXTS.keys() - FILE_DIFFERS_FROM_CLASS[name]:
        sequence = vocabulary.sequence(vocabulary.encode_text(TEXTS[text_name]), "en_us", "text")
        assert sequence.tolist() == REFERENCE[name][text_name]["special"], text_name


@pytest.mark.parametrize("name", REFERENCE)
def test_texts_come_back(name):
    """Also what a tokenizer that was trained on eight scripts spells in bytes."""
    vocabulary = open_tokenizer(name)
    assert vocabulary.unknown_id is None
    for text_name in TEXTS.keys() - {"names of special tokens"}:
        text = TEXTS[text_name]
        expected = unicodedata.normalize("NFC", text) if name == "qwen_json" else text.replace("▁", " ")
        assert vocabulary.decode(vocabulary.encode_text(text)) == expected


def test_the_model_and_the_json_of_gemma_agree():
    """Control symbols named in a text are read by both: SentencePiece alone would spell them."""
    model, converted = open_tokenizer("gemma_model"), open_tokenizer("gemma_json")
    assert model.text_size == converted.text_size
    for text_name in TEXTS.keys() - {"sigils"}:
        assert model.encode_text(TEXTS[text_name]).tolist() == converted.encode_text(TEXTS[text_name]).tolist()
    assert 2 in model.encode_text("<bos>")
    assert 2 not in REFERENCE["gemma_model"]["names of special tokens"]["sentencepiece"]
