"""What an example is, as plain functions: from a sentence to its pairs, from a pair to rows of tokens."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xretrieval.data.order import keyed_hash
from xretrieval.data.records import pair_id

if TYPE_CHECKING:  # brings much along that the processes of `plan.py` do without
    from xretrieval.corpora.manifest import Utterance

SPEECH_TO_TEXT = "speech_to_text"
SPEECH_TO_ENGLISH = "speech_to_english"
TEXT_TO_ENGLISH = "text_to_english"
TEXT_TO_TEXT = "text_to_text"
KINDS = (SPEECH_TO_TEXT, SPEECH_TO_ENGLISH, TEXT_TO_ENGLISH, TEXT_TO_TEXT)
SPEECH_KINDS = (SPEECH_TO_TEXT, SPEECH_TO_ENGLISH)
_NEUTRAL, _WHICH = 2**32, 2**32 + 1  # draws of a pair beside those of its tokens, whose numbers are their places


class Sentence(NamedTuple):
    """One utterance, as little of it as pairs are made of.

    Attributes:
      pair_id: of its meaning.
      text: what is said.
      translation: into English, or in a corpus of texts into the other language; empty where there is none.
      sound: its units, or where to find it.
    """

    pair_id: np.int64
    text: str
    translation: str
    sound: Any = None

    @classmethod
    def of(cls, utterance: "Utterance", translation: str | None, sound: Any = None) -> "Sentence":
        return cls(np.int64(pair_id(utterance.sentence_id)), utterance.text, translation or "", sound)


def to_pairs(sentences: Iterable[Sentence], kind: str) -> Iterator[dict]:
    """Pairs of one kind: `inputs` (a sentence's sound, or text), `targets` (text), `pair_id`.

    A sentence spoken several times gives one pair of texts; one without the text that a kind wants gives none, and one without a
    transcript none at all.
    """
    seen = set()
    for sentence in sentences:
        target = sentence.text if kind == SPEECH_TO_TEXT else sentence.translation
        if not sentence.text or not target:
            continue
        if kind not in SPEECH_KINDS:
            # A hash takes less room than two texts: some corpora have millions.
            both = pair_id(f"{sentence.text}\0{target}")
            if both in seen:
                continue
            seen.add(both)
        yield {"inputs": sentence.sound if kind in SPEECH_KINDS else sentence.text, "targets": target, "pair_id": sentence.pair_id}


def uniform(*key: int | np.ndarray) -> np.ndarray:
    """Draws in [0, 1), float64, decided by a hash of `key`; arrays broadcast."""
    return (keyed_hash(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def drop_tokens(tokens_L: np.ndarray, rate: float, *key: int) -> np.ndarray:
    """Leaves out each token with probability `rate`, decided by a hash of `key` and its place; at least one stays."""
    if rate <= 0.0 or len(tokens_L) < 2:
        return tokens_L
    keep_L = uniform(*key, np.arange(len(tokens_L))) >= rate
    return tokens_L[keep_L] if keep_L.any() else tokens_L[:1]


def kept_tokens(lengths_N: np.ndarray, rate: float, seed: int, positions_N: np.ndarray) -> np.ndarray:
    """How many of `lengths_N` tokens `drop_tokens` leaves with the key (seed, position), int64 [N]."""
    if rate <= 0.0:
        return lengths_N
    kept_N = np.empty_like(lengths_N)
    # Sequences of about one length together, few enough for the cache.
    for group in np.array_split(np.argsort(lengths_N, kind="stable"), -(-len(lengths_N) // 256)):
        places = np.arange(lengths_N[group].max())
        keep = uniform(seed, positions_N[group, None], places) >= rate
        kept_N[group] = np.sum(keep & (places < lengths_N[group, None]), axis=1)
    return np.minimum(np.maximum(kept_N, 1), lengths_N)


def choose_prefixes(neutral_rate: float, neutrals: int, *key: int | np.ndarray) -> np.ndarray:
    """Which prefixes a pair has, decided by a hash of `key`: 0 its own, else 1 to `neutrals`, with probability `neutral_rate`; int64."""
    if not neutrals:
        return np.zeros(np.broadcast(*key).shape, np.int64)
    which = 1 + (uniform(*key, _WHICH) * neutrals).astype(np.int64)
    return np.where(uniform(*key, _NEUTRAL) < neutral_rate, which, 0)


def framed(tokens_L: np.ndarray, prefix: tuple[int, ...], suffix: tuple[int, ...] = ()) -> np.ndarray:
    """int32: the prefix, the tokens, the suffix."""
    return np.concatenate([np.asarray(prefix, np.int32), tokens_L, np.asarray(suffix, np.int32)])
