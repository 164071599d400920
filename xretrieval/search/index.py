"""The index: vectors with where they come from, in a Milvus file beside you or a Milvus cluster, through one client.

A file (a folder whose name ends in `.db`) is searched exactly: FLAT, every vector, inner product. A cluster chooses its own index. One
path or database holds the index of one model: the collection is called `xretrieval_<fingerprint>`, because a name is the one thing that
both kinds of Milvus keep (the file loses descriptions).
"""

import collections
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

from xretrieval.errors import UserError
from xretrieval.languages import language as language_of
from xretrieval.progress import track
from xretrieval.search.connection import Connection, is_cluster

KINDS = ("speech", "text")
MAX_TOP_K = 16_384  # Milvus refuses more.
# In bytes of UTF-8; Milvus takes at most 65,535.
_MAX_BYTES = {"id": 1_024, "file": 8_192, "language": 64, "text": 65_535, "kind": 16}
_ROW_FIELDS = ("id", "file", "start", "end", "language", "text", "kind")
_PREFIX = "xretrieval_"
_BATCH_ROWS = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """One result: `score` is the inner product; `start` and `end` are seconds in `file`, None for all of it; `kind` one of `KINDS`."""

    id: str
    score: float
    file: str
    start: float | None
    end: float | None
    language: str
    text: str
    kind: str


