"""The embedded index beside faiss' exact search over the same vectors: time of a query, and that both find the same."""

import pathlib
import tempfile

import faiss
import numpy as np

from benchmarks import rows
from xretrieval.search.index import Index

VECTORS, WIDTH, QUERIES, TOP = 20_000, 128, 50, 10


def run() -> list[dict]:
    rng = np.random.default_rng(0)
    x_NE = rng.normal(size=(VECTORS, WIDTH)).astype(np.float32)
    x_NE /= np.linalg.norm(x_NE, axis=1, keepdims=True)
    query_QE = x_NE[rng.integers(VECTORS, size=QUERIES)] + 0.05 * rng.normal(size=(QUERIES, WIDTH)).astype(np.float32)
    peer = faiss.IndexFlatIP(WIDTH)
    peer.add(x_NE)
    described = [
        {"id": str(i), "file": f"{i}.flac", "start": None, "end": None, "language": "de_de", "text": "", "kind": "speech"}
        for i in range(VECTORS)
    ]
    with tempfile.TemporaryDirectory() as folder, Index.create(pathlib.Path(folder) / "index.db", WIDTH, "benchmark") as index:
        index.add(x_NE, described)
        batch = rows.seconds(lambda: index.search(query_QE, TOP), lambda: peer.search(query_QE, TOP))
        single = rows.seconds(lambda: index.search(query_QE[:1], TOP), lambda: peer.search(query_QE[:1], TOP))
        ours = [{hit.id for hit in hits} for hits in index.search(query_QE, TOP)]
    theirs = [{str(i) for i in found} for found in peer.search(query_QE, TOP)[1]]
    missed = sum(len(b - a) for a, b in zip(ours, theirs, strict=True)) / (QUERIES * TOP)
    name = f"faiss-cpu {faiss.__version__}"
    size = f"{VECTORS} x {WIDTH}, exact, top {TOP}"
    # The peer is bare memory; the index is a file with rows, filters and a lock. What is held is that a query stays far below a second.
    return [
        rows.row(f"{QUERIES} queries at once, {size}, seconds", *batch, name, 100.0),
        rows.row(f"one query, {size}, seconds", *single, name, 100.0),
        rows.row("1 + share of the peer's hits that are missed", 1.0 + missed, 1.0, name, 1.0),
    ]


if __name__ == "__main__":
    rows.main(run)
