"""Our own text tokenizer: case, pieces of one character, and settings that cannot be."""

import pytest
from llm_tokenizers import TEXTS

from xretrieval.data.text_tokenizer import train_text_tokenizer
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError


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
