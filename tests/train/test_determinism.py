"""The stream of global batches is one, whatever reads it: 1, 2 or 4 hosts, from the first step or from any other."""

import hashlib

import numpy as np
import pytest

from benchmarks import tiny_run
from xretrieval.data.pipeline import BatchPipeline
from xretrieval.data.plan import plan

SHARDS, BATCH, STEPS = 4, 16, 90  # of 200 examples a task: several epochs, and several windows of levelled steps


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two tasks with rates, dropped tokens and neutral prefixes, packed."""
    return tiny_run.data(tmp_path_factory.mktemp("records")).tasks


def pipeline(tasks, seed=0):
    shape = plan([task.lengths() for task in tasks], BATCH, seed, SHARDS, STEPS).shape
    return BatchPipeline(tasks, BATCH, 64, seed, SHARDS, shape)


def hashes(tasks, hosts, start=0, seed=0):
    """A hash of every global batch from `start` on, put together from what each host reads by itself."""
    share = SHARDS // hosts
    streams = [pipeline(tasks, seed).batches(start, STEPS, range(host * share, (host + 1) * share)) for host in range(hosts)]
    found = []
    for parts in zip(*streams, strict=True):
        whole = {name: np.concatenate([part[name] for part in parts]) for name in sorted(parts[0])}
        found.append(hashlib.sha256(b"".join(name.encode() + x.tobytes() for name, x in whole.items())).hexdigest())
    return found


def test_hosts_and_resuming_do_not_change_the_stream(tasks):
    expected = hashes(tasks, hosts=1)
    assert len(set(expected)) == STEPS, "no batch comes twice"
    assert hashes(tasks, hosts=2) == expected
    assert hashes(tasks, hosts=4) == expected
    for start in range(1, STEPS, 11):
        assert hashes(tasks, hosts=2, start=start) == expected[start:]
    assert not set(hashes(tasks, hosts=1, seed=1)) & set(expected)


def test_every_host_has_as_many_batches_of_one_shape(tasks):
    """Uneven data cannot hang a run: its steps are a number, and each is full on every host."""
    shapes = [
        [{name: x.shape for name, x in batch.items()} for batch in pipeline(tasks).batches(0, STEPS, [shard])] for shard in range(SHARDS)
    ]
    assert all(found == shapes[0] for found in shapes)
    assert all(found == shapes[0][0] for found in shapes[0])
