"""Every gin file parses and finalises for every verb, with no unknown name in it."""

import pathlib
import subprocess
import sys
import time

import pytest

from xretrieval import main

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("gin_configs/**/*.gin"))
VERBS = [verb for verb, (_, _, names) in main.VERBS.items() if names]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("verb", VERBS)
def test_parses(file, verb):
    main.configure(verb, [file], [], [])


def test_help_is_fast_and_names_every_verb():
    taken = []
    for _ in range(3):  # the quickest of three: the machine may be doing other work
        begun = time.monotonic()
        out = subprocess.run([sys.executable, "-m", "xretrieval", "--help"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        taken.append(time.monotonic() - begun)
    assert min(taken) < 0.5
    assert all(verb in out for verb in main.VERBS)


@pytest.mark.parametrize("verb", main.VERBS)
def test_each_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert f"example: {main.VERBS[verb][1]}" in capsys.readouterr().out


# A preset has a tower alone: tests/model/test_presets.py builds those.
@pytest.mark.parametrize("file", [file for file in FILES if "/models/" not in file])
def test_builds(file):
    """The tower, the optimizer's state and the loss of a run file, as shapes."""
    import dataclasses

    import gin
    import jax

    from xretrieval import mesh as mesh_lib
    from xretrieval.train import state
    from xretrieval.train.optimizer import make_optimizer

    main.configure("train", [file], [], [])
    tower, optimizer, trainable = (gin.get_configurable(name)() for name in ("TowerConfig", "OptimizerConfig", "TrainableConfig"))
    with jax.set_mesh(mesh_lib.make_mesh()):
        tower = dataclasses.replace(tower, text_size=tower.text_size or 400, num_units=100)
        made = state.abstract(tower, make_optimizer(optimizer, 100), trainable)
    assert {**made.params["tower"], **made.frozen}["embedding.units_AD"].shape[1] == tower.width