class Index:
    """Vectors and their rows. Make one with `Index.create`, find it again with `Index.open`; close it, or use it in a `with`."""

    def __init__(self, connection: Connection, collection: str):
        self._connection = connection
        self._client = connection.client
        self._collection = collection
        self._client.load_collection(collection)  # A file that was closed opens unloaded, and refuses to search.
        fields = self._client.describe_collection(collection)["fields"]
        self.dim: int = next(int(field["params"]["dim"]) for field in fields if field["name"] == "vector")

    @classmethod
    def create(cls, uri: str | os.PathLike, dim: int, model_fingerprint: str, token: str = "") -> "Index":
        """Makes an empty index, or opens the one of this model that is already there, with its rows.

        Args:
          uri: a path that ends in `.db`, in a folder that exists, or a cluster's `http(s)://host:port[/database]`.
          dim: E, the width of an embedding.
          model_fingerprint: of the model whose embeddings it will hold.
          token: a cluster's API key or `user:password`.

        Raises:
          UserError: the path cannot hold an index, another process has it open, it is another model's, or of another width.
        """
        if not re.fullmatch(r"\w{1,200}", model_fingerprint, re.ASCII):
            raise UserError(f"model fingerprint {model_fingerprint!r}: letters, digits and underscores only, as in the model directory")
        connection = Connection(str(uri), token)
        with connection.closing_on_error():
            found = _find(connection, model_fingerprint)
            if found is None:
                found = _PREFIX + model_fingerprint
                _make_collection(connection.client, found, dim, exact=not connection.is_cluster)
            index = cls(connection, found)
            if index.dim != dim:
                raise UserError(f"{connection.name}: the index holds vectors of width {index.dim}, these are {dim} wide; give another path")
            return index

    @classmethod
    def open(cls, uri: str | os.PathLike, model_fingerprint: str | None = None, token: str = "") -> "Index":
        """Opens an index that is there.

        Args:
          uri: as for `create`.
          model_fingerprint: of the model that made the queries' embeddings; None opens whatever is there.
          token: as for `create`.

        Raises:
          UserError: there is no index, it is another model's, or another process has it open.
        """
        advice = "no index there; make one with `xretrieval index`, or correct the path"
        if not is_cluster(str(uri)) and not os.path.exists(uri):
            raise UserError(f"{uri}: {advice}")
        connection = Connection(str(uri), token)
        with connection.closing_on_error():
            found = _find(connection, model_fingerprint)
            if found is None:
                raise UserError(f"{connection.name}: {advice}")
            return cls(connection, found)

    @property
    def model_fingerprint(self) -> str:
        """Of the model whose embeddings it holds."""
        return self._collection.removeprefix(_PREFIX)

    def add(self, vectors_NE: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows, or replaces those whose `id` is there already; they are on disk when it returns.

        Args:
          vectors_NE: float32 [N, E], unit norm where scores are to be cosines.
          rows: N times `id, file, start, end, language, text, kind`; `start` and `end` in seconds or None.

        Raises:
          UserError: a vector or a row is not valid; nothing has been added then.
        """
        if vectors_NE.shape != (len(rows), self.dim):
            raise UserError(f"{self._connection.name}: vectors of shape {list(vectors_NE.shape)} for {len(rows)} rows of width {self.dim}")
        _check_finite("vector", vectors_NE)
        repeated = [name for name, count in collections.Counter(row.get("id") for row in rows).items() if count > 1]
        if repeated:
            raise UserError(f"{self._connection.name}: id {repeated[0]!r} occurs more than once in the rows to add; give each its own")
        entities = [_entity(row) for row in rows]
        starts = range(0, len(rows), _BATCH_ROWS)
        with self._connection.errors():
            for first in track(starts, len(starts), "indexing"):
                batch = slice(first, first + _BATCH_ROWS)
                vectors = np.asarray(vectors_NE[batch], np.float32)
                self._client.upsert(self._collection, [entity | {"vector": v} for entity, v in zip(entities[batch], vectors, strict=True)])
            # Until then a file keeps them in a log whose torn end is dropped in silence.
            self._client.flush(self._collection)

    def search(self, vectors_QE: np.ndarray, top_k: int, language: str | None = None, kind: str | None = None) -> list[list[Hit]]:
        """The `top_k` rows of greatest inner product for each query, best first, equal scores by id.

        Args:
          vectors_QE: float32 [Q, E].
          top_k: 1 to 16,384; fewer hits where fewer rows match.
          language: only rows of this language, in any form that `xretrieval.languages` knows.
          kind: only `speech` or only `text`.

        Raises:
          UserError: an argument is not valid.
        """
        if vectors_QE.ndim != 2 or vectors_QE.shape[1] != self.dim:
            raise UserError(
                f"{self._connection.name}: queries of shape {list(vectors_QE.shape)}, the index holds vectors of width {self.dim}"
            )
        _check_finite("query", vectors_QE)
        if not 1 <= top_k <= MAX_TOP_K:
            raise UserError(f"top_k is {top_k}: it must be 1 to {MAX_TOP_K}")
        # Values are from closed sets before they enter the expression: nothing that a user typed does.
        conditions = [] if language is None else [f'language == "{language_of(language).code}"']
        if kind is not None:
            conditions.append(f'kind == "{_kind(kind)}"')
        with self._connection.errors():
            results = self._client.search(
                self._collection,
                data=list(np.asarray(vectors_QE, np.float32)),
                anns_field="vector",
                limit=top_k,
                filter=" and ".join(conditions),
                output_fields=list(_ROW_FIELDS),
                consistency_level="Strong",
            )
        hits_by_query = [[_hit(result) for result in results_of_query] for results_of_query in results]
        return [sorted(hits, key=lambda hit: (-hit.score, hit.id)) for hits in hits_by_query]

    def count(self) -> int:
        """Number of rows."""
        with self._connection.errors():
            found = self._client.query(self._collection, filter="", output_fields=["count(*)"], consistency_level="Strong")
            return int(found[0]["count(*)"])

    def close(self) -> None:
        """Lets go of the file, so that another process can open it."""
        self._connection.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _find(connection: Connection, model_fingerprint: str | None) -> str | None:
    """The collection, or None where there is no index yet."""
    found = [name for name in connection.client.list_collections() if name.startswith(_PREFIX)]
    if not found:
        return None
    if model_fingerprint is not None and _PREFIX + model_fingerprint not in found:
        models = f"made by model {found[0].removeprefix(_PREFIX)[:12]}…, this one is {model_fingerprint[:12]}…"
        raise UserError(f"{connection.name}: the index of another model ({models}); index again with this one, under another path")
    if model_fingerprint is None and len(found) > 1:
        raise UserError(f"{connection.name}: {len(found)} indexes in this database; name the model")
    return found[0] if model_fingerprint is None else _PREFIX + model_fingerprint


def _make_collection(client: MilvusClient, name: str, dim: int, exact: bool) -> None:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    for field, max_bytes in _MAX_BYTES.items():
        schema.add_field(field, DataType.VARCHAR, is_primary=field == "id", max_length=max_bytes)
    for field in ("start", "end"):
        schema.add_field(field, DataType.DOUBLE, nullable=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    params = client.prepare_index_params()
    # Milvus Lite's HNSW, which is also its AUTOINDEX, loses rows (milvus-lite#369).
    params.add_index("vector", index_type="FLAT" if exact else "AUTOINDEX", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=params)


def _entity(row: Mapping[str, Any]) -> dict[str, Any]:
    if set(row) != set(_ROW_FIELDS):
        wrong = sorted(set(row) ^ set(_ROW_FIELDS))
        raise UserError(f"index row {row.get('id')!r}: fields missing or unknown: {', '.join(wrong)}; a row has {', '.join(_ROW_FIELDS)}")
    entity = dict(row) | {"language": language_of(row["language"]).code, "kind": _kind(row["kind"])}
    for field, max_bytes in _MAX_BYTES.items():
        if not isinstance(entity[field], str) or len(entity[field].encode()) > max_bytes or (field == "id" and not entity[field]):
            shown = json.dumps(entity[field], ensure_ascii=False, default=str)[:80]
            raise UserError(
                f"index row {row['id']!r}: field {field} is {shown}; it must be a string of at most {max_bytes} bytes, and an id not empty"
            )
    for field in ("start", "end"):
        entity[field] = None if entity[field] is None else float(entity[field])
    return entity


def _kind(kind: str) -> str:
    if kind not in KINDS:
        raise UserError(f"kind is {kind!r}: it must be {' or '.join(KINDS)}")
    return kind


def _check_finite(name: str, x_NE: np.ndarray) -> None:
    bad_N = ~np.isfinite(x_NE).all(axis=1)
    if bad_N.any():
        raise UserError(f"{name} {bad_N.argmax()} holds NaN or infinity; embed it again")


def _hit(result: Mapping[str, Any]) -> Hit:
    row = result["entity"]
    return Hit(score=float(result["distance"]), **{field: row[field] for field in _ROW_FIELDS})
