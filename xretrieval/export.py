"""From an Orbax checkpoint to a model directory."""

import hashlib
import json
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from xretrieval import mesh as mesh_lib
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError, read_json
from xretrieval.model import directory, tower
from xretrieval.train import checkpoint
from xretrieval.train import state as state_lib
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.trainable import TrainableConfig
from xretrieval.units.tokenizer import UnitTokenizer

CARD = """---
library_name: xretrieval
tags: [retrieval, speech, multilingual]
---
# A retriever of speech and text

One tower embeds both. Width {width}, {layers} layers, {parameters:,} parameters; {text} text tokens and {units} speech units.
Trained for {step} steps on: {languages}. {origin}

    from xretrieval import Retriever
    retriever = Retriever.load("this folder")
    retriever.encode_speech(["question.wav"], "de_de") @ retriever.encode_text(["Montag, Juli und Euro"], "de_de").T
"""

OWN_NOTICE = """model.safetensors, the text tokenizer, the codebook in unit_tokenizer/: trained by the user of xretrieval from the user's own data; no part of
another's weights is in them. The licence of the training data applies as its owner says.
xretrieval itself: Apache-2.0.
"""
ENCODER_NOTICE = """
unit_tokenizer/encoder.safetensors: the lower layers of the speech encoder {name}, renamed and stacked by xretrieval; their values are its owner's, unchanged.
{terms}"""
DERIVED_NOTICE = """model.safetensors: made from the model that the notice below describes, and changed: it was trained by the user of xretrieval on the
user's own data, with rows for speech units in its table. The text tokenizer is that model's, unchanged. The codebook in unit_tokenizer/ is the user's own. The licence of the
training data applies as its owner says. xretrieval itself: Apache-2.0.

The notice of the model it was made from, whose terms hold for this folder too:

"""


def export(workdir: str, vocabulary: Vocabulary, unit_tokenizer_dir: str, out_dir: str, step: int | None = None) -> str:
    """Exports a step (the newest by default) of a training run; returns `out_dir`."""
    committed = checkpoint.steps(workdir)
    step = max(committed, default=0) if step is None else step
    if not committed:
        raise UserError(f"{workdir}: no checkpoint there; run `xretrieval train` first, or set another export.workdir")
    if step not in committed:
        raise UserError(f"{workdir}: no checkpoint of step {step} (there are {committed}); set another export.step")
    run = read_json(pathlib.Path(workdir) / "run.json")
    run.pop("settings", None)  # how it was trained, which may have changed on the way
    if run["vocabulary"] != vocabulary.fingerprint:
        raise UserError(
            f"{vocabulary.tokenizer_file}: not the text tokenizer that {workdir} was trained with; set export.tokenizer_file to that"
        )
    unit_tokenizer = UnitTokenizer.load(unit_tokenizer_dir)
    if run["unit_tokenizer"] != unit_tokenizer.fingerprint:
        raise UserError(
            f"{unit_tokenizer_dir}: not the unit tokenizer that {workdir} was trained with; set export.unit_tokenizer_dir to that"
        )
    if "trainable" not in run:
        raise UserError(
            f"{workdir}: this run was begun by an earlier version of xretrieval, whose checkpoints this one cannot read; train again"
        )
    config, trainable, start = tower.TowerConfig(**run["tower"]), TrainableConfig(**run["trainable"]), run["start"] or {}
    with jax.set_mesh(mesh_lib.make_mesh()):
        # What the optimizer holds does not depend on its numbers.
        abstract = state_lib.abstract(config, make_optimizer(OptimizerConfig(), 1), trainable)
        state = checkpoint.restore(workdir, step, abstract)
        params = jax.device_get(state_lib.whole(state, trainable))
        scale = float(np.exp(state.params["log_logit_scale"]))
    digest = hashlib.sha256(json.dumps({**run, "step": step}, sort_keys=True).encode())
    for name, value in sorted(params.items()):
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    card = CARD.format(
        width=config.width,
        layers=config.layers,
        parameters=sum(int(x.size) for x in params.values()),
        text=vocabulary.text_size,
        units=vocabulary.num_units,
        step=step,
        languages=", ".join(run["trained_languages"]),
        origin=_origin(start, unit_tokenizer.encoder.source),
    )
    directory.write(
        out_dir,
        config,
        params,
        vocabulary,
        unit_tokenizer_dir,
        scale,
        {**run, "fingerprint": digest.hexdigest()},
        card,
        _notice(start, unit_tokenizer.encoder.source),
        start.get("source"),
        start.get("prompts"),
        more_files={name: text.encode() for name, text in start.get("licences", {}).items()},
    )
    return out_dir


def _notice(start: dict, encoder: Mapping[str, str]) -> str:
    """Whatever a model was trained from, its notice goes along, and so do the terms of its speech encoder."""
    speech = ENCODER_NOTICE.format(**encoder) if encoder else ""
    return (DERIVED_NOTICE + start["notice"] if start else OWN_NOTICE) + speech


def _origin(start: dict, encoder: Mapping[str, str]) -> str:
    source = start.get("source")
    said = [f"Started from {source['name']}, licence: {source['licence']}; see NOTICE."] if source else []
    said += [f"Units of speech by {encoder['name']}, licence: {encoder['licence']}; see NOTICE."] if encoder else []
    return " ".join(said)
