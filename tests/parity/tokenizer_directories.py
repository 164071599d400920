"""Two small tokenizers in the files of Gemma's and Qwen3's releases, and the IDs that the reference's classes give."""

import functools
import io
import json
import pathlib
import shutil
import tempfile

import sentencepiece
import tokenizers
import transformers
from sentences import TEXTS, TRAINING
from tokenizers import processors

# As in Gemma's model: names, runs of newlines and of spaces, and markup are pieces of their own.
GEMMA_SYMBOLS = ["<mask>", "<start_of_turn>", "<end_of_turn>", "<unused0>", "<unused1>", "\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁"]
GEMMA_SYMBOLS += ["<table>", "</table>", "<b>", "</b>"]
GEMMA_NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_ADDED = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
# What transformers adds to a configuration about where it was loaded from.
PLACES = ("vocab_file", "tokenizer_file", "is_local", "local_files_only", "name_or_path")


def write_json(path: pathlib.Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@functools.cache
def gemma_model() -> bytes:
    """A SentencePiece model of 690 pieces with Gemma's settings."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TRAINING for line in text.splitlines() if line]),
        model_writer=written,
        model_type="bpe",
        vocab_size=690,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        **{f"{name}_id": i for i, name in enumerate(("pad", "eos", "bos", "unk"))},
        **{f"{name}_piece": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
        user_defined_symbols=GEMMA_SYMBOLS,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


@functools.cache
def qwen_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary (680 pieces) and merges of a byte-level BPE."""
    trained = transformers.Qwen2Tokenizer()._tokenizer
    trained.model = tokenizers.models.BPE()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(TRAINING, tokenizers.trainers.BpeTrainer(vocab_size=680, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    special = set(QWEN_SPECIAL)
    pieces = sorted((piece for piece in model["vocab"] if piece not in special), key=model["vocab"].get)
    return {piece: i for i, piece in enumerate(pieces)}, [tuple(merge) for merge in model["merges"]]


def save(tokenizer: transformers.PreTrainedTokenizerBase, directory: pathlib.Path) -> None:
    """tokenizer.json and tokenizer_config.json as transformers writes them, less where it found them."""
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    write_json(path, {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key not in PLACES})


def write_gemma(directory: pathlib.Path, files: tuple[str, ...], end: bool = False) -> None:
    """Gemma's tokenizer: `files` of "model" and "json"; `end`: <eos> is appended, as EmbeddingGemma does."""
    released = GEMMA_NAMES | {
        "add_bos_token": True,
        "add_eos_token": end,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "tokenizer_class": "GemmaTokenizer",
    }
    with tempfile.TemporaryDirectory() as place:
        (pathlib.Path(place) / "tokenizer.model").write_bytes(gemma_model())
        write_json(pathlib.Path(place) / "tokenizer_config.json", released)
        if "json" in files:
            save(transformers.GemmaTokenizer.from_pretrained(place), directory)
        else:
            shutil.copy(f"{place}/tokenizer_config.json", directory)
        if "model" in files:
            shutil.copy(f"{place}/tokenizer.model", directory)


def write_qwen(directory: pathlib.Path, end: bool) -> None:
    """Qwen3's tokenizer; `end`: <|endoftext|> is appended, as Qwen3-Embedding does."""
    vocabulary, merges = qwen_bpe()
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=dict(vocabulary), merges=list(merges), unk_token=None, model_max_length=512, extra_special_tokens=QWEN_SPECIAL[1:]
    )
    if not end:
        tokenizer.eos_token = QWEN_SPECIAL[2]
    tokenizer.add_tokens([tokenizers.AddedToken(name, special=False, normalized=False) for name in QWEN_ADDED])
    bytes_only = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    last = QWEN_SPECIAL[0]
    template = processors.TemplateProcessing(single=["$A", last], pair=["$A", "$B", last], special_tokens=[(last, len(vocabulary))])
    assert tokenizer.convert_tokens_to_ids(last) == len(vocabulary)
    tokenizer._tokenizer.post_processor = processors.Sequence([bytes_only, template]) if end else bytes_only
    save(tokenizer, directory)


def ids(tokenizer: transformers.PreTrainedTokenizerBase) -> dict[str, dict[str, list[int]]]:
    return {
        name: {"plain": tokenizer(text, add_special_tokens=False)["input_ids"], "special": tokenizer(text)["input_ids"]}
        for name, text in TEXTS.items()
    }


def write_tokenizers(out: pathlib.Path) -> None:
    """texts.json, reference_ids.json, and the directories gemma_model, gemma_json and qwen_json."""
    shutil.rmtree(out, ignore_errors=True)
    for name in ("gemma_model", "gemma_json", "qwen_json"):
        (out / name).mkdir(parents=True)
    write_gemma(out / "gemma_model", ("model",))
    write_gemma(out / "gemma_json", ("json",))
    write_qwen(out / "qwen_json", end=True)
    write_json(out / "texts.json", TEXTS)
    reference = {
        "gemma_model": ids(transformers.GemmaTokenizer.from_pretrained(out / "gemma_model")),
        "gemma_json": ids(transformers.GemmaTokenizer.from_pretrained(out / "gemma_json")),
        "qwen_json": ids(transformers.Qwen2Tokenizer.from_pretrained(out / "qwen_json")),
    }
    processor = sentencepiece.SentencePieceProcessor(model_proto=gemma_model())
    for name, text in TEXTS.items():
        reference["gemma_model"][name]["sentencepiece"] = processor.encode(text)
    lines = [
        f' "{tokenizer}": {{\n' + ",\n".join(f"  {json.dumps(name)}: {json.dumps(lists)}" for name, lists in texts.items()) + "\n }"
        for tokenizer, texts in reference.items()
    ]
    (out / "reference_ids.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
