"""What a newcomer's machine meets before any of our code runs: metadata, exact sets, Makefile."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tokenize

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13")
OWN_ENVIRONMENT = pathlib.Path(sys.prefix).parent == ROOT


def constraints(version):
    return pins_of(f"py{version.replace('.', '')}")


def pins_of(name):
    lines = (ROOT / f"constraints/{name}.txt").read_text().splitlines()
    assert lines[0].startswith("#")
    return dict(line.split("==") for line in lines[1:])


@pytest.fixture(scope="module")
def metadata():
    """The names that setup.py defines, from running it."""
    before = sys.argv, os.getcwd()
    sys.argv = ["setup.py", "--quiet", "--version"]
    os.chdir(ROOT)
    try:
        return runpy.run_path("setup.py")
    finally:
        sys.argv, _ = before
        os.chdir(before[1])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_tested_set_satisfies_every_bound(metadata, version):
    pins = {canonicalize_name(name): pin for name, pin in (constraints(version) | pins_of("parity")).items()}
    environment = {"python_version": version, "sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}
    requirements = [Requirement(text) for text in (*metadata["CORE"], *metadata["TEST"], *metadata["BENCH"], *metadata["PARITY"])]
    checked = [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]
    for requirement in checked:
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    assert len({r.name for r in checked}) >= 25


@pytest.mark.parametrize("version", VERSIONS)
def test_the_tested_set_is_exact_and_lean(version):
    pins = constraints(version)
    assert all(re.fullmatch(r"[\w.+!-]+", pin) for pin in pins.values())
    names = {canonicalize_name(name) for name in pins}
    assert not names & {"torch", "torchaudio", "tensorflow-cpu", "xretrieval"}
    assert not {name for name in names if name.startswith("nvidia-")}


def test_torch_is_in_the_parity_environment_only(metadata):
    parity = {canonicalize_name(name): pin for name, pin in pins_of("parity").items()}
    # No local part: such a build is the same version elsewhere.
    assert re.fullmatch(r"[\d.]+", parity["torch"])
    for version in VERSIONS:
        assert not parity.keys() & {canonicalize_name(name) for name in constraints(version)}, version
    named = {Requirement(text).name for extra in ("CORE", "DEMO", "TPU", "TEST", "BENCH") for text in metadata[extra]}
    assert not named & {"torch", "transformers", "sentence-transformers"}


@pytest.mark.skipif(not OWN_ENVIRONMENT, reason="not the environment of `make test`")
def test_these_tests_run_on_the_tested_set():
    pins = constraints("{}.{}".format(*sys.version_info[:2]))
    # Of this environment only: setuptools puts packages of its own on the path.
    found = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in found}
    wrong = {
        name: installed.get(canonicalize_name(name)) for name, pin in pins.items() if installed.get(canonicalize_name(name), pin) != pin
    }
    assert wrong == {}
    assert importlib.util.find_spec("torch") is None


def test_every_bound_has_its_reason_beside_it():
    reason_on, bounds, comment_block = set(), [], False
    with open(ROOT / "setup.py", "rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                comment_block = True
                reason_on.add(token.start[0])
            elif token.type == tokenize.STRING and re.match(r'"[A-Za-z].*[<>=~]=?\d', token.string):
                # A comment holds for the run of lines that follows it.
                bounds.append((token.start[0], comment_block))
            elif token.type == tokenize.STRING:
                comment_block = False
    assert len(bounds) >= 15
    assert [line for line, explained in bounds if not explained and line not in reason_on] == []


def test_every_folder_of_the_package_is_installed():
    from setuptools import find_packages

    found = set(find_packages(str(ROOT), include=["xretrieval", "xretrieval.*", "tasks", "tasks.*"]))
    folders = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".") for top in ("xretrieval", "tasks") for path in (ROOT / top).rglob("*.py")
    }
    assert folders == found


def test_no_package_source_is_named():
    for path in (ROOT / "Makefile", ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / ".ci/run", *(ROOT / "constraints").iterdir()):
        assert not re.search(r"index-url|find-links|https?://|file://|git\+| @ ", path.read_text()), path


@pytest.fixture
def checkout(tmp_path):
    """The files that `make` reads, and a folder of the interpreter's own start-up code."""
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints", ".ci"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "start").mkdir()
    return tmp_path


def make(checkout, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | {"PYTHONPATH": str(checkout / "start")}
    return subprocess.run(["make", *arguments], cwd=checkout, env=environment, capture_output=True, text=True, timeout=60, check=False)


NO_VENV = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == "ensurepip":
            raise ImportError(name)
sys.meta_path.insert(0, Without())
"""


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
@pytest.mark.parametrize(
    ("start", "python", "reason"),
    [
        ("import sys; sys.version_info = (3, 14, 0, 'final', 0)", sys.executable, "Python 3.14 .* TensorFlow has no wheel for it"),
        ("import sys; sys.version_info = (3, 10, 13, 'final', 0)", sys.executable, "Python 3.10 .* JAX has no current wheel for it"),
        (NO_VENV, sys.executable, "has no venv: install it"),
        ("", "python-nowhere", "python-nowhere: .*not found"),
    ],
)
def test_an_unfit_python_is_refused_in_one_line(checkout, target, start, python, reason):
    (checkout / "start" / "sitecustomize.py").write_text(start)
    done = make(checkout, target, f"PYTHON={python}")
    assert done.returncode == 2
    assert len((done.stdout + done.stderr).splitlines()) == 1
    assert re.search(reason, done.stderr)
    assert not list(checkout.glob(".venv*"))


def test_an_environment_is_made_again_only_when_its_sources_changed(checkout):
    ready = checkout / ".venv-test-py{}{}".format(*sys.version_info[:2]) / "ready"
    ready.parent.mkdir()
    ready.touch()
    assert "pip" not in make(checkout, "--dry-run", "test", f"PYTHON={sys.executable}").stdout
    newer = ready.stat().st_mtime + 10
    for name in ("setup.py", "constraints/py{}{}.txt".format(*sys.version_info[:2])):
        os.utime(checkout / name, (newer, newer))
        assert "-m pip install" in make(checkout, "--dry-run", "test", f"PYTHON={sys.executable}").stdout
        os.utime(checkout / name, (0, 0))


def test_a_kind_of_environment_may_have_pins_of_its_own(checkout):
    dry = lambda target: make(checkout, "--dry-run", target, f"PYTHON={sys.executable}").stdout
    assert "--constraint constraints/parity.txt" in dry("parity")
    assert "parity" not in dry("test")
    ready = checkout / ".venv-parity-py{}{}".format(*sys.version_info[:2]) / "ready"
    ready.parent.mkdir()
    ready.touch()
    assert "-m pip install" not in dry("parity")
    newer = ready.stat().st_mtime + 10
    os.utime(checkout / "constraints/parity.txt", (newer, newer))
    assert "-m pip install" in dry("parity")


def test_the_committed_fixtures_are_small():
    files = [path for path in (ROOT / "tests/data/parity").rglob("*") if path.is_file()]
    assert len(files) > 50
    assert sum(path.stat().st_size for path in files) < 7e6


def test_a_benchmark_must_be_named(checkout):
    done = make(checkout, "bench", f"PYTHON={sys.executable}")
    assert done.returncode == 2
    assert "must be one of benchmarks/" in done.stderr
    assert not list(checkout.glob(".venv*"))


def test_what_ci_runs():
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "make test" in (ROOT / ".ci/run").read_text()
