"""One ID space: text equal to SeqIO's, units above it, prefixes of two tokens."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from tasks.vocabulary import ExtendedVocabulary
from xretrieval.data.vocabulary import DEFAULT_TEMPLATE, Vocabulary, prefix_pieces, train_text_tokenizer
from xretrieval.errors import UserError

TEXTS = ["Polen und Montag", "montag", "понедельник, июль и евро", "Lunes, Polonia y euro", "星期一和欧元", "ΑΒΓ αβγ"] * 5
LANGUAGES = ("de_de", "pl_pl", "cmn_hans_cn")


@pytest.fixture(scope="module", params=[(90, False), (None, True)], ids=["bpe", "characters"])
def vocabulary(request, tmp_path_factory):
    size, fold = request.param
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    pieces = [piece for code in LANGUAGES for piece in prefix_pieces(DEFAULT_TEMPLATE, code)]
    train_text_tokenizer(TEXTS, str(path), size, pieces, fold_case=fold)
    return Vocabulary(path, num_units=50)


def test_text_ids_are_those_of_seqio(vocabulary):
    theirs, ours = seqio.SentencePieceVocabulary(str(vocabulary.tokenizer_file)), ExtendedVocabulary(vocabulary)
    for text in [*TEXTS, "Etwas, das es nicht gab: ſ ﬁ ½", "[Polish text] in the text"]:
        assert vocabulary.encode_text(text).tolist() == theirs.encode(text) == ours.encode(text)
        assert ours.encode_tf(tf.constant(text)).numpy().tolist() == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.vocab_size == vocabulary.size == theirs.vocab_size + 50


def test_units_stand_above_the_text_and_nowhere_else(vocabulary):
    ids = vocabulary.encode_units([0, 49, 7])
    assert (ids == np.array([0, 49, 7]) + vocabulary.text_size).all()
    assert ExtendedVocabulary(vocabulary).encode_tf(tf.constant(ids)).numpy().tolist() == ids.tolist(), "units pass through"
    assert vocabulary.decode([*vocabulary.encode_text("montag"), *ids]) == "montag⟨u0⟩⟨u49⟩⟨u7⟩"
    for wrong in ([50], [-1, 3]):
        with pytest.raises(UserError, match="outside"):
            vocabulary.encode_units(wrong)


def test_a_prefix_is_language_and_modality(vocabulary):
    rows = {(code, modality): vocabulary.encode_prefix(code, modality).tolist() for code in LANGUAGES for modality in ("speech", "text")}
    assert all(len(row) == 2 for row in rows.values())
    assert len({row[0] for row in rows.values()}) == 3, "a token a language"
    assert len({row[1] for row in rows.values()}) == 2, "a token a modality, in every language the same"
    assert vocabulary.encode_prefix("pl", "text").tolist() == rows["pl_pl", "text"]
    assert len(vocabulary.encode_prefix("fr_fr", "text")) > 2, "a language without a piece is spelled"
    with pytest.raises(UserError, match="neither speech nor text"):
        vocabulary.encode_prefix("de_de", "video")


def test_case_is_folded_where_asked(tmp_path):
    for fold in (False, True):
        train_text_tokenizer(TEXTS, str(tmp_path / "t.model"), None, fold_case=fold)
        encode = Vocabulary(tmp_path / "t.model", 1).encode_text
        assert (encode("ПОЛ").tolist() == encode("пол").tolist()) == fold


def test_one_piece_a_character(tmp_path):
    train_text_tokenizer(TEXTS, str(tmp_path / "t.model"), None)
    assert len(Vocabulary(tmp_path / "t.model", 1).encode_text("понедельник и")) == len("_понедельник_и")


def test_errors_name_the_setting(tmp_path):
    with pytest.raises(UserError, match="text_tokenizer.vocab_size"):
        train_text_tokenizer(["ab"], str(tmp_path / "t.model"), 5000)
    with pytest.raises(UserError, match="empty"):
        train_text_tokenizer([], str(tmp_path / "t.model"), 100)
    (tmp_path / "no.model").write_bytes(b"no")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Vocabulary(tmp_path / "no.model", 1)
