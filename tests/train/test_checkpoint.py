"""Checkpoints: damage of any kind in any file is found and the step before taken; nothing is deleted that should stay; a save is of its step."""

import contextlib
import json
import resource
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train import runs

from xretrieval import mesh as mesh_lib
from xretrieval.errors import UserError
from xretrieval.train import checkpoint, manifest
from xretrieval.train import state as state_lib
from xretrieval.train.checkpoint import Checkpoints
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.state import TrainState
from xretrieval.train.trainable import TrainableConfig


def state(number=0.0, rows=64):
    """A small state, on one device; `number` tells states apart."""
    table_VD = jnp.arange(rows * 8, dtype=jnp.float32).reshape(rows, 8) + number
    return TrainState({"tower": {"table_VD": table_VD}, "log_logit_scale": jnp.float32(number)}, {}, (table_VD * 2, jnp.int32(3)))


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state())


def saved(folder, *steps, keep=2):
    with Checkpoints(folder, "run", keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))
    return folder / "checkpoints"


def newest(folder, identity="run"):
    found = Checkpoints(folder, identity).restore_newest(abstract())
    assert found is None or all(
        (x == y).all() for x, y in zip(jax.tree.leaves(found[0]), jax.tree.leaves(state(found[1].step)), strict=True)
    )
    return found and found[1].step


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    saved(folder, 1, 2)
    return folder


def flip(path):
    data = bytearray(path.read_bytes()) or bytearray(b" ")
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def foreign(path):
    path.with_name("notes.txt").write_text("mine")


@pytest.mark.parametrize(
    "harm", [flip, grow, shorten, lambda path: path.unlink(), foreign], ids=["flip", "grow", "shorten", "delete", "foreign"]
)
def test_damage_in_each_file_is_found_and_the_step_before_is_taken(two, tmp_path, capsys, harm):
    files = [path.relative_to(two) for path in sorted((two / "checkpoints/2").rglob("*")) if path.is_file()]
    kinds = {"_CHECKPOINT_METADATA", "_METADATA", "_sharding", "commit_success.txt", "manifest.ocdbt", "process_0", manifest.NAME}
    assert kinds <= {path.name for path in files}
    assert any("ocdbt.process_0/d" in str(path) for path in files)
    for number, path in enumerate(files):
        folder = shutil.copytree(two, tmp_path / str(number))
        if harm is shorten and not (folder / path).stat().st_size:
            continue
        harm(folder / path)
        assert newest(folder) == 1, path
        error = capsys.readouterr().err
        assert str(folder / path) in error or (harm is foreign and "notes.txt" in error), error
        assert error.count("\n") == 1
        assert "step 1 is tried" in error


def test_every_byte_of_a_manifest_counts(two):
    text = (two / "checkpoints/2" / manifest.NAME).read_bytes()
    assert manifest.Manifest.decode(text).step == 2
    for place in range(len(text)):
        with pytest.raises(ValueError):
            manifest.Manifest.decode(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])


def test_without_a_whole_step_there_is_no_start(two, tmp_path, capsys):
    folder = shutil.copytree(two, tmp_path / "run")
    flip(folder / "checkpoints/1/commit_success.txt")
    (folder / "checkpoints/2" / manifest.NAME).unlink()
    with pytest.raises(UserError, match=r"none of its steps \(1, 2\) is whole"):
        newest(folder)
    assert capsys.readouterr().err.count("\n") == 2
    assert newest(tmp_path / "fresh") is None


def test_another_runs_checkpoint_is_not_taken(two, tmp_path, capsys):
    folder = shutil.copytree(two, tmp_path / "run")
    other = Checkpoints(tmp_path / "other", "another")
    other.save(3, state(3))
    other.wait()
    shutil.copytree(tmp_path / "other/checkpoints/3", folder / "checkpoints/3")
    assert newest(folder) == 2
    assert "another run" in capsys.readouterr().err
    shutil.move(folder / "checkpoints/1", folder / "checkpoints/7")
    assert newest(folder) == 2, "a step under another's name"


def test_what_is_not_ours_is_never_deleted(tmp_path, two, capsys):
    root = saved(tmp_path, 1, 2)
    other = Checkpoints(tmp_path / "other", "another")
    other.save(0, state(0))
    other.wait()
    shutil.copytree(tmp_path / "other/checkpoints/0", root / "0")  # of another run
    (root / "3").mkdir()
    (root / "3/notes.txt").write_text("mine")
    (root / "2/notes.txt").write_text("mine")
    (root / "keep").mkdir()
    with Checkpoints(tmp_path, "run", keep=1) as checkpoints:
        assert checkpoints.restore_newest(abstract())[1].step == 1
        checkpoints.save(4, state(4))
    assert "3 is missing" in capsys.readouterr().err.replace(f"/{manifest.NAME}", "")
    # Of 1, what was ours; 2, found damaged, and 3 stay as they are.
    assert sorted(path.name for path in root.iterdir()) == ["0", "2", "3", "4", "keep"]
    assert (root / "3/notes.txt").exists()
    assert newest(tmp_path) == 4
    (root / "4/notes.txt").write_text("mine")
    manifest.remove(root / "4")
    assert [path.name for path in (root / "4").iterdir()] == ["notes.txt"]


