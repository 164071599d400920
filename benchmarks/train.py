"""Whole training steps beside sentence-transformers' on torch, same architecture, same first weights, same pairs, same threads: pairs a second.

`make bench NAME=train JSON=train.json`. A Gemma-3-shaped model of 6 layers and width 256 (11 million parameters); pairs of unit sequences and
texts, of lengths as in FLEURS at 25 Hz. The peer's features are ready-made tensors, each batch padded to its longest; its loss has one direction,
`MultipleNegativesRankingLoss` as it comes, ours both. Packing is timed, and AdamW with a clipped gradient on both sides.
"""

import os
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses, modules

from benchmarks import rows
from benchmarks.tower import TOKENIZER, gemma3
from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape, assemble, pack
from xretrieval.model import directory, pretrained, tower
from xretrieval.model.tower import ComputeConfig
from xretrieval.train import state as state_lib
from xretrieval.train.loop import place
from xretrieval.train.loss import LossConfig
from xretrieval.train.optimizer import OptimizerConfig, make_optimizer
from xretrieval.train.pairs import embed_pairs
from xretrieval.train.step import StepConfig, train_step
from xretrieval.train.trainable import TrainableConfig

VOCABULARY, PAIRS, STEPS = 8_000, 32, 2
ROW_LENGTH = 384


def peer_model(folder: str) -> SentenceTransformer:
    """Written to `folder`, and read by sentence-transformers as any model: mean pooling, unit norm."""
    gemma3(VOCABULARY, 256, 6, 4, 2).save_pretrained(folder)
    shutil.copyfile(TOKENIZER, f"{folder}/tokenizer.json")
    pathlib.Path(folder, "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    transformer = modules.Transformer(folder)
    pooling = modules.Pooling(256, pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling, modules.Normalize()], device="cpu")


def batches() -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Pairs of 100 to 400 units (log-normal, median 220) and 10 to 60 pieces of text."""
    rng = np.random.default_rng(0)

    def draw(median: float, low: int, high: int) -> np.ndarray:
        size = int(np.clip(median * np.exp(0.35 * rng.normal()), low, high))
        return rng.integers(4, VOCABULARY, size).astype(np.int32)

    return [[(draw(220, 100, 380), draw(28, 10, 60)) for _ in range(PAIRS)] for _ in range(STEPS)]


def features(sides: list[np.ndarray]) -> dict[str, torch.Tensor]:
    longest = max(map(len, sides))
    ids, mask = torch.zeros(len(sides), longest, dtype=torch.long), torch.zeros(len(sides), longest, dtype=torch.long)
    for row, side in enumerate(sides):
        ids[row, : len(side)], mask[row, : len(side)] = torch.from_numpy(side), 1
    return {"input_ids": ids, "attention_mask": mask}


class Peer:
    def __init__(self, folder: str):
        self.model = peer_model(folder)
        self.loss = losses.MultipleNegativesRankingLoss(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.0)

    def embed(self, pairs) -> list[np.ndarray]:
        self.model.eval()
        with torch.no_grad():
            return [self.model(features([pair[side] for pair in pairs]))["sentence_embedding"].numpy() for side in (0, 1)]

    def steps(self, chosen) -> None:
        self.model.train()
        for pairs in chosen:
            self.optimizer.zero_grad()
            self.loss([features([pair[side] for pair in pairs]) for side in (0, 1)], None).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()


class Ours:
    def __init__(self, folder: str, chosen):
        model = directory.read(folder)
        self.mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
        self.optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4), 1_000)
        places = [self.places(pairs) for pairs in chosen]
        self.shape = Shape(ROW_LENGTH, max(at.rows for at in places), max(int(at.segment_N.max()) for at in places) + 1)
        self.config = StepConfig(model.config, ComputeConfig(), LossConfig(spread_out_weight=0.0), self.shape.num_segments)
        with jax.set_mesh(self.mesh):
            abstract = tower.abstract(model.config)
            params = {name: jax.device_put(np.asarray(model.params[name]), abstract[name].sharding) for name in abstract}
            self.state = state_lib.from_params(model.config, params, self.optimizer, 20.0, 0, TrainableConfig())

    def places(self, pairs):
        return pack(np.array([len(side) for pair in pairs for side in pair]), ROW_LENGTH)

    def batch(self, pairs):
        numbers = np.arange(len(pairs), dtype=np.int32)
        packed = assemble([[side for pair in pairs for side in pair]], [self.places(pairs)], self.shape)
        return place({**packed, "pair_id": numbers.astype(np.int64), "left_id": numbers, "right_id": numbers, "place": numbers}, self.mesh)

    def embed(self, pairs) -> list[np.ndarray]:
        with jax.set_mesh(self.mesh):
            embed = jax.jit(embed_pairs, static_argnums=(0, 3, 4))
            return list(
                map(
                    np.asarray,
                    embed(self.config.tower, self.state.params["tower"], self.batch(pairs), self.shape.num_segments, ComputeConfig()),
                )
            )

    def steps(self, chosen) -> None:
        with jax.set_mesh(self.mesh):
            for pairs in chosen:
                self.state, metrics = train_step(self.state, self.batch(pairs), self.config, self.optimizer)
            jax.block_until_ready(metrics)


def run() -> list[dict]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    chosen = batches()
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(f"{folder}/peer")
        pretrained.import_llm(f"{folder}/peer", f"{folder}/ours")
        ours = Ours(f"{folder}/ours", chosen)
    for found, expected in zip(ours.embed(chosen[0]), peer.embed(chosen[0]), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    mine, theirs = rows.seconds(lambda: ours.steps(chosen), lambda: peer.steps(chosen), rounds=3, steady=True)
    count = PAIRS * STEPS
    name = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"
    return [rows.row(f"training, {PAIRS} pairs of units and text a step: pairs a second", count / mine, count / theirs, name, 1.5, True)]


if __name__ == "__main__":
    rows.main(run)
