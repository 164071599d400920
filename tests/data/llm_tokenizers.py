"""Text tokenizers as LLMs bring them, made small: SentencePiece's and three kinds of tokenizer.json."""

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = ["Polen und Montag", "montag", "понедельник, июль и евро", "Lunes, Polonia y euro", "星期一和欧元", "ΑΒΓ αβγ"] * 5
STRANGE = ["", " ", "a  b\n\n\tc\r\n", "Etwas, das es nicht gab: ſ ﬁ ½", "ⴰⵣⵓⵍ 😀 e\u0301", "nul \0 end\0", "▁ ⟨u3⟩"]
LANGUAGES = ("de_de", "pl_pl", "cmn_hans_cn")  # that our own has prefixes of


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
