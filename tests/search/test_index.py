import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from milvus_lite.adapter.grpc.server import start_server_in_thread

from xretrieval.errors import UserError
from xretrieval.search.index import Index

ROOT = pathlib.Path(__file__).parents[2]
MODEL, OTHER_MODEL = "a" * 64, "b" * 64
CODES = ("de_de", "fr_fr", "cmn_hans_cn")


def unit_rows(seed, n, width=32):
    x_NE = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    return x_NE / np.linalg.norm(x_NE, axis=1, keepdims=True)


def row(i, **fields):
    kind = "text" if i % 2 else "speech"
    segment = {"start": None, "end": None} if kind == "text" else {"start": i / 10, "end": i / 10 + 2.5}
    return {
        "id": f"u{i}",
        "file": f"a/{i}.flac",
        "language": CODES[i % 3],
        "text": f'{i}: „ja", "o\'clock" \\ 你好',
        "kind": kind,
        **segment,
        **fields,
    }


def brute_force(query_QE, vectors_NE, chosen, top_k):
    scores_QN = query_QE.astype(np.float64) @ vectors_NE[chosen].astype(np.float64).T
    order_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :top_k]
    return [[f"u{chosen[n]}" for n in order_K] for order_K in order_QK], np.take_along_axis(scores_QN, order_QK, axis=1)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    vectors_NE = unit_rows(0, 2_000)
    with Index.create(tmp_path_factory.mktemp("index") / "big.db", 32, MODEL) as index:
        # In parts, some of them twice: the file then holds several segments, and rows that were replaced.
        index.add(unit_rows(9, 700), [row(i, text="old", language="it_it") for i in range(700)])
        for first in range(0, 2_000, 400):
            index.add(vectors_NE[first : first + 400], [row(i) for i in range(first, first + 400)])
        yield index, vectors_NE


@pytest.mark.parametrize("top_k", [1, 10, 200])
@pytest.mark.parametrize(("language", "kind"), [(None, None), ("de", None), ("fr_fr", "speech"), (None, "text"), ("zh", "text")])
def test_equals_brute_force_in_order(big, top_k, language, kind):
    index, vectors_NE = big
    code = {"de": "de_de", "zh": "cmn_hans_cn"}.get(language, language)
    rows = [row(i) for i in range(2_000)]
    chosen = [i for i in range(2_000) if code in (None, rows[i]["language"]) and kind in (None, rows[i]["kind"])]
    query_QE = unit_rows(1, 6)
    ids, scores_QK = brute_force(query_QE, vectors_NE, chosen, top_k)
    found = index.search(query_QE, top_k, language=language, kind=kind)
    assert [[hit.id for hit in hits] for hits in found] == ids
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in found], scores_QK, atol=1e-6)
    assert all({key: getattr(hit, key) for key in rows[0]} == rows[int(hit.id[1:])] for hits in found for hit in hits)


def test_every_row_is_found_and_none_twice(big):
    index, vectors_NE = big
    assert index.count() == 2_000
    found = index.search(unit_rows(2, 2), top_k=16_384)
    for hits in found:
        assert sorted(hit.id for hit in hits) == sorted(f"u{i}" for i in range(2_000))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hits[0].id for hits in index.search(vectors_NE[::50], top_k=1)] == [f"u{i}" for i in range(0, 2_000, 50)]
    assert index.search(unit_rows(2, 1), 5, language="it") == [[]]


def test_equal_scores_are_in_the_order_of_ids(tmp_path):
    with Index.create(tmp_path / "i.db", 4, MODEL) as index:
        index.add(np.ones((30, 4), np.float32), [row(i) for i in range(30)])
        assert [hit.id for hit in index.search(np.ones((1, 4)), 30)[0]] == sorted(f"u{i}" for i in range(30))


