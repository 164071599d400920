"""Rules of the house: who may import what, and how long a file may be."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("xretrieval/**/*.py"), *ROOT.glob("tasks/**/*.py")])
# The rest of what is written here: as long at most, but free to import.
OTHERS = sorted(path for folder in ("tests", "benchmarks", "launch") for path in ROOT.glob(f"{folder}/**/*.py"))
STAGES = ["corpora", "units", "data", "model", "train", "evaluate", "search", "serve"]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    found = set(imports(path))
    top = {name.split(".")[0] for name in found}
    inside = path.relative_to(ROOT).parts
    if inside != ("xretrieval", "main.py"):
        assert "gin" not in top, "only main.py imports gin"
    if inside[0] != "tasks" and inside[1] != "data":
        assert not top & {"seqio", "tensorflow"}, "only data/ and tasks/ import seqio or TensorFlow"
    if inside[0] == "xretrieval" and inside[1] in STAGES:
        later = STAGES[STAGES.index(inside[1]) + 1 :]
        assert not [name for name in found if name.split(".")[0] == "xretrieval" and name.split(".")[1] in [*later, "demo", "main"]]


@pytest.mark.parametrize("path", [*FILES, *OTHERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) < 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            long = node.end_lineno - node.lineno - len((ast.get_docstring(node) or "").splitlines())
            assert long < 60, node.name


def test_no_two_test_files_share_a_name():
    """pytest imports them by their name alone, for their folders are no packages."""
    names = [path.name for path in ROOT.glob("tests/**/*.py") if path.name != "conftest.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []
