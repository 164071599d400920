"""SIGTERM to `xretrieval train` before its first step: it gives way as later ones do, with exit code 75, so that it is started again."""

import os
import subprocess
import sys

from small_run import ROOT

PROGRAM = """
import os, signal, sys
from xretrieval import huge_pages, main
huge_pages.use = lambda: None
main.run_verb = lambda *arguments: os.kill(os.getpid(), signal.SIGTERM)
sys.argv = ["xretrieval", "train", "--gin_file=gin_configs/runs/polyglot.gin"]
sys.exit(main.main())
"""


def test_train_gives_way_from_the_start():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 75, run.stderr
    assert run.stderr == "xretrieval: stopped by SIGTERM; no step was under way, and the same command goes on from there\n"
