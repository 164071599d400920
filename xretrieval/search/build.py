"""Unit records into an index."""

import os
import shutil
from collections.abc import Sequence

from xretrieval.corpora.manifest import Utterance
from xretrieval.errors import UserError
from xretrieval.search.connection import is_cluster
from xretrieval.search.index import Index
from xretrieval.search.retriever import Retriever
from xretrieval.units.extract import read_index, read_unit_records


def index_records(retriever: Retriever, units_dirs: Sequence[str], uri: str) -> tuple[int, int]:
    """Indexes every recording, and each sentence's text once a language; returns how many of each. An index that is there is replaced."""
    for folder in units_dirs:
        if read_index(folder)["fingerprint"] != retriever.unit_fingerprint:
            raise UserError(
                f"{folder}: these unit records are of another unit tokenizer than the model's; extract them again with the model's"
            )
    found = [(os.path.basename(os.path.normpath(folder)), record) for folder in units_dirs for record in read_unit_records(folder)]
    records = [record for _, record in found]
    utterances = [record.utterance for record in records]
    texts = list({(u.language, u.sentence_id): u for u in utterances if u.text}.values())
    speech_NE = retriever.encode_units([record.units for record in records], [u.language for u in utterances])
    text_NE = retriever.encode_text([u.text for u in texts], [u.language for u in texts])
    speech_rows = [
        # IDs are unique in a manifest: the name of the split makes them so in an index of several.
        {
            "id": f"{split}/{u.id}",
            "file": u.audio,
            "start": u.start,
            "end": _end(u),
            "kind": "speech",
            "language": u.language,
            "text": u.text,
        }
        for split, u in ((split, record.utterance) for split, record in found)
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
    # A file is made anew beside the old one and takes its place when it is whole; a cluster's rows are replaced by their ids.
    fresh = uri if is_cluster(uri) else f"{uri.removesuffix('.db')}.unfinished.db"
    if fresh != uri and os.path.exists(fresh):
        shutil.rmtree(fresh)
    with Index.create(fresh, retriever.width, retriever.fingerprint) as index:
        index.add(speech_NE, speech_rows)
        index.add(text_NE, text_rows)
    if fresh != uri:
        if os.path.exists(uri):
            shutil.rmtree(uri)
        os.replace(fresh, uri)
    return len(speech_rows), len(text_rows)


def _end(utterance: Utterance) -> float | None:
    return (utterance.start or 0.0) + utterance.duration if utterance.duration else None