def in_another_process(code, *args, prefix=()):
    command = [*prefix, sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


OPEN = """
import sys
from xretrieval import Index, UserError
import numpy as np
try:
    with Index.open(sys.argv[1]) as index:
        print(index.count(), index.dim, index.model_fingerprint, index.search(np.eye(1, 4), 1)[0][0].text)
except UserError as error:
    sys.exit(f"UserError: {error}")
"""


def test_another_process_sees_what_was_added_and_waits_its_turn(tmp_path):
    index = Index.create(tmp_path / "i.db", 4, MODEL)
    index.add(np.eye(3, 4), [row(i) for i in range(3)])
    index.add(np.eye(1, 4), [row(0, text="new")])
    second = Index.open(tmp_path / "i.db")
    index.close()
    refused = in_another_process(OPEN, tmp_path / "i.db")
    assert refused.returncode == 1
    assert (
        refused.stderr.strip() == f"UserError: {tmp_path}/i.db: another process has the index open; close it there first, or use a cluster"
    )
    second.close()
    second.close()
    assert in_another_process(OPEN, tmp_path / "i.db").stdout.split() == ["3", "4", MODEL, "new"]
    with Index.open(tmp_path / "i.db", MODEL) as again:
        assert again.count() == 3


def test_needs_no_network_and_no_proxy(tmp_path):
    prefix = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not shutil.which("ip") or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        prefix = []  # No network namespaces here: the proxy alone is tested.
    Index.create(tmp_path / "i.db", 4, MODEL).close()
    add = "import os; os.environ.update(http_proxy='http://10.0.0.1:1', https_proxy='http://10.0.0.1:1')\n"
    add += "import sys, numpy as np; from xretrieval import Index; from tests.search.test_index import row\n"
    add += "index = Index.open(sys.argv[1]); index.add(np.eye(2, 4), [row(0), row(1)]); print(index.search(np.eye(1, 4), 1)[0][0].id)"
    done = in_another_process(add, tmp_path / "i.db", prefix=prefix)
    assert done.stdout.strip() == "u0", done.stderr


def test_an_index_belongs_to_one_model(tmp_path):
    with Index.create(tmp_path / "i.db", 4, MODEL) as index:
        index.add(np.eye(2, 4), [row(0), row(1)])
    with pytest.raises(UserError, match=r"i\.db: the index of another model \(made by model aaaaaaaaaaaa…, this one is bbbbbbbbbbbb…\)"):
        Index.open(tmp_path / "i.db", OTHER_MODEL)
    with pytest.raises(UserError, match="the index of another model"):
        Index.create(tmp_path / "i.db", 4, OTHER_MODEL)
    with pytest.raises(UserError, match="vectors of width 4, these are 8 wide"):
        Index.create(tmp_path / "i.db", 8, MODEL)
    with pytest.raises(UserError, match="letters, digits and underscores"):
        Index.create(tmp_path / "i.db", 4, 'x" or id != "')
    with Index.create(tmp_path / "i.db", 4, MODEL) as index:
        assert index.count() == 2


def test_paths_that_hold_no_index(tmp_path):
    (tmp_path / "file.db").write_text("not an index")
    (tmp_path / "empty.db").mkdir()
    reasons = {
        "nowhere.db": "no index there; make one with `xretrieval index`",
        "empty.db": "no index there",
        "file.db": "a file, where an index is a folder",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            Index.open(tmp_path / name)
    assert not (tmp_path / "nowhere.db").exists()
    with pytest.raises(UserError, match=r"ends in \.db"):
        Index.create(tmp_path / "index", 4, MODEL)
    with pytest.raises(UserError, match=r"the folder .*/no does not exist"):
        Index.create(tmp_path / "no" / "i.db", 4, MODEL)


def test_an_index_deleted_while_open_can_be_made_again(tmp_path):
    index = Index.create(tmp_path / "i.db", 4, MODEL)
    index.add(np.eye(2, 4), [row(0), row(1)])
    shutil.rmtree(tmp_path / "i.db")
    with Index.create(tmp_path / "i.db", 4, OTHER_MODEL) as again:
        assert again.count() == 0
        again.add(np.eye(1, 4), [row(0)])
    with Index.open(tmp_path / "i.db") as again:
        assert again.count() == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_index_that_cannot_be_written(tmp_path):
    Index.create(tmp_path / "i.db", 4, MODEL).close()
    (tmp_path / "i.db").chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        Index.open(tmp_path / "i.db")


def test_rows_and_arguments_that_are_not_valid_add_nothing(tmp_path):
    with Index.create(tmp_path / "i.db", 4, MODEL) as index:
        one = np.eye(1, 4)
        wrong = [
            (one, [row(0, language="klingon")], "klingon"),
            (one, [row(0, kind="song")], "kind is 'song'"),
            (one, [row(0, id="")], "field id is"),
            (one, [row(0, text="ä" * 40_000)], "field text is .* at most 65535 bytes"),
            (one, [row(0, text=None)], "field text is null"),
            (one, [{"id": "x"}], "fields missing or unknown: end, file, kind"),
            (one, [row(0, colour="red")], "fields missing or unknown: colour"),
            (np.full((1, 4), np.nan), [row(0)], "vector 0 holds NaN"),
            (np.eye(2, 4), [row(0)], "shape .2, 4. for 1 rows"),
            (np.eye(1, 3), [row(0)], "shape .1, 3. for 1 rows of width 4"),
            (np.eye(2, 4), [row(0), row(0)], "id 'u0' occurs more than once"),
        ]
        for vectors_NE, rows, reason in wrong:
            with pytest.raises(UserError, match=reason):
                index.add(vectors_NE, rows)
        assert index.count() == 0
        index.add(np.zeros((0, 4), np.float32), [])
        for arguments, reason in [
            ((np.eye(1, 3), 1), "width 4"),
            ((one[0], 1), "width 4"),
            ((one, 0), "top_k is 0"),
            ((one, 16_385), "top_k is 16385"),
            ((np.full((1, 4), np.inf), 1), "query 0 holds NaN"),
            ((one, 1, 'de" or kind != "'), "language"),
            ((one, 1, None, "song"), "kind is 'song'"),
        ]:
            with pytest.raises(UserError, match=reason):
                index.search(*arguments)


def test_the_same_code_on_a_server(tmp_path):
    server, database, port = start_server_in_thread(str(tmp_path / "server"))
    try:
        uri = f"http://name:secret@127.0.0.1:{port}"
        with Index.create(uri, 4, MODEL) as index:
            index.add(np.eye(3, 4), [row(i) for i in range(3)])
        with Index.open(uri, MODEL) as index:
            assert index.count() == 3
            assert [hit.id for hit in index.search(np.eye(1, 4), 1, language="de", kind="speech")[0]] == ["u0"]
        with pytest.raises(UserError, match="the index of another model") as caught:
            Index.open(uri, OTHER_MODEL)
        assert "secret" not in str(caught.value)
    finally:
        server.stop(grace=0)
        database.close()
