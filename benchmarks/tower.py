"""The tower beside `transformers` on torch, same weights, same threads: sequences embedded a second, forward, and with the gradient.

`make bench NAME=tower JSON=tower.json` sets up the environment that holds both. The peer sorts by length and takes batches of 32, as its users do;
an unsorted one stands beside it without a bar. Ours packs all sequences of a set into rows; sorting and packing are timed. On a GPU it is the rate
of floating-point operations of a 1B tower that is measured, beside that of one large matrix product.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
import time

import gin
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from benchmarks import rows
from xretrieval import main
from xretrieval import mesh as mesh_lib
from xretrieval.data.packing import Shape, assemble, pack
from xretrieval.model import directory, pretrained, tower

VOCABULARY = 32_000
TOKENIZER = pathlib.Path(__file__).parents[1] / "tests/data/parity/gemma3/tokenizer.json"
TOKENS_AT_ONCE = 2_560  # of ours: rows that are embedded together; the peer's batches of 32 hold up to 19,200
# At least 1.2 times the peer's sequences a second on the mixed set, never below 0.9 times.
MIXED, ANY = 1.2, 0.9


def gemma3(vocabulary: int, width: int, layers: int, heads: int, kv_heads: int) -> transformers.Gemma3TextModel:
    """The peer's own model, of heads of 64, with weights of chance."""
    config = transformers.Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=512,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    return transformers.Gemma3TextModel(config).eval()


def sequences() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)

    def draw(count: int, low: int, high: int) -> list[np.ndarray]:
        return [rng.integers(4, VOCABULARY, n).astype(np.int32) for n in rng.integers(low, high + 1, count)]

    texts, units = draw(256, 8, 64), draw(64, 100, 600)
    return {"256 texts of 8 to 64 tokens": texts, "64 unit sequences of 100 to 600 tokens": units, "both": texts + units}


def peer_embed(model: transformers.Gemma3TextModel, chosen: list[np.ndarray], gradient: bool, by_length: bool) -> np.ndarray:
    """Mean pooled, of unit norm; with `gradient` also that of a sum over the embeddings, into the model's `.grad`."""
    order = np.argsort([len(s) for s in chosen], kind="stable") if by_length else np.arange(len(chosen))
    out = np.empty((len(chosen), model.config.hidden_size), np.float32)
    model.zero_grad(set_to_none=True)
    for first in range(0, len(chosen), 32):
        batch = order[first : first + 32]
        longest = max(len(chosen[i]) for i in batch)
        ids, mask = torch.zeros(len(batch), longest, dtype=torch.long), torch.zeros(len(batch), longest, dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : len(chosen[i])], mask[row, : len(chosen[i])] = torch.from_numpy(chosen[i]), 1
        with torch.set_grad_enabled(gradient):
            states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            embedded = torch.nn.functional.normalize(pooled, dim=-1)
            if gradient:
                embedded.pow(3).sum().backward()
        out[batch] = embedded.detach().numpy()
    return out


@dataclasses.dataclass(frozen=True)
class Packed:
    """A set in rows, cut into parts of equal shape."""

    parts: list[dict[str, np.ndarray]]
    num_segments: int
    order: np.ndarray  # (part, row of the part, segment) of each sequence, [N, 3]


