"""One ID space: text equal to SeqIO's and to the tokenizer file's own, units above it, prefixes of two tokens."""

import copy
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import sentencepiece
import seqio
import tensorflow as tf
import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tasks.vocabulary import ExtendedVocabulary
from xretrieval.data.text_tokenizer import prefix_pieces, train_text_tokenizer
from xretrieval.data.vocabulary import DEFAULT_TEMPLATE, Vocabulary
from xretrieval.errors import UserError, write_json

TEXTS = ["Polen und Montag", "montag", "понедельник, июль и евро", "Lunes, Polonia y euro", "星期一和欧元", "ΑΒΓ αβγ"] * 5
STRANGE = ["", " ", "a  b\n\n\tc\r\n", "Etwas, das es nicht gab: ſ ﬁ ½", "ⴰⵣⵓⵍ 😀 e\u0301", "nul \0 end\0", "▁ ⟨u3⟩"]
LANGUAGES = ("de_de", "pl_pl", "cmn_hans_cn")


def sentencepiece_llm(path):
    """As Gemma's: byte fallback, no space put in front, nothing normalised, a beginning of sequence."""
    with open(path, "wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS),
            model_writer=out,
            model_type="bpe",
            vocab_size=380,
            hard_vocab_limit=False,
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            eos_piece="<eos>",
            bos_piece="<bos>",
            control_symbols=["<bos>2"],
            user_defined_symbols=["<start_of_turn>"],
            minloglevel=2,
        )


def byte_level_json(path):
    """As Qwen's: byte-level BPE of text in NFC."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    tokenizer.save(str(path))


def unigram_json(path):
    """As XLM-R's: an unknown token, no bytes."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.save(str(path))


def byte_fallback_json(path):
    """As Gemma's: BPE of characters, and bytes for those it lacks."""
    tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *sorted(set("".join(TEXTS)) - {" "}), "on", "Mon"]
    merges = [("o", "n"), ("M", "on")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("<image_soft_token>", special=True, normalized=False)])
    tokenizer.save(str(path))


MAKERS = {
    "sentencepiece": ("tokenizer.model", sentencepiece_llm),
    "byte_level": ("tokenizer.json", byte_level_json),
    "unigram": ("tokenizer.json", unigram_json),
    "byte_fallback": ("tokenizer.json", byte_fallback_json),
}


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


def test_open_reads_a_file_or_a_model_directory(llm, tmp_path):
    _, path, _ = llm
    assert Vocabulary.open(path, 7).fingerprint == Vocabulary(path, 7).fingerprint
    assert Vocabulary.open(path, 7, "").template == ""
    shutil.copy(path, tmp_path)
    pieces = Vocabulary(path, 0).text_size
    record = {"text_tokens": pieces + 3, "unit_tokens": 0, "prefix_template": "{language}: ", "tokenizer_file": path.name}
    write_json(tmp_path / "xretrieval.json", {**record, "begin_tokens": [2], "end_tokens": [1]})
    opened = Vocabulary.open(tmp_path, 7)
    assert opened.fingerprint == Vocabulary(path, 7, "{language}: ", pieces + 3, (2,), (1,)).fingerprint
    assert (opened.num_units, opened.text_size, opened.begin_ids, opened.end_ids) == (7, pieces + 3, (2,), (1,))
    assert Vocabulary.open(str(tmp_path), 7, "[{modality}]").template == "[{modality}]"
    write_json(tmp_path / "xretrieval.json", {"tokenizer_file": path.name})
    with pytest.raises(UserError, match=r"xretrieval.json: the field '\w+' is missing"):
        Vocabulary.open(tmp_path, 7)
    os.remove(tmp_path / "xretrieval.json")
    with pytest.raises(UserError, match="not a model directory"):
        Vocabulary.open(tmp_path, 7)


def test_open_reads_a_directory_of_the_first_format(vocabulary, tmp_path):
    shutil.copy(vocabulary.tokenizer_file, tmp_path / "tokenizer.model")
    write_json(tmp_path / "xretrieval.json", {"text_tokens": vocabulary.text_size, "prefix_template": DEFAULT_TEMPLATE})
    assert Vocabulary.open(tmp_path, 50).fingerprint == vocabulary.fingerprint


