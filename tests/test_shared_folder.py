"""The folder of a run: written, renamed in, read and emptied, or a line that says what it does not do."""

import errno
import pathlib

import pytest

from xretrieval import shared_folder
from xretrieval.errors import UserError


def test_a_folder_that_can_be_used_is_left_as_it_was(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert shared_folder.check(tmp_path).startswith(f"{tmp_path}: what is written")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_whose_folders_cannot_be_renamed(tmp_path, monkeypatch):
    """As gcsfuse answers on a bucket without hierarchical namespace, of a folder that is not empty."""
    rename = pathlib.Path.rename

    def refuse(path, to):
        if any(part.is_dir() and any(part.iterdir()) for part in path.iterdir()):
            raise OSError(errno.EMFILE, "Too many open files")
        return rename(path, to)

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    with pytest.raises(UserError, match=r"cannot be renamed \(Too many open files\), .* bucket with hierarchical namespace"):
        shared_folder.check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_answers_from_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_folder, "_WITHIN", 0.3)
    monkeypatch.setattr(pathlib.Path, "unlink", lambda path: None)
    with pytest.raises(UserError, match=r"what process 0 removed is still seen here after 0.3 s; mount it without a cache"):
        shared_folder.check(tmp_path)


def test_what_is_seen_late_is_waited_for(tmp_path, monkeypatch):
    read, asked = pathlib.Path.read_text, []

    def late(path):
        asked.append(path)
        if len(asked) < 4:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_text", late)
    shared_folder.check(tmp_path)
    monkeypatch.setattr(shared_folder, "_WITHIN", 0.0)
    asked.clear()
    with pytest.raises(UserError, match="what process 0, process 0, in a folder that it renamed, wrote is not seen here"):
        shared_folder.check(tmp_path)
