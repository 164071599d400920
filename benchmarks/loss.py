"""The contrastive loss beside the plain one, which holds B x B logits, and beside OpenCLIP's: seconds, memory, matrix work, bytes on the wire.

`make bench NAME=loss JSON=loss.json`, some minutes. Where a GPU is, that part alone runs: 65,536 pairs in bfloat16 beside the plain form, and 1,048,576.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rows
from xretrieval import mesh as mesh_lib
from xretrieval.train.loss import LossConfig, contrastive_loss

CONFIG = LossConfig(spread_out_weight=0.0)  # the peers have no such term


def sides(size: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs as in training: unit vectors, the right one near its left one."""
    rng = np.random.default_rng(0)
    left_BE, noise_BE = rng.normal(size=(2, size, width)).astype(np.float32)
    right_BE = left_BE + noise_BE
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left_BE, right_BE))


def ours(left_BE, right_BE, scale, dtype="float32"):
    numbers_B = jax.reshard(jnp.arange(len(left_BE), dtype=jnp.int32), mesh_lib.spec("batch"))
    return contrastive_loss(left_BE, right_BE, scale, (numbers_B,), numbers_B, CONFIG, dtype)[0]


def plain(left_BE, right_BE, scale, dtype="float32"):
    """Both cross-entropies of one array of all logits, as one writes it first."""
    right_BE = jax.reshard(right_BE, jax.sharding.PartitionSpec(None, None))  # as the mesh's types want it; of one device, nothing moves
    logits_BB = scale * jnp.matmul(left_BE.astype(dtype), right_BE.astype(dtype).T, preferred_element_type=jnp.float32)
    positive_B = scale * jnp.sum(left_BE * jax.reshard(right_BE, mesh_lib.spec("batch", None)), axis=1)
    return sum(jnp.mean(jax.nn.logsumexp(logits_BB, axis=axis) - positive_B) / 2 for axis in (0, 1))


def gradients(function, dtype: str = "float32"):
    return jax.jit(jax.value_and_grad(functools.partial(function, dtype=dtype), argnums=(0, 1, 2)))


def temporary_bytes(function, size: int, width: int, dtype: str = "float32") -> int:
    """Of the compiled program's memory analysis; nothing runs."""
    side = jax.ShapeDtypeStruct((size, width), jnp.float32, sharding=mesh_lib.sharding(jax.sharding.get_mesh(), "batch", None))
    return gradients(function, dtype).lower(side, side, jnp.float32(20.0)).compile().memory_analysis().temp_size_in_bytes


def time_rows() -> list[dict]:
    import torch

    from benchmarks import open_clip

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    found = []
    for size, width in ((8_192, 512), (16_384, 256)):
        pairs = sides(size, width)
        arguments = [*(jax.device_put(x, mesh_lib.sharding(jax.sharding.get_mesh(), "batch", None)) for x in pairs), jnp.float32(20.0)]
        one, other = (functools.partial(gradients(function), *arguments) for function in (ours, plain))
        # The same loss; the peers' forms have fewer digits where pairs are aligned (tests/train/test_loss.py holds ours against float64).
        tolerance = 1e-3 * np.abs(other()[1][0]).max()
        np.testing.assert_allclose(one()[1][0], other()[1][0], atol=tolerance)
        mine, theirs = rows.seconds(lambda: jax.block_until_ready(one()), lambda: jax.block_until_ready(other()), steady=True)  # noqa: B023
        label = f"loss and gradients of {size:,} pairs of width {width}, one device, s"
        found.append(rows.row(label, mine, theirs, f"plain form under jax.jit {jax.__version__}", 1.05))
        if size == 8_192:
            loss = open_clip.torch_loss()

            def torch_step(pairs=pairs, loss=loss):
                left_BE, right_BE = (torch.from_numpy(x).requires_grad_() for x in pairs)
                scale = torch.tensor(20.0, requires_grad=True)
                loss(left_BE, right_BE, scale).backward()
                return left_BE.grad

            np.testing.assert_allclose(one()[1][0], torch_step(), atol=tolerance)
            mine, theirs = rows.seconds(lambda: jax.block_until_ready(one()), torch_step, steady=True)  # noqa: B023
            found.append(rows.row(label, mine, theirs, f"open_clip ClipLoss, torch {torch.__version__}", 0.6))
    return found


