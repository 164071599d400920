"""OpenCLIP's contrastive loss as a peer: the published code in torch, and its distributed form (`local_loss`, `gather_with_grad`) written in JAX."""

import importlib.metadata
import importlib.util

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from xretrieval import mesh as mesh_lib


def torch_loss():
    """`ClipLoss` from the installed package's one file: the package itself imports torchvision, which a CPU build of torch has no wheel for."""
    file = importlib.metadata.distribution("open_clip_torch").locate_file("open_clip/loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", str(file))
    if spec is None or spec.loader is None:
        raise SystemExit(f"{file}: not there; `make bench` installs it")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss()


def local_loss(left_BE: jax.Array, right_BE: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """Each device gathers both sides, and takes the cross-entropy of its rows in each direction; b x B logits, twice. Gradients gather backwards."""
    batch = ("replica", "data")

    def local(left_bE, right_bE, logit_scale):
        left_all_BE, right_all_BE = (jax.lax.all_gather(x, batch, axis=0, tiled=True) for x in (left_bE, right_bE))
        size = left_bE.shape[0]
        own_b = jax.lax.axis_index(batch) * size + jnp.arange(size)
        total = 0.0
        for x_bE, y_BE in ((left_bE, right_all_BE), (right_bE, left_all_BE)):
            logits_bB = logit_scale * jnp.matmul(x_bE, y_BE.T, precision="highest", preferred_element_type=jnp.float32)
            positive_b = jnp.take_along_axis(logits_bB, own_b[:, None], axis=1)[:, 0]
            total += jnp.mean(jax.nn.logsumexp(logits_bB, axis=1) - positive_b) / 2
        return jax.lax.pmean(total, batch)

    sides = mesh_lib.spec("batch", None)
    return jax.shard_map(local, in_specs=(sides, sides, PartitionSpec()), out_specs=PartitionSpec())(left_BE, right_BE, logit_scale)