def test_the_last_good_one_stays(tmp_path, capsys):
    """With `keep` = 1, damage in the newest, and a save that fails, one whole step is always there."""
    root = saved(tmp_path, 1, 2, keep=2)
    flip(root / "2/commit_success.txt")
    checkpoints = Checkpoints(tmp_path, "run", keep=1)
    assert checkpoints.restore_newest(abstract())[1].step == 1
    nan = state(2)._replace(opt_state=(state(2).opt_state[0].at[5, 1].set(jnp.nan), jnp.int32(3)))
    checkpoints.save(2, nan)
    with pytest.raises(UserError, match="opt_state/0 holds numbers that are not finite"):
        checkpoints.wait()
    assert newest(tmp_path) == 1
    checkpoints.save(2, state(2))
    checkpoints.wait()
    assert sorted(path.name for path in root.iterdir()) == ["2", "2.damaged"], "what was damaged is kept under another name"
    assert newest(tmp_path) == 2


def test_a_save_that_was_killed_leaves_no_trace(tmp_path):
    root = saved(tmp_path, 1)
    for name in ("2.saving", "2.saving.orbax-checkpoint-tmp", "0.deleting"):
        shutil.copytree(root / "1", root / name)
    (root / "2.saving" / manifest.NAME).unlink()
    assert checkpoint.steps(tmp_path) == [1]
    assert newest(tmp_path) == 1
    assert [path.name for path in root.iterdir()] == ["1"]


def test_a_save_is_of_its_step_though_training_goes_on(tmp_path):
    """The next steps are given the buffers that are being saved."""
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    moving = jax.tree.map(lambda x: x + 0, state(rows=200_000))
    with Checkpoints(tmp_path, "run") as checkpoints:
        for step in range(3):
            checkpoints.save(step, moving)
            for _ in range(10):
                moving = update(moving)
    for step in (1, 2):
        whole = checkpoint.restore(
            tmp_path, step, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), moving)
        )
        for got, first in zip(jax.tree.leaves(whole), jax.tree.leaves(state(rows=200_000)), strict=True):
            np.testing.assert_array_equal(got, first + 10 * step)


def test_one_save_is_under_way_at_a_time_and_training_does_not_wait_for_it(tmp_path):
    large = state(rows=500_000)
    with Checkpoints(tmp_path, "run") as checkpoints:
        checkpoints.save(1, large)
        assert not checkpoints.saved, "it goes on in the background"
        assert [t.name for t in threading.enumerate() if t.name.startswith("save of")] == ["save of step 1"]
        checkpoints.save(2, large)
        assert [save.step for save in checkpoints.saved] == [1]
    assert [save.step for save in checkpoints.saved] == [1, 2]
    first, second = checkpoints.saved
    assert first.bytes == sum(
        path.stat().st_size for path in (tmp_path / "checkpoints/1").rglob("*") if path.is_file() and path.name != manifest.NAME
    )
    assert second.blocked > 0.5 * (first.seconds - first.blocked), "the second waited for the first"


@pytest.fixture
def small_disk():
    """A context in which no file may grow beyond 50 kB, as on a disk without space."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited


def test_a_full_disk_is_said_at_the_next_step_and_the_step_before_stays(tmp_path, capfd, small_disk):
    saved(tmp_path, 1)
    noise = np.random.default_rng(0).normal(size=100_000)  # what does not get smaller when it is packed
    full = state()._replace(frozen={"noise": jnp.asarray(noise, jnp.float32)})
    with Checkpoints(tmp_path, "run", keep=1) as checkpoints:
        with small_disk():
            checkpoints.save(2, full)
            checkpoints._thread.join()
        with pytest.raises(UserError, match=r"2: cannot be saved .*free space.*earlier checkpoints are kept"):
            checkpoints.check()
        assert newest(tmp_path) == 1
        checkpoints.save(3, full)
    assert checkpoint.steps(tmp_path) == [3]
    # The last save of a run: leaving waits for it, and fails.
    checkpoints = Checkpoints(tmp_path, "run")
    with small_disk():
        checkpoints.save(4, full)
        checkpoints._thread.join()
    with pytest.raises(UserError, match="4: cannot be saved"), checkpoints:
        pass
    assert capfd.readouterr().err == "", "no traceback of Orbax' threads"


@pytest.mark.parametrize("before,after", [((8, 1, 1), (1, 1, 1)), ((1, 1, 1), (8, 2, 1)), ((8, 2, 2), (8, 1, 1))], ids=str)
def test_restored_on_another_mesh(tmp_path, before, after):
    """(devices, model, replica) -> another: every leaf bitwise, in the shardings of the mesh it is restored on."""
    optimizer, made = make_optimizer(OptimizerConfig(), 10), {}
    for name, (devices, model, replica) in (("before", before), ("after", after)):
        with jax.set_mesh(mesh_lib.make_mesh(model, replica, jax.devices()[:devices])):
            if name == "before":
                made["before"] = state_lib.create(runs.CONFIG, optimizer, 20.0, 0, TrainableConfig())
                with Checkpoints(tmp_path, "run") as checkpoints:
                    checkpoints.save(5, made["before"], skipped=2)
            else:
                wanted = state_lib.abstract(runs.CONFIG, optimizer, TrainableConfig())
                made["after"], found = Checkpoints(tmp_path, "run").restore_newest(wanted)
                assert (found.step, found.skipped) == (5, 2)
                assert jax.tree.map(lambda x: x.sharding, made["after"]) == jax.tree.map(lambda x: x.sharding, wanted)
    for got, expected in zip(jax.tree.leaves(made["after"]), jax.tree.leaves(made["before"]), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_manifest_is_a_json_file(two):
    content = json.loads((two / "checkpoints/2" / manifest.NAME).read_text())
    assert (content["step"], content["identity"], content["skipped"]) == (2, "run", 0)
    assert set(content["files"]) == set(manifest.files_of(two / "checkpoints/2"))