def memory_rows() -> list[dict]:
    """Temporary memory at 32,768 pairs of width 256, and how it grows: the slope of its logarithm in that of B."""
    sizes = (8_192, 16_384, 32_768)
    by_size = {function: [temporary_bytes(function, size, 256) for size in sizes] for function in (ours, plain)}
    slopes = {function: float(np.polyfit(np.log(sizes), np.log(found), 1)[0]) for function, found in by_size.items()}
    name = "plain form under jax.jit"
    growth = rows.row(f"slope of log memory in log B, {sizes[0]:,} to {sizes[-1]:,} pairs", slopes[ours], slopes[plain], name, None)
    growth |= {"bar": 1.1, "holds": slopes[ours] <= 1.1}  # of ours itself, not of the ratio
    return [
        rows.row(f"temporary bytes at {sizes[-1]:,} pairs of width 256, one device", by_size[ours][-1], by_size[plain][-1], name, 0.1),
        growth,
    ]


def sharded_rows() -> list[dict]:
    """Work and bytes of one device of eight, counted in the programs."""
    from benchmarks import open_clip
    from xretrieval.plan import collectives, flops, hlo

    mesh = mesh_lib.make_mesh()
    work, sent = [], []
    with jax.set_mesh(mesh):
        side = jax.ShapeDtypeStruct((8_192, 512), jnp.float32, sharding=mesh_lib.sharding(mesh, "batch", None))
        for function in (ours, open_clip.local_loss):
            traced = jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2))).trace(side, side, jnp.float32(20.0))
            found, unknown = collectives.collectives(hlo.parse(traced.lower().compile().as_text()), mesh)
            assert not unknown, "loops whose turns could not be read"
            work.append(flops.count(traced.jaxpr).flops)
            large = [one for one in found if one.payload >= 8_192 * 512 * 4]
            sent.append([sum(one.sent for one in chosen) for chosen in (large, found)])
    name = "OpenCLIP's local_loss and gather_with_grad in JAX"
    return [
        rows.row("8,192 pairs of width 512 over 8 devices: operations of matrix products, a device", work[0], work[1], name, 0.67),
        rows.row(
            "8,192 pairs of width 512 over 8 devices: bytes that a device sends, of arrays of B x E", sent[0][0], sent[1][0], name, 0.5
        ),
        # Beside these: IDs, positives and sums of every column, which OpenCLIP's does without.
        rows.row("8,192 pairs of width 512 over 8 devices: bytes that a device sends, of all", sent[0][1], sent[1][1], name, None),
    ]


def gpu_rows() -> list[dict]:
    """65,536 pairs of width 768 in bfloat16; then as many as 1,048,576, in chunks of memory that do not grow with B squared."""
    size, width = 65_536, 768
    arguments = [*(jnp.asarray(x) for x in sides(size, width)), jnp.float32(20.0)]
    one, other = (functools.partial(gradients(function, "bfloat16"), *arguments) for function in (ours, plain))
    mine, theirs = rows.seconds(lambda: jax.block_until_ready(one()), lambda: jax.block_until_ready(other()))
    memory = [temporary_bytes(function, size, width, "bfloat16") for function in (ours, plain)]
    label = f"{size:,} pairs of width {width}, bfloat16, loss and gradients"
    found = [rows.row(f"{label}: pairs a second", size / mine, size / theirs, "plain form under jax.jit", 1.3, True)]
    found.append(rows.row(f"{label}: temporary bytes", *memory, "plain form under jax.jit", 1 / 20))
    many = [*(jnp.asarray(x) for x in sides(1_048_576, width)), jnp.float32(20.0)]
    large = functools.partial(gradients(ours, "bfloat16"), *many)
    assert np.isfinite(float(large()[0]))
    taken, _ = rows.seconds(lambda: jax.block_until_ready(large()), lambda: None, rounds=1)
    found.append(
        rows.row(f"1,048,576 pairs of width {width}, bfloat16: pairs a second", 1_048_576 / taken, size / mine, f"ours at {size:,}", None)
    )
    return found


def run() -> list[dict]:
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.devices()[:1])):
        if jax.default_backend() == "gpu":
            return gpu_rows()
        found = time_rows() + memory_rows()
    return found + sharded_rows()


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    rows.main(run)
