"""What an example is, as plain functions: from a unit record to a pair, from a pair to rows of tokens."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from xretrieval.data.order import keyed_hash
from xretrieval.data.records import pair_id

if TYPE_CHECKING:  # both bring much along that the processes of `plan.py` do without
    from xretrieval.data.vocabulary import Vocabulary
    from xretrieval.units.extract import UnitRecord

SPEECH_TO_TEXT = "speech_to_text"
TEXT_TO_ENGLISH = "text_to_english"
KINDS = (SPEECH_TO_TEXT, TEXT_TO_ENGLISH)
_NEUTRAL, _WHICH = 2**32, 2**32 + 1  # draws of a pair beside those of its tokens, whose numbers are their places


def to_pairs(records: Iterable["UnitRecord"], kind: str, vocabulary: "Vocabulary") -> Iterator[dict]:
    """Pairs of one kind: `inputs` (int32 IDs of speech, or text), `targets` (text), `pair_id`.

    A sentence spoken several times gives one text pair; a record without an English translation gives none, one without text neither.
    """
    seen = set()
    for record in records:
        utterance = record.utterance
        pair = np.int64(pair_id(utterance.sentence_id))
        if not utterance.text:
            continue
        if kind == SPEECH_TO_TEXT:
            yield {"inputs": vocabulary.encode_units(record.units), "targets": utterance.text, "pair_id": pair}
        elif utterance.english and (utterance.text, utterance.english) not in seen:
            seen.add((utterance.text, utterance.english))
            yield {"inputs": utterance.text, "targets": utterance.english, "pair_id": pair}


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
