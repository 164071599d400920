"""What an example is, as plain functions: from a unit record to a pair, from a pair to rows of tokens."""

from collections.abc import Iterable, Iterator

import numpy as np

from xretrieval.data.order import keyed_hash
from xretrieval.data.records import pair_id
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.units.extract import UnitRecord

SPEECH_TO_TEXT = "speech_to_text"
TEXT_TO_ENGLISH = "text_to_english"
KINDS = (SPEECH_TO_TEXT, TEXT_TO_ENGLISH)


def to_pairs(records: Iterable[UnitRecord], kind: str, vocabulary: Vocabulary) -> Iterator[dict]:
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


def with_prefix(tokens_L: np.ndarray, prefix: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.asarray(prefix, np.int32), tokens_L])
