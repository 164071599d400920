"""Vocabularies over the tokenizers of LLMs and over our own."""

import pytest
import sentencepiece
from llm_tokenizers import LANGUAGES, MAKERS, TEXTS
from tokenizers import Tokenizer

from xretrieval.data.text_tokenizer import prefix_pieces, train_text_tokenizer
from xretrieval.data.vocabulary import DEFAULT_TEMPLATE, Vocabulary


@pytest.fixture(scope="module")
def llm_files(tmp_path_factory):
    files = {}
    for kind, (name, make) in MAKERS.items():
        files[kind] = tmp_path_factory.mktemp(kind) / name
        make(files[kind])
    return files


@pytest.fixture(params=MAKERS)
def llm(request, llm_files):
    """(kind, file, IDs of a text as the file's own library gives them)."""
    path = llm_files[request.param]
    if request.param == "sentencepiece":
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode
    else:
        tokenizer = Tokenizer.from_file(str(path))
        theirs = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    return request.param, path, theirs


@pytest.fixture(scope="module", params=[(90, False), (None, True)], ids=["bpe", "characters"])
def vocabulary(request, tmp_path_factory):
    size, fold = request.param
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    pieces = [piece for code in LANGUAGES for piece in prefix_pieces(DEFAULT_TEMPLATE, code)]
    train_text_tokenizer(TEXTS, str(path), size, pieces, fold_case=fold)
    return Vocabulary(path, num_units=50)
