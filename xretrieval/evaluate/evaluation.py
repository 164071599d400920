"""Retrieval over unit records: speech to transcript and back, within the language and in the joint pool, and speech to English text."""

import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np

from xretrieval.errors import UserError
from xretrieval.evaluate.retrieval import retrieval_metrics
from xretrieval.units.extract import UnitRecord, read_unit_records

ENGLISH = "en_us"
# (texts or units, language codes) -> float32 [N, E]
Encode = Callable[[Sequence, Sequence[str]], np.ndarray]


class TextPool:
    """Each sentence's text once a language, with embeddings."""

    def __init__(self, records: Sequence[UnitRecord], encode_text: Encode):
        texts = {(u.language, u.sentence_id): u.text for u in (r.utterance for r in records)}
        texts |= {(ENGLISH, u.sentence_id): u.english for u in (r.utterance for r in records) if u.english}
        self.keys = sorted(texts)
        self.vectors_NE = encode_text([texts[key] for key in self.keys], [key[0] for key in self.keys])

    def of(self, languages: Sequence[str]) -> tuple[np.ndarray, list[tuple[str, str]]]:
        chosen = [i for i, key in enumerate(self.keys) if key[0] in languages]
        return self.vectors_NE[chosen], [self.keys[i] for i in chosen]


def fingerprint(records: Sequence[UnitRecord]) -> str:
    """Of all that `evaluate_records` reads of them."""
    digest = hashlib.sha256()
    for record in records:
        said = record.utterance  # not its `audio`: that may lie elsewhere on every host
        digest.update(repr((said.id, said.sentence_id, said.language, said.text, said.english, record.units)).encode())
    return digest.hexdigest()


def evaluate_records(records: Sequence[UnitRecord], encode_units: Encode, encode_text: Encode, seen: Sequence[str]) -> dict[str, dict]:
    """Metrics by language (see `retrieval_metrics`), every recording a query once.

    A transcript is found when it is the recording's own. In the joint pool (texts or recordings of all languages together) the
    positives are the recording's sentence in its own language; `_any_language` counts the same meaning in another language too. English
    texts are the translations, with the transcripts of English recordings where there are some. A text without a recording is a candidate
    and no query; a recording without text is neither, and how many there are is printed.
    """
    silent = sum(not r.utterance.text for r in records)
    if silent:
        print(f"{silent} recordings have no text and are left out of the evaluation")
        records = [r for r in records if r.utterance.text]
    pool = TextPool(records, encode_text)
    languages = sorted({r.utterance.language for r in records})
    speech_keys = [(r.utterance.language, r.utterance.sentence_id) for r in records]
    speech_QE = encode_units([r.units for r in records], [key[0] for key in speech_keys])
    joint_NE, joint_keys = pool.of(languages)
    english_NE, english_keys = pool.of([ENGLISH])
    english_sentences = set(_sentences(english_keys))
    out: dict[str, dict] = {}
    for language in languages:
        here = [i for i, key in enumerate(speech_keys) if key[0] == language]
        query_QE, query_keys = speech_QE[here], [speech_keys[i] for i in here]
        own_NE, own_keys = pool.of([language])
        own_spoken = set(query_keys)
        spoken = [i for i, key in enumerate(own_keys) if key in own_spoken]
        spoken_NE, spoken_keys = own_NE[spoken], [own_keys[i] for i in spoken]
        entry = {
            "seen": language in seen,
            "speech_to_text": retrieval_metrics((query_QE, own_NE), query_keys, own_keys),
            "text_to_speech": retrieval_metrics((spoken_NE, query_QE), spoken_keys, query_keys),
            "speech_to_text_joint_pool": retrieval_metrics((query_QE, joint_NE), query_keys, joint_keys),
            "speech_to_text_joint_pool_any_language": retrieval_metrics(
                (query_QE, joint_NE), _sentences(query_keys), _sentences(joint_keys)
            ),
            "text_to_speech_joint_pool": retrieval_metrics((spoken_NE, speech_QE), spoken_keys, speech_keys),
        }
        translated = [i for i, (_, sentence) in enumerate(query_keys) if sentence in english_sentences]
        if language != ENGLISH and translated:
            entry["speech_to_english"] = retrieval_metrics(
                (query_QE[translated], english_NE), _sentences([query_keys[i] for i in translated]), _sentences(english_keys)
            )
        out[language] = entry
    return out


def mean_r1(languages: dict[str, dict]) -> dict[str, float]:
    """R@1 of each kind of search, the mean over the languages that have it."""
    found: dict[str, list[float]] = {}
    for entry in languages.values():
        for name, metrics in entry.items():
            if name != "seen":
                found.setdefault(name, []).append(metrics["R@1"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def _sentences(keys: Sequence[tuple[str, str]]) -> list[str]:
    return [sentence for _, sentence in keys]


def evaluate(
    encode_units: Encode, encode_text: Encode, seen: Sequence[str], units_dir: str, split: str = "test", held_out_split: str | None = None
) -> dict[str, dict]:
    """Evaluates a split of unit records; a second one, of voices that training never heard, goes under `held_out_voices`.

    A language counts as seen where training had recordings of it.
    """
    languages = evaluate_records(list(read_unit_records(os.path.join(units_dir, split))), encode_units, encode_text, seen)
    if held_out_split:
        others = evaluate_records(list(read_unit_records(os.path.join(units_dir, held_out_split))), encode_units, encode_text, seen)
        if alone := others.keys() - languages.keys():
            raise UserError(
                f"{os.path.join(units_dir, held_out_split)}: has {', '.join(sorted(alone))}, which {split} lacks; evaluate it apart"
            )
        for language, entry in others.items():
            languages[language]["held_out_voices"] = {name: value for name, value in entry.items() if name != "seen"}
    return languages
