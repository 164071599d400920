"""Where a vocabulary comes from: a tokenizer's file or a model directory, its fingerprint, copies and forks, and files that are none."""

import copy
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import tokenizers
from tokenizers import Tokenizer, models

from xretrieval.data.vocabulary import DEFAULT_TEMPLATE, Vocabulary
from xretrieval.errors import UserError, write_json


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
