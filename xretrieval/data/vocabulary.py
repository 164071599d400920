"""The one ID space of text and speech, and the one tokenizer class that training and serving share.

Text tokens are [0, t), units are [t, t + a). A unit ID enters that space here and nowhere else.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from xretrieval.errors import UserError
from xretrieval.languages import language as find_language

PAD_ID = 0
MODALITIES = ("speech", "text")
DEFAULT_TEMPLATE = "[{language} {modality}]"


class Vocabulary:
    """SentencePiece text tokens followed by `num_units` unit tokens.

    The prefix of a sequence says its language and modality in words (paper, section 2): `template` filled with the language's English
    name and "speech" or "text".
    """

    def __init__(self, tokenizer_file: str | os.PathLike, num_units: int, template: str = DEFAULT_TEMPLATE):
        self.tokenizer_file = pathlib.Path(tokenizer_file)
        if not self.tokenizer_file.exists():
            raise UserError(f"{tokenizer_file}: no such text tokenizer; make one with `xretrieval data tokenizer`")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{tokenizer_file}: not a SentencePiece model ({error})") from error
        self.text_size = self._processor.get_piece_size()
        self.num_units = num_units
        self.template = template

    @property
    def size(self) -> int:
        """t + a."""
        return self.text_size + self.num_units

    @property
    def unknown_id(self) -> int:
        """What a character becomes that the text tokenizer does not know."""
        return self._processor.unk_id()

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer file, the number of units and the prefix template."""
        return hashlib.sha256(self.tokenizer_file.read_bytes() + f" {self.num_units} {self.template}".encode()).hexdigest()

    def encode_text(self, text: str) -> np.ndarray:
        """Token IDs of a text, int32 [L], each below t."""
        return np.asarray(self._processor.encode(text), np.int32)

    def encode_units(self, units: Sequence[int] | np.ndarray) -> np.ndarray:
        """Token IDs of units, int32 [L], each in [t, t + a).

        Raises:
          UserError: a unit outside [0, a); JAX would clamp it silently.
        """
        ids_L = np.asarray(units, np.int32)
        if ids_L.size and (ids_L.min() < 0 or ids_L.max() >= self.num_units):
            raise UserError(
                f"unit {ids_L.max() if ids_L.max() >= self.num_units else ids_L.min()} is outside [0, {self.num_units}): wrong unit tokenizer"
            )
        return ids_L + self.text_size

    def encode_prefix(self, language: str, modality: str) -> np.ndarray:
        """Token IDs of the prefix for a language (any code that `languages.py` knows) and "speech" or "text"."""
        if modality not in MODALITIES:
            raise UserError(f"modality {modality!r} is neither speech nor text")
        return self.encode_text(self.template.format(language=find_language(language).name, modality=modality))

    def sequence(self, ids_L: np.ndarray, language: str, modality: str) -> np.ndarray:
        """A whole row of tokens, int32 [L']: the prefix, then the IDs of a text or of a recording's units."""
        return np.concatenate([self.encode_prefix(language, modality), ids_L])

    def decode(self, ids: Iterable[int]) -> str:
        """Text, with units as ⟨u17⟩."""
        out, run = [], []
        for i in ids:
            if i < self.text_size:
                run.append(int(i))
                continue
            out += [self._processor.decode(run), f"⟨u{int(i) - self.text_size}⟩"]
            run = []
        return "".join([*out, self._processor.decode(run)])


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
