"""One ID space: text equal to SeqIO's and to the tokenizer file's own, units above it, prefixes of two tokens."""

import unicodedata

import numpy as np
import pytest
import sentencepiece
import seqio
import tensorflow as tf
from llm_tokenizers import LANGUAGES, STRANGE, TEXTS
from tokenizers import Tokenizer, models

from tasks.vocabulary import ExtendedVocabulary
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError


def in_a_graph(extended, values):
    """What `seqio.preprocessors.tokenize` makes of features, in a tf.data pipeline."""
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"inputs": value} for value in values),
        output_signature={"inputs": tf.TensorSpec([], tf.string) if isinstance(values[0], str) else tf.TensorSpec([None], tf.int32)},
    )
    features = {"inputs": seqio.Feature(extended, add_eos=False)}
    tokenized = seqio.preprocessors.tokenize(dataset, features, copy_pretokenized=False)
    assert tokenized.element_spec["inputs"] == tf.TensorSpec([None], tf.int32)
    return [example["inputs"].tolist() for example in tokenized.as_numpy_iterator()]


def test_text_ids_are_those_of_seqio(vocabulary):
    theirs, ours = seqio.SentencePieceVocabulary(str(vocabulary.tokenizer_file)), ExtendedVocabulary(vocabulary)
    for text in [*TEXTS, *STRANGE, "[Polish text] in the text", "</s> <pad> <unk>"]:
        assert vocabulary.encode_text(text).tolist() == theirs.encode(text) == ours.encode(text)
        assert ours.encode_tf(tf.constant(text)).numpy().tolist() == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.vocab_size == vocabulary.size == theirs.vocab_size + 50
    assert vocabulary.unknown_id == theirs.unk_id == ours.unk_id


def test_text_ids_are_those_of_the_file_also_in_a_graph(llm):
    kind, path, theirs = llm
    vocabulary = Vocabulary(path, 50)
    extended, texts = ExtendedVocabulary(vocabulary), [*TEXTS, *STRANGE, "[Polish text]"]
    expected = [theirs(text) for text in texts]
    assert [vocabulary.encode_text(text).tolist() for text in texts] == expected == in_a_graph(extended, texts)
    assert [extended.encode(text) for text in texts] == expected
    assert vocabulary.encode_text("").dtype == np.int32
    units = vocabulary.encode_units([0, 49])
    assert in_a_graph(extended, [units]) == [units.tolist()], "units pass through"
    if kind != "unigram":  # it loses what it does not know
        decoded = [vocabulary.decode(ids) for ids in expected]
        assert decoded == [unicodedata.normalize("NFC", t) if kind == "byte_level" else t.replace("▁", " ") for t in texts]
    rows = [[*theirs("Montag"), vocabulary.text_size + 3], [*theirs("Montag"), vocabulary.text_size + 4]]
    assert extended.decode_tf(tf.constant(rows)).numpy().tolist() == [
        b"Montag\xe2\x9f\xa8u3\xe2\x9f\xa9",
        b"Montag\xe2\x9f\xa8u4\xe2\x9f\xa9",
    ]
    assert extended == ExtendedVocabulary(Vocabulary(path, 50)) != ExtendedVocabulary(Vocabulary(path, 51))


def test_names_of_control_symbols(llm_files, vocabulary):
    gemma = Vocabulary(llm_files["sentencepiece"], 0)
    piece = sentencepiece.SentencePieceProcessor(model_file=str(llm_files["sentencepiece"])).piece_to_id
    montag = gemma.encode_text("montag").tolist()
    for name in ("<pad>", "<eos>", "<bos>", "<unk>", "<bos>2", "<start_of_turn>"):
        assert gemma.encode_text(f"montag{name}montag").tolist() == [*montag, piece(name), *montag]
        assert gemma.encode_text(name + name).tolist() == [piece(name)] * 2
    assert gemma.encode_text("<bos >").tolist() == [piece(f"<0x{ord('<'):02X}>"), *gemma.encode_text("bos >")]
    assert gemma.decode([2, *montag, 1]) == "montag"
    qwen = Vocabulary(llm_files["byte_level"], 0)
    assert qwen.encode_text("a<|endoftext|>b").tolist() == [*qwen.encode_text("a"), 320, *qwen.encode_text("b")]
    assert qwen.decode([*qwen.encode_text("a"), 320]) == "a"
    assert len(vocabulary.encode_text("<pad>")) > 3, "a model without a beginning of sequence spells them, as SentencePiece does"


def test_what_is_unknown(llm_files, vocabulary):
    unknown = {kind: Vocabulary(path, 0).unknown_id for kind, path in llm_files.items()}
    assert unknown == {"sentencepiece": None, "byte_level": None, "unigram": 1, "byte_fallback": None}
    for kind, path in llm_files.items():
        one = Vocabulary(path, 0)
        assert one.has_unknown(one.encode_text("Montag ⵣ")) == (kind == "unigram")
        assert not one.has_unknown(one.encode_text("montag"))
    assert vocabulary.has_unknown(vocabulary.encode_text("ⵣ"))
    assert not vocabulary.has_unknown([])


