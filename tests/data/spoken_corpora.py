"""Small corpora on disk: sounds of noise, manifests, unit records and a vocabulary, as the readers and `units extract` leave them."""

import hashlib

import numpy as np
import soundfile

from xretrieval.corpora.manifest import Utterance, write_manifest
from xretrieval.data.text_tokenizer import prefix_pieces, train_text_tokenizer
from xretrieval.data.vocabulary import DEFAULT_TEMPLATE, Vocabulary
from xretrieval.units.encoders import encoder as encoders
from xretrieval.units.encoders.log_mel import LogMelConfig
from xretrieval.units.extract import extract
from xretrieval.units.tokenizer import UnitTokenizer

WORDS = {
    "en_us": "the small green house",
    "de_de": "das kleine grüne Haus",
    "fr_fr": "la petite maison verte",
    "mn_mn": "жижиг ногоон байшин",
}


def text(language, number):
    return f"{WORDS[language]} {'abcdefghij'[number % 10]} {number}"


def recordings(folder, split, languages, count, english=True, spoken=1):
    """`count` sentences a language, each spoken `spoken` times, two of them in one file of sound, one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{folder.name} {split}".encode()).digest()[:4], "little"))
    utterances = []
    for language in languages:
        for number in range(count * spoken):
            audio = folder / f"{language}-{split}-{number // 2}.wav"
            if number % 2 == 0:
                soundfile.write(audio, rng.normal(scale=0.1, size=rng.integers(6, 9) * 2000).astype(np.float32), 8000, "PCM_16")
            translation = {"translation": text("en_us", number % count), "translation_language": "en_us"}
            utterances.append(
                Utterance(
                    id=f"{language}-{split}-{number}",
                    sentence_id=f"{split}-{number % count}",
                    audio=str(audio),
                    start=0.0 if number % 2 == 0 else 0.72,
                    duration=0.7 if number % 2 == 0 else None,
                    text=text(language, number % count),
                    language=language,
                    split=split,
                    **(translation if english and language != "en_us" else {}),
                )
            )
    write_manifest(folder / f"{split}.jsonl", utterances)


def texts(folder, split, counts):
    """Pairs of texts, interleaved by language, as no reader writes them and none has to."""
    folder.mkdir(parents=True, exist_ok=True)
    utterances = [
        Utterance(
            id=f"{language}-{target}-{number}",
            sentence_id=f"w-{number}",
            text=text(language, number),
            language=language,
            translation=text(target, number),
            translation_language=target,
            split=split,
        )
        for number in range(max(counts.values()))
        for (language, target), count in counts.items()
        if number < count
    ]
    write_manifest(folder / f"{split}.jsonl", utterances)


def unit_tokenizer(folder):
    config = LogMelConfig()
    codebook_KW = np.random.default_rng(1).normal(size=(24, config.width)).astype(np.float32)
    UnitTokenizer(encoders.Encoder(config, encoders.init(config, 0), 1, {"licence": "of the test"}), codebook_KW, True, {}).save(folder)
    return UnitTokenizer.load(folder)


def vocabulary(folder, num_units=24):
    folder.mkdir(parents=True, exist_ok=True)
    every = [text(language, number) for language in WORDS for number in range(40)]
    pieces = sorted({piece for language in WORDS for piece in prefix_pieces(DEFAULT_TEMPLATE, language)})
    train_text_tokenizer(every, str(folder / "tokenizer.model"), None, pieces)
    return Vocabulary(folder / "tokenizer.model", num_units)


def make(root):
    """covost2 and fleurs as manifests and unit records, wikimatrix as a manifest."""
    tokenizer = unit_tokenizer(root / "unit_tokenizer")
    for split, count in (("train", 6), ("validation", 2)):
        recordings(root / "manifests/covost2", split, ["de_de", "mn_mn"], count)
        recordings(root / "manifests/fleurs", split, ["en_us", "de_de"], count, spoken=2)
        for corpus in ("covost2", "fleurs"):
            extract(str(root / f"manifests/{corpus}/{split}"), str(root / "unit_tokenizer"), str(root / f"units/{corpus}/{split}"), 2, 1)
    texts(root / "manifests/wikimatrix", "train", {("de_de", "en_us"): 30, ("fr_fr", "en_us"): 10, ("en_us", "fr_fr"): 5})
    return tokenizer, vocabulary(root / "text")
