"""The one ID space of text and speech, and the one tokenizer class that training and serving share.

Text tokens are [0, t), units are [t, t + a). A unit ID enters that space here and nowhere else.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from xretrieval.errors import UserError, read_json
from xretrieval.languages import language as find_language

PAD_ID = 0
MODALITIES = ("speech", "text")
DEFAULT_TEMPLATE = "[{language} {modality}]"


class _SentencePiece:
    """A `tokenizer.model`.

    The name of a control symbol in a text ("<bos>") is spelled, as SentencePiece does, unless the model has a beginning of sequence: then
    it was made for an LLM, whose reference tokenizer (transformers) reads it as that symbol. User-defined symbols are always read.

    The IDs are SentencePiece's. A conversion to `tokenizer.json` gives others where a text holds "▁" itself beside a space, or more spaces
    in a row than the longest piece of them (31 in Gemma's).
    """

    def __init__(self, content: bytes):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.pieces: int = self._processor.get_piece_size()
        if not self.pieces:  # an empty file is no error to SentencePiece
            raise ValueError("it holds no pieces")
        unknown = self._processor.unk_id()
        bytes_too = self._processor.is_byte(self._processor.piece_to_id("<0x00>"))
        self.unknown_id: int | None = None if bytes_too else unknown
        self._symbols: dict[str, int] = {}
        if self._processor.bos_id() >= 0:
            ids = [i for i in range(self.pieces) if self._processor.is_control(i) or i == unknown]
            self._symbols = {self._processor.id_to_piece(i): i for i in ids}
        # The longest first, as where one name begins another.
        self._names = re.compile("(" + "|".join(map(re.escape, sorted(self._symbols, key=len, reverse=True))) + ")")

    def encode(self, text: str) -> list[int]:
        if not self._symbols:
            return self._processor.encode(text)
        parts = self._names.split(text)  # every second one is a name
        return [i for k, part in enumerate(parts) for i in ([self._symbols[part]] if k % 2 else self._processor.encode(part))]

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


class _TokenizerJson:
    """A `tokenizer.json` of Hugging Face. The name of one of its added tokens in a text is read as that token, as transformers does."""

    def __init__(self, content: bytes):
        from tokenizers import Tokenizer  # 0.1 s that a SentencePiece model does not need

        self._tokenizer = Tokenizer.from_buffer(content)
        # A file may ask for these; a text is never cropped in silence, and padding is the batch's affair.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Not their number: IDs may have gaps.
        self.pieces: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not self.pieces:
            raise ValueError("it holds no tokens")
        self.unknown_id = self._unknown_id(content)

    def _unknown_id(self, content: bytes) -> int | None:
        model = self._tokenizer.model
        if type(model).__name__ == "Unigram":  # the one model that does not say it in Python
            record = json.loads(content)["model"]
            unknown, bytes_too = record.get("unk_id"), record.get("byte_fallback", False)
        else:
            name = getattr(model, "unk_token", None)
            unknown = None if name is None else self._tokenizer.token_to_id(name)
            bytes_too = getattr(model, "byte_fallback", False)
        return None if bytes_too and self._tokenizer.token_to_id("<0x00>") is not None else unknown

    def encode(self, text: str) -> list[int]:
        # One text at a time uses no threads of the library's own, so there is none to lose (nor a warning about it) when a process forks.
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class Vocabulary:
    """Text tokens of a tokenizer file, [0, t), followed by `num_units` unit tokens.

    The prefix of a sequence says its language and modality in words (paper, section 2): `template` filled with the language's English
    name and "speech" or "text".

    Args:
      tokenizer_file: a SentencePiece model or a `tokenizer.json` of Hugging Face; which of them, its name and content say.
      num_units: a.
      template: of the prefix.
      text_size: t, the rows of the LLM's table; it may have more or fewer rows than the tokenizer has pieces. None: a row a piece.
      begin_ids: text tokens in front of every sequence, those of the LLM.
      end_ids: text tokens behind every sequence.

    Raises:
      UserError: no tokenizer file, a damaged or foreign one, or a begin or end token outside the text tokens.
    """

    def __init__(
        self,
        tokenizer_file: str | os.PathLike,
        num_units: int,
        template: str = DEFAULT_TEMPLATE,
        text_size: int | None = None,
        begin_ids: Sequence[int] = (),
        end_ids: Sequence[int] = (),
    ):
        self.tokenizer_file = pathlib.Path(tokenizer_file)
        content = _content(self.tokenizer_file)
        self._text = _text_tokenizer(self.tokenizer_file, content)
        self.text_size = self._text.pieces if text_size is None else text_size
        self.num_units, self.template = num_units, template
        self.begin_ids, self.end_ids = tuple(map(int, begin_ids)), tuple(map(int, end_ids))
        for token in (*self.begin_ids, *self.end_ids):
            if not 0 <= token < self.text_size:
                raise UserError(
                    f"{tokenizer_file}: begin or end token {token} is outside the {self.text_size} text tokens; import the LLM again"
                )
        # The rest only where it differs from what a file alone gives: fingerprints of models without an LLM stay what they were.
        settings = {"text_size": self.text_size, "begin_ids": self.begin_ids, "end_ids": self.end_ids}
        plain = {"text_size": self._text.pieces, "begin_ids": (), "end_ids": ()}
        changed = {name: value for name, value in settings.items() if value != plain[name]}
        identity = f" {num_units} {template}" + (json.dumps(changed, sort_keys=True) if changed else "")
        self._fingerprint = hashlib.sha256(content + identity.encode()).hexdigest()

    @classmethod
    def open(cls, path: str | os.PathLike, num_units: int, template: str | None = None) -> "Vocabulary":
        """The text tokens of a tokenizer file, or of a model directory (an imported LLM, say), with `num_units` unit tokens.

        Of a directory come t, the begin and end tokens and, unless `template` is given, the template; of a file the defaults.
        """
        if not os.path.isdir(path):
            return cls(path, num_units, DEFAULT_TEMPLATE if template is None else template)
        description = pathlib.Path(path) / "xretrieval.json"
        if not description.exists():
            raise UserError(f"{path}: not a model directory (no xretrieval.json); give one, or a tokenizer file")
        record = read_json(description)
        try:
            return cls(
                pathlib.Path(path) / record.get("tokenizer_file", "tokenizer.model"),
                num_units,
                record["prefix_template"] if template is None else template,
                record["text_tokens"],
                record.get("begin_tokens", ()),
                record.get("end_tokens", ()),
            )
        except KeyError as error:
            raise UserError(f"{description}: the field {error} is missing; export or import the model again") from error

    @property
    def size(self) -> int:
        """t + a."""
        return self.text_size + self.num_units

    @property
    def unknown_id(self) -> int | None:
        """What a character becomes that the text tokenizer does not know; None where it spells every character in bytes."""
        return self._text.unknown_id

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer file, the number of units and the prefix template, and of what an LLM adds to them."""
        return self._fingerprint

    def encode_text(self, text: str) -> np.ndarray:
        """Token IDs of a text, int32 [L], each below t, without begin and end tokens; equal to those of the LLM's own tokenizer.

        Raises:
          UserError: a token without a row in the LLM's table, or a text that is not valid Unicode.
        """
        try:
            ids_L = np.asarray(self._text.encode(text), np.int32)
        except TypeError as error:  # half of a surrogate pair: bytes of a terminal that are not UTF-8
            raise UserError(f"{text!r:.80}: not a text in valid Unicode; give it in UTF-8") from error
        if ids_L.size and ids_L.max() >= self.text_size:
            raise UserError(
                f"{text!r:.80}: token {ids_L.max()} has no row in the LLM's table of {self.text_size}; leave out of the text what stands for it"
            )
        return ids_L

    def has_unknown(self, ids: Sequence[int] | np.ndarray) -> bool:
        """Whether the IDs of a text hold a character that the text tokenizer does not know."""
        return self.unknown_id is not None and self.unknown_id in ids

    def encode_units(self, units: Sequence[int] | np.ndarray) -> np.ndarray:
        """Token IDs of units, int32 [L], each in [t, t + a).

        Raises:
          UserError: a unit outside [0, a); JAX would clamp it silently.
        """
        ids_L = np.asarray(units, np.int32)
        if ids_L.size and not self.num_units:
            raise UserError(f"{self.tokenizer_file}: this model has no units and reads text only; train one with units from it")
        if ids_L.size and (ids_L.min() < 0 or ids_L.max() >= self.num_units):
            raise UserError(
                f"unit {ids_L.max() if ids_L.max() >= self.num_units else ids_L.min()} is outside [0, {self.num_units}): wrong unit tokenizer"
            )
        return ids_L + self.text_size

    def encode_prefix(self, language: str, modality: str) -> np.ndarray:
        """Token IDs in front of a sequence, int32 [L]: the begin tokens, then the template's.

        Args:
          language: any code that `languages.py` knows.
          modality: "speech" or "text".
        """
        if modality not in MODALITIES:
            raise UserError(f"modality {modality!r} is neither speech nor text")
        name = find_language(language).name
        try:
            words = self.template.format(language=name, modality=modality)
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"template {self.template!r}: only {{language}} and {{modality}} may stand in braces") from error
        return np.concatenate([np.asarray(self.begin_ids, np.int32), self.encode_text(words)])

    def sequence(self, ids_L: np.ndarray, language: str, modality: str) -> np.ndarray:
        """A whole sequence, int32 [L']: begin and prefix, then the IDs of a text or of a recording's units, then the end tokens."""
        return np.concatenate([self.encode_prefix(language, modality), ids_L, np.asarray(self.end_ids, np.int32)])

    def decode(self, ids: Iterable[int]) -> str:
        """Text, with units as ⟨u17⟩ and rows of the table that no token has as ⟨17⟩; control symbols leave nothing."""
        out, run = [], []
        for i in map(int, ids):
            if i < min(self._text.pieces, self.text_size):
                run.append(i)
                continue
            out += [self._text.decode(run), f"⟨u{i - self.text_size}⟩" if i >= self.text_size else f"⟨{i}⟩"]
            run = []
        return "".join([*out, self._text.decode(run)])


def _content(tokenizer_file: pathlib.Path) -> bytes:
    try:
        return tokenizer_file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{tokenizer_file}: no such text tokenizer; make one with `xretrieval data tokenizer`, or an LLM's folder with `xretrieval import-llm`"
        ) from error
    except OSError as error:
        raise UserError(f"{tokenizer_file}: cannot be read ({error.strerror}); give a tokenizer file") from error


def _text_tokenizer(tokenizer_file: pathlib.Path, content: bytes) -> _SentencePiece | _TokenizerJson:
    is_json = tokenizer_file.suffix == ".json" or content[:1] == b"{"
    try:
        return _TokenizerJson(content) if is_json else _SentencePiece(content)
    except Exception as error:  # the tokenizers library raises no class of its own
        kind = "a tokenizer.json of Hugging Face" if is_json else "a SentencePiece model"
        raise UserError(f"{tokenizer_file}: not {kind} ({error}); copy it again") from error