def test_a_json_model_without_bytes_has_an_unknown_token(tmp_path):
    for model, unknown in ((models.BPE({"?": 0, "a": 1}, [], unk_token="?"), 0), (models.WordLevel({"a": 0, "?": 1}, "?"), 1)):
        Tokenizer(model).save(str(tmp_path / "t.json"))
        vocabulary = Vocabulary(tmp_path / "t.json", 1)
        assert vocabulary.unknown_id == unknown
        assert vocabulary.encode_text("b").tolist() == [unknown]


def test_units_stand_above_the_text_and_nowhere_else(vocabulary):
    ids = vocabulary.encode_units([0, 49, 7])
    assert (ids == np.array([0, 49, 7]) + vocabulary.text_size).all()
    assert ExtendedVocabulary(vocabulary).encode_tf(tf.constant(ids)).numpy().tolist() == ids.tolist(), "units pass through"
    assert vocabulary.decode([*vocabulary.encode_text("montag"), *ids]) == "montag⟨u0⟩⟨u49⟩⟨u7⟩"
    for wrong in ([50], [-1, 3]):
        with pytest.raises(UserError, match="outside"):
            vocabulary.encode_units(wrong)
    with pytest.raises(UserError, match="has no units and reads text only"):
        Vocabulary(vocabulary.tokenizer_file, 0).encode_units([0])


def test_the_table_of_an_llm_has_more_rows_than_its_tokenizer_has_pieces(llm):
    _, path, theirs = llm
    pieces = Vocabulary(path, 0).text_size
    assert pieces > max(max(theirs(text)) for text in TEXTS)
    wide = Vocabulary(path, 5, text_size=pieces + 20)
    assert (wide.text_size, wide.size) == (pieces + 20, pieces + 25)
    assert wide.encode_units([0, 4]).tolist() == [pieces + 20, pieces + 24]
    assert wide.decode([*theirs("Montag"), pieces + 19, pieces + 20]) == f"Montag⟨{pieces + 19}⟩⟨u0⟩"


def test_a_token_without_a_row_is_an_error_that_names_it_and_the_text(llm_files):
    """Gemma 3 of 270 million and one billion: `<image_soft_token>` is 262,144, and the table has 262,144 rows."""
    whole = Vocabulary(llm_files["byte_fallback"], 0)
    token = whole.text_size - 1
    assert whole.encode_text("<image_soft_token>").tolist() == [token]
    narrow = Vocabulary(llm_files["byte_fallback"], 9, text_size=token)
    assert narrow.encode_text("Montag").tolist() == whole.encode_text("Montag").tolist()
    with pytest.raises(UserError, match=rf"'Montag <image_soft_token>': token {token} has no row in the LLM's table of {token}"):
        narrow.encode_text("Montag <image_soft_token>")
    assert narrow.decode([token]) == "⟨u0⟩"
    for begin, end in (((token,), ()), ((), (-1,))):
        with pytest.raises(UserError, match=rf"begin or end token -?\d+ is outside the {token} text tokens"):
            Vocabulary(llm_files["byte_fallback"], 9, text_size=token, begin_ids=begin, end_ids=end)


def test_a_sequence_is_begin_prefix_text_end(llm):
    _, path, theirs = llm
    vocabulary = Vocabulary(path, 5, begin_ids=[2], end_ids=[1, 3])
    prefix = theirs("[German speech]")
    assert vocabulary.encode_prefix("de", "speech").tolist() == [2, *prefix]
    ids = vocabulary.encode_units([4, 0])
    sequence = vocabulary.sequence(ids, "de_de", "speech")
    assert sequence.tolist() == [2, *prefix, *ids, 1, 3]
    assert sequence.dtype == np.int32
    assert Vocabulary(path, 5, template="", begin_ids=[2]).sequence(ids, "de_de", "speech").tolist() == [2, *ids], "no prefix"
    assert vocabulary.end_ids == (1, 3)


def test_a_prefix_is_language_and_modality(vocabulary):
    rows = {(code, modality): vocabulary.encode_prefix(code, modality).tolist() for code in LANGUAGES for modality in ("speech", "text")}
    assert all(len(row) == 2 for row in rows.values())
    assert len({row[0] for row in rows.values()}) == 3, "a token a language"
    assert len({row[1] for row in rows.values()}) == 2, "a token a modality, in every language the same"
    assert vocabulary.encode_prefix("pl", "text").tolist() == rows["pl_pl", "text"]
    assert len(vocabulary.encode_prefix("fr_fr", "text")) > 2, "a language without a piece is spelled"
    with pytest.raises(UserError, match="neither speech nor text"):
        vocabulary.encode_prefix("de_de", "video")
    for template in ("[{langauge}]", "[{}]", "[{language]"):
        with pytest.raises(UserError, match="only {language} and {modality} may stand in braces"):
            Vocabulary(vocabulary.tokenizer_file, 1, template).encode_prefix("de_de", "text")


def test_a_text_that_is_not_unicode_is_an_error(llm):
    with pytest.raises(UserError, match=r"'a\\udcff': not a text in valid Unicode"):
        Vocabulary(llm[1], 1).encode_text("a\udcff")
