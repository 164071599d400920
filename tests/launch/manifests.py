"""Manifests of a run on GKE, from flags."""

import re
import subprocess
import sys

import yaml
from fake_cloud import ROOT

from launch.gke import render

RUN = ["--gin_file=gin_configs/runs/polyglot.gin", "--set", "WORKDIR=/bucket/run1"]
FLAGS = ["--name=run1", "--image=registry/xretrieval:1", "--accelerator=tpu-v5-lite-podslice", "--topology=16x16", "--bucket=data"]


def rendered(*flags, run=RUN, base=FLAGS):
    """The manifest as kubectl reads it, from the command as a user gives it."""
    command = [sys.executable, "-m", "launch.gke.render", *base, *flags, "--", *run]
    return yaml.safe_load(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout)


def made(*flags, run=RUN):
    """The same in this process."""
    return yaml.safe_load(yaml.safe_dump(render.jobset(render.parse([*FLAGS, *flags, "--", *run]))))


def job_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(manifest):
    return job_of(manifest)["template"]["spec"]


def arguments_of_the_readme(bucket, more):
    """Of `xretrieval train`: what a shell makes of the README's G, and of a command that takes it."""
    text = (ROOT / "launch/README.md").read_text()
    (group,) = re.findall(r"^    (G=\((?:.*\n)+?.*\))$", text, re.MULTILINE)
    script = f"B={bucket}\n{group}\nprintf '%s\\0' {more}"
    printed = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True, timeout=60).stdout
    return printed.rstrip("\0").split("\0")


def manifest_of_the_readme():
    """The arguments of the README's `launch.gke.render`."""
    (command,) = re.findall(r"python -m launch\.gke\.render ((?:.*\\\n)+.*) > run1\.yaml", (ROOT / "launch/README.md").read_text())
    return arguments_of_the_readme("/bucket", command)
