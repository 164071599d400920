"""Trains the text tokenizer of a model that starts from nothing; a model that starts from an LLM has the LLM's."""

import os
import pathlib
from collections.abc import Iterable

import sentencepiece

from xretrieval.data.vocabulary import MODALITIES, PAD_ID
from xretrieval.errors import UserError
from xretrieval.languages import language as find_language


def prefix_pieces(template: str, language: str) -> list[str]:
    """A language's prefixes cut before the modality: ["[Polish", " speech]", " text]"].

    The modality is a piece of its own, so that it is learned even for a language that training never met.
    """
    head, _, tail = template.format(language=find_language(language).name, modality="{modality}").partition("{modality}")
    return [head.rstrip(" "), *(" " * head.endswith(" ") + modality + tail for modality in MODALITIES)]


def train_text_tokenizer(
    texts: Iterable[str],
    out_file: str,
    vocab_size: int | None,
    pieces: Iterable[str] = (),
    fold_case: bool = False,
    seed: int = 0,
) -> None:
    """Trains a SentencePiece model: BPE of `vocab_size` pieces, or one piece a character where `vocab_size` is None.

    Each of `pieces` is one token: with `prefix_pieces` a prefix costs two. With `fold_case` the model lowers the case of what it reads:
    speech has none.

    Raises:
      UserError: no text, or fewer pieces to be had than `vocab_size`.
    """
    # SentencePiece looks for symbols in what it has normalised, where spaces are this mark and one stands in front.
    symbols = sorted({"\u2581" + piece.removeprefix(" ").replace(" ", "\u2581") for piece in pieces})
    texts = list(texts)
    if not texts:
        raise UserError("the text tokenizer has no text to learn from: the manifests' `text` fields are empty")
    temporary = f"{out_file}.tmp"
    pathlib.Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    sentencepiece.set_random_generator_seed(seed)
    try:
        with open(temporary, "wb") as out:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=out,
                model_type="bpe" if vocab_size else "char",
                vocab_size=vocab_size or 1_000_000,
                hard_vocab_limit=bool(vocab_size),  # one piece a character: as many as there are
                normalization_rule_name="nmt_nfkc_cf" if fold_case else "nmt_nfkc",
                character_coverage=1.0,
                pad_id=PAD_ID,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                user_defined_symbols=[symbol.casefold() for symbol in symbols] if fold_case else symbols,
                byte_fallback=False,
                num_threads=1,
                minloglevel=2,
            )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"text tokenizer of {vocab_size} pieces: {error}; set another text_tokenizer.vocab_size, or None for one a character"
        ) from error
    os.replace(temporary, out_file)