def test_the_fingerprint_holds_what_decides_ids(vocabulary, tmp_path):
    content = vocabulary.tokenizer_file.read_bytes()
    assert vocabulary.fingerprint == hashlib.sha256(content + b" 50 [{language} {modality}]").hexdigest(), "that of format version 1"
    make = lambda *args, **kwargs: Vocabulary(vocabulary.tokenizer_file, *args, **kwargs).fingerprint
    assert make(50, text_size=vocabulary.text_size, begin_ids=[], end_ids=()) == vocabulary.fingerprint, "the defaults, said"
    others = [make(51), make(50, "x"), make(50, text_size=999), make(50, begin_ids=[1]), make(50, end_ids=[1]), make(50, end_ids=[2])]
    assert len({vocabulary.fingerprint, *others}) == 7


def test_what_a_json_asks_beyond_ids_is_left(llm_files, tmp_path):
    tokenizer = Tokenizer.from_file(str(llm_files["byte_level"]))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A <|endoftext|>", special_tokens=[("<|endoftext|>", 320)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    plain, asking = (
        Vocabulary(path, 0).encode_text("Lunes, Polonia y euro") for path in (llm_files["byte_level"], tmp_path / "tokenizer.json")
    )
    assert asking.tolist() == plain.tolist()
    assert len(plain) > 2


def test_ids_with_gaps_count_to_the_highest(tmp_path):
    Tokenizer(models.WordLevel({"a": 0, "b": 7}, "a")).save(str(tmp_path / "t.json"))
    assert Vocabulary(tmp_path / "t.json", 1).encode_units([0]).tolist() == [8]


def test_a_vocabulary_can_be_copied_and_sent(llm):
    _, path, theirs = llm
    vocabulary = Vocabulary(path, 5, begin_ids=[1])
    for other in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
        assert other.fingerprint == vocabulary.fingerprint
        assert other.encode_text("Montag").tolist() == theirs("Montag")


def test_a_fork_after_encoding_is_quiet_and_works(llm_files):
    code = (
        "import os, sys; from xretrieval.data.vocabulary import Vocabulary\n"
        "v = Vocabulary(sys.argv[1], 1); v.encode_text('Montag ' * 5000)\n"
        "child = os.fork()\n"
        "if not child: os._exit(0 if len(v.encode_text('Montag ' * 5000)) else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        # Python 3.12 warns of any fork beside threads, NumPy's among them.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(llm_files["byte_level"])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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


def test_a_text_that_is_not_unicode_is_an_error(llm):
    with pytest.raises(UserError, match=r"'a\\udcff': not a text in valid Unicode"):
        Vocabulary(llm[1], 1).encode_text("a\udcff")


def test_damaged_and_foreign_files_are_named(llm, tmp_path):
    kind, path, _ = llm
    content = path.read_bytes()
    other = "a SentencePiece model" if kind == "sentencepiece" else "a tokenizer.json of Hugging Face"
    for broken in (b"", content[: len(content) // 3], content[: len(content) // 2], content[:-1], content[100:]):
        (tmp_path / path.name).write_bytes(broken)
        with pytest.raises(UserError, match=rf"{path.name}: not {other} \(.+\); copy it again"):
            Vocabulary(tmp_path / path.name, 1)
    shutil.copy(path, tmp_path / "renamed")
    assert Vocabulary(tmp_path / "renamed", 1).text_size == Vocabulary(path, 1).text_size, "the content says what it is"
    for foreign in ({}, {"model_type": "gemma"}, {"model": {"type": "BPE"}}, {"a": 0, "b": 1}):
        (tmp_path / "config.json").write_text(json.dumps(foreign))
        with pytest.raises(UserError, match=r"config.json: not a tokenizer.json of Hugging Face"):
            Vocabulary(tmp_path / "config.json", 1)
    for name, nothing, why in (("t.model", "", "pieces"), ("t.json", Tokenizer(models.BPE()).to_str(), "tokens")):
        (tmp_path / name).write_text(nothing)
        with pytest.raises(UserError, match=rf"{name}: .*it holds no {why}"):
            Vocabulary(tmp_path / name, 1)
    with pytest.raises(UserError, match="no such text tokenizer"):
        Vocabulary(tmp_path / "none.json", 1)
    with pytest.raises(UserError, match="cannot be read"):
        Vocabulary(tmp_path, 1)
