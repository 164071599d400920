"""Unit records into an index."""

from collections.abc import Sequence

from xretrieval.corpora.manifest import Utterance
from xretrieval.errors import UserError
from xretrieval.search.index import Index
from xretrieval.search.retriever import Retriever
from xretrieval.units.extract import read_index, read_unit_records


def index_records(retriever: Retriever, units_dirs: Sequence[str], uri: str) -> tuple[int, int]:
    """Adds every recording, and each sentence's text once a language; returns how many of each."""
    for folder in units_dirs:
        if read_index(folder)["fingerprint"] != retriever.model.unit_tokenizer.fingerprint:
            raise UserError(
                f"{folder}: these unit records are of another unit tokenizer than the model's; extract them again with the model's"
            )
    records = [record for folder in units_dirs for record in read_unit_records(folder)]
    utterances = [record.utterance for record in records]
    texts = list({(u.language, u.sentence_id): u for u in utterances if u.text}.values())
    speech_NE = retriever.encode_units([record.units for record in records], [u.language for u in utterances])
    text_NE = retriever.encode_text([u.text for u in texts], [u.language for u in texts])
    speech_rows = [
        {"id": u.id, "file": u.audio, "start": u.start, "end": _end(u), "kind": "speech", "language": u.language, "text": u.text}
        for u in utterances
    ]
    text_rows = [
        {
            "id": f"text/{u.language}/{u.sentence_id}",
            "file": "",
            "start": None,
            "end": None,
            "kind": "text",
            "language": u.language,
            "text": u.text,
        }
        for u in texts
    ]
    with Index.create(uri, retriever.width, retriever.fingerprint) as index:
        index.add(speech_NE, speech_rows)
        index.add(text_NE, text_rows)
    return len(speech_rows), len(text_rows)


def _end(utterance: Utterance) -> float | None:
    return (utterance.start or 0.0) + utterance.duration if utterance.duration else None
