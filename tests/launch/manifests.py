"""Manifests of a run on GKE, from flags."""

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