def packed(chosen: list[np.ndarray], row_length: int) -> Packed:
    places = pack(np.array([len(s) for s in chosen]), row_length)
    rows_a_part = max(1, TOKENS_AT_ONCE // row_length)
    parts = -(-places.rows // rows_a_part)
    segments = int(places.segment_N.max()) + 1
    # Every sequence stands as a "left" side: the arrays are those that training reads.
    whole = assemble([chosen], [places], Shape(row_length, parts * rows_a_part, segments))
    cut = [{k: whole[k][p * rows_a_part : (p + 1) * rows_a_part] for k in ("tokens", "segment_ids", "positions")} for p in range(parts)]
    order = np.stack([places.row_N // rows_a_part, places.row_N % rows_a_part, places.segment_N], axis=1)
    return Packed(cut, segments, order)


class Ours:
    """The imported tower on one device."""

    def __init__(self, model_dir: str, compute: tower.ComputeConfig):
        model = directory.read(model_dir)
        self.config, self.compute = model.config, compute
        self.mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
        with jax.set_mesh(self.mesh):
            abstract = tower.abstract(model.config)
            self.params = {name: jax.device_put(np.asarray(x), abstract[name].sharding) for name, x in model.params.items()}

    def embed(self, chosen: Packed, gradient: bool) -> np.ndarray:
        with jax.set_mesh(self.mesh):
            total, parts = None, []
            for part in chosen.parts:
                placed = [
                    jax.device_put(part[k], mesh_lib.sharding(self.mesh, "batch", None)) for k in ("tokens", "segment_ids", "positions")
                ]
                if gradient:
                    out, total = _add_gradient(self.config, self.compute, chosen.num_segments, self.params, total, *placed)
                else:
                    out = _embed(self.config, self.compute, chosen.num_segments, self.params, *placed)
                parts.append(out)
            jax.block_until_ready(total)
            stacked = np.stack([np.asarray(part) for part in parts])
        return stacked[tuple(chosen.order.T)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _embed(config, compute, num_segments, params, tokens, segment_ids, positions):
    return tower.merge(config, params, compute)(tokens, segment_ids, positions, num_segments=num_segments)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _add_gradient(config, compute, num_segments, params, total, tokens, segment_ids, positions):
    def loss(params):
        out = tower.merge(config, params, compute)(tokens, segment_ids, positions, num_segments=num_segments)
        return (out**3).sum(), out

    gradient, out = jax.grad(loss, has_aux=True)(params)
    return out, gradient if total is None else jax.tree.map(jnp.add, total, gradient)


def compare(name: str, chosen: list[np.ndarray], model, ours: Ours, row_length: int, bar: float) -> list[dict]:
    np.testing.assert_allclose(ours.embed(packed(chosen, row_length), False), peer_embed(model, chosen, False, True), atol=1e-5)
    peer_name, found = f"transformers {transformers.__version__}, torch {torch.__version__}", []
    for gradient, what in ((False, "forward"), (True, "forward and backward")):
        one = functools.partial(ours.embed, gradient=gradient)
        other = functools.partial(peer_embed, model, chosen, gradient)
        label = f"{name}, {what}, sequences a second"
        mine, theirs = rows.seconds(lambda: one(packed(chosen, row_length)), lambda: other(True), rounds=1 if gradient else 3)  # noqa: B023
        found.append(rows.row(label, len(chosen) / mine, len(chosen) / theirs, f"{peer_name}, sorted", bar, True))
        if not gradient:
            begun = time.perf_counter()
            other(False)
            unsorted = time.perf_counter() - begun
            found.append(rows.row(label, len(chosen) / mine, len(chosen) / unsorted, f"{peer_name}, not sorted", None, True))
    return found


def operation_rate(config: tower.TowerConfig, compute: tower.ComputeConfig, batch: int, length: int, side: int) -> dict:
    """Model FLOP/s of the tower's forward and backward pass over full rows, without loss and optimizer, beside one bfloat16 product of `side` x `side` matrices in the same process.

    Counted are 6 operations a token for each weight of the layers, and in causal attention 12 * H * C for each token that one sees, on average
    length / 2 in a global layer and about the window in a local one; not what remat does again.
    """
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = tower.init(config, 0)
        put = functools.partial(jax.device_put, device=mesh_lib.sharding(mesh, "batch", None))
        tokens = put(np.random.default_rng(0).integers(0, config.text_size, (batch, length)).astype(np.int32))
        places = put(np.tile(np.arange(length, dtype=np.int32), (batch, 1)))
        ones = put(np.ones((batch, length), np.int32))
        step = jax.jit(jax.grad(lambda p: (tower.merge(config, p, compute)(tokens, ones, places) ** 3).sum()))
        matrix = jnp.ones((side, side), jnp.bfloat16)
        product = jax.jit(lambda x: x @ x)
        ours, peer = rows.seconds(lambda: jax.block_until_ready(step(params)), lambda: jax.block_until_ready(product(matrix)))
        weights = sum(x.size for name, x in params.items() if name.endswith("weight_DF"))
    everything, near = (length + 1) / 2, np.minimum(np.arange(1, length + 1), config.window or length).mean()
    local = sum((layer + 1) % config.global_every != 0 for layer in range(config.layers))
    attention = 12 * config.heads * config.head_dim * (local * near + (config.layers - local) * everything)
    rate = float(batch * length * (6 * weights + attention) / ours)
    label = f"{compute.attention} attention, {batch} rows of {length} tokens, {weights / 1e6:.0f} M weights, FLOP/s"
    return rows.row(label, rate, 2 * side**3 / peer, f"bfloat16 product of {side} x {side}", 0.5, True)


def gpu_rows() -> list[dict]:
    main.configure("train", ["gin_configs/models/gemma3_1b.gin"], [], [])
    config = gin.get_configurable("TowerConfig")(num_units=1024)
    return [operation_rate(config, tower.ComputeConfig(way, dtype="bfloat16", remat=True), 4, 4096, 8192) for way in ("dense", "chunked")]


def run() -> list[dict]:
    if jax.default_backend() == "gpu":
        return gpu_rows()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = gemma3(VOCABULARY, 512, 12, 8, 4)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/peer")
        # Token IDs are drawn; an import wants a tokenizer all the same.
        shutil.copyfile(TOKENIZER, f"{folder}/peer/tokenizer.json")
        pretrained.import_llm(f"{folder}/peer", f"{folder}/ours")
        ours = Ours(f"{folder}/ours", tower.ComputeConfig())
        found = []
        for (name, chosen), row_length in zip(sequences().items(), (128, 640, 640), strict=True):
            found += compare(name, chosen, model, ours, row_length, MIXED if name == "both" else ANY)
    return found


if __name__ == "__main__":
    rows.main(run)
